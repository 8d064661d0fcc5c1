"""Drafters: small models on the device that guess what the target will say. `base` is the contract.

Runtimes are imported only when a drafter that needs them is loaded.
"""

from __future__ import annotations

from pathlib import Path

from edge_client.drafters.base import Drafter, DrafterError
from edge_client.drafters.spec import CHAIN, HubModel, LocalModel, NamedDrafter, Part, parse

_DEMO = Path(__file__).resolve().parents[2] / "models" / "demo" / "drafter-onnx"


def load_drafter(spec: str | Path | None, *, threads: int = 1) -> Drafter | None:
    """Load what `spec` names: see `edge_client.drafters.spec`. None and "none" give None: no drafting.

    threads: for the runtime. Raises DrafterError with what is accepted.
    """
    parts = parse(spec)
    if not parts:
        return None
    if len(parts) > 1:
        raise DrafterError(f"chains of drafters ({CHAIN}) are not known here; name one drafter")
    return _load(parts[0], threads)


def _load(part: Part, threads: int) -> Drafter:
    match part:
        case LocalModel(path):
            return _load_model(path, threads)
        case HubModel():
            raise DrafterError(f"{part}: models of the hub cannot be fetched yet")
        case NamedDrafter():
            return _load_model(_demo(), threads)


def _load_model(path: Path, threads: int) -> Drafter:
    if path.is_dir():
        from edge_client.drafters.onnx import OnnxDrafter

        return OnnxDrafter(path, threads=threads)
    from edge_client.drafters.llama_cpp import LlamaCppDrafter

    return LlamaCppDrafter(path, threads=threads)


def _demo() -> Path:
    if not _DEMO.is_dir():
        raise DrafterError(
            f"the demo drafter is not at {_DEMO}; it comes with the source repository, not with the package"
        )
    return _DEMO
