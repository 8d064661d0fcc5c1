"""A drafter for SmolLM2-135M-Instruct: the recipe that makes it from nothing but its target."""
