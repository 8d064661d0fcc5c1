"""The embedded engine: any transformers causal LM, on CPU or GPU, all sessions sharing one pool of keys and values.

One step: `layout` says where each new token of each sequence lies, the model runs once over all of them end to end
(`engine`), `attention` lets every token see its own sequence in the `pool` and nothing else, `sampler` chooses under
the shared `noise`. `load` opens a model and `self_test` proves on this very machine that words do not depend on
company.
"""

from cloud_verifier.engines.torch_engine.engine import TorchEngine
from cloud_verifier.engines.torch_engine.load import load

__all__ = ["TorchEngine", "load"]
