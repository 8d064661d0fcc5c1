"""Measurements. Each module prints a table and, with --json, writes figures with commit, date and hardware.

`python -m benchmarks.client_overhead`, `python -m benchmarks.footprint`, `python -m benchmarks.pace_grid`. Policies
over networks are measured by `netlab race`.
"""
