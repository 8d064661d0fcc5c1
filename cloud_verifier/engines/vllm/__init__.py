"""vLLM as an engine: `load.load` opens one. Only `scheduler`, `worker` and what `load` does later import vLLM."""
