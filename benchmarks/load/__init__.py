"""How many sessions one verifier holds at a time per output token. `python -m benchmarks.load`."""
