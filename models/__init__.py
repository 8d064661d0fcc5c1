"""Models that ship with Outrider. Each folder holds weights, the recipe that made them and model cards."""
