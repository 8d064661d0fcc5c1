"""Drafters: small models on the device that guess what the target will say. `base` is the contract.

Runtimes are imported only when a drafter that needs them is loaded.
"""

from __future__ import annotations

from pathlib import Path

from edge_client.drafters.base import Drafter, DrafterError

_DEMO = Path(__file__).resolve().parents[2] / "models" / "demo" / "drafter-onnx"
_ACCEPTED = 'a .gguf file, a folder with a .onnx file and its tokenizer.json, "demo", or "none"'


def load_drafter(spec: str | Path | None, *, threads: int = 1) -> Drafter | None:
    """Load the drafter that `spec` names: a .gguf file, a folder with a .onnx file, or "demo" for the demo pair's.

    None and "none" give None: no drafting. threads: for the runtime. Raises DrafterError with what is accepted.
    """
    if spec is None or spec == "none":
        return None
    if spec == "demo":
        if not _DEMO.is_dir():
            raise DrafterError(
                f"the demo drafter is not at {_DEMO}; it comes with the source repository, not with the package"
            )
        spec = _DEMO
    path = Path(spec).expanduser()
    if path.is_dir():
        from edge_client.drafters.onnx import OnnxDrafter

        return OnnxDrafter(path, threads=threads)
    if path.is_file() and path.suffix == ".gguf":
        from edge_client.drafters.llama_cpp import LlamaCppDrafter

        return LlamaCppDrafter(path, threads=threads)
    problem = "is not one of these" if path.exists() else "does not exist"
    raise DrafterError(f"cannot draft with {str(spec)!r}: it {problem}. Accepted are {_ACCEPTED}.")
