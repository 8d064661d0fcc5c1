"""Where the demo pair is: in `models/demo` of a clone, in `outrider/demo` of an installed wheel."""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).resolve().parent
_PLACES = (_HERE / "demo", _HERE.parents[1] / "models" / "demo")


def demo_folder() -> Path:
    """The folder with `target/`, `drafter-onnx/` and `drafter.gguf`. Raises FileNotFoundError."""
    for place in _PLACES:
        if (place / "target" / "config.json").is_file():
            return place
    raise FileNotFoundError(f"the demo pair is not in {' or '.join(map(str, _PLACES))}: install outrider again")
