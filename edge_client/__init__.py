"""The device side of Outrider: drafters, the riding loop and the Python API. Never imports torch; `export` does.

Applications import the API from `outrider`.
"""
