"""Experiments: policies compared under declared conditions, on the real programs or in the simulator.

`race` runs the real programs, `grid` declares what a sweep varies, `store` keeps its rows as they come, `figures` and
`page` show them, `agreement` holds the simulator against the programs.
"""
