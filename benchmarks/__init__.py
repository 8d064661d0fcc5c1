"""Measurements. Each module prints a table and, with --json, writes figures with commit, date and hardware.

`python -m benchmarks.` client_overhead, footprint, free_drafters, vocabularies; in the simulator pace_grid, rivals,
reaction. Policies over networks are measured by `netlab race`, the simulator by `netlab agree`.
"""
