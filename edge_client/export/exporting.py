"""Export a model, open the result as a device would, and say how far it is from its source."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from edge_client.drafters.base import Drafter
from edge_client.export.agreement import Agreement, compare, sequences
from outrider_models.memory_check import readable

FORMATS = ("onnx", "gguf")
DEFAULT_QUANTIZATION = {"onnx": "int8", "gguf": "q8_0"}
_UNQUANTIZED = {"onnx": "fp32", "gguf": "f32"}
WHOLE_VOCABULARY = 1 << 30
USUAL_CANDIDATES = 64


@dataclasses.dataclass(frozen=True)
class Exported:
    """What was written, and how well it agrees with its source. vocabulary: tokens, if it was trimmed. kept: share of
    the calibration text's tokens that are among them."""

    path: Path
    quantization: str
    size_bytes: int
    agreement: Agreement
    vocabulary: int | None = None
    kept: float | None = None

    def __str__(self) -> str:
        trimmed = "" if self.vocabulary is None else f", {self.vocabulary} tokens"
        kept = "" if self.kept is None else f" ({self.kept:.1%} of the calibration text's)"
        return f"{self.path}: {readable(self.size_bytes)} as {self.quantization}{trimmed}{kept}\n{self.agreement}"


def export(kind: str, model: Path, output: Path, quantize: str | None = None) -> Path:
    """Write `output` and return what `--drafter` takes: the folder (onnx) or the file (gguf).

    output: a folder; for gguf also a file. quantize: "none" or a name of the format; default 8 bits. Raises ValueError
    for a model or a quantization that the format's exporter does not know; what the exporters raise goes on.
    """
    name = _UNQUANTIZED[kind] if quantize == "none" else quantize or DEFAULT_QUANTIZATION[kind]
    if kind == "onnx":
        from edge_client.export.onnx_builder import export_onnx

        export_onnx(model, output, name)
        return output
    from edge_client.export.gguf_file import export_gguf

    if output.suffix != ".gguf":
        output.mkdir(parents=True, exist_ok=True)
        output /= f"{model.resolve().name}-{name.upper()}.gguf"
    export_gguf(model, output, name)
    return output


def load(path: Path, candidates: int = USUAL_CANDIDATES) -> Drafter:
    """What `export` returned, as a drafter with a number of candidates."""
    if path.suffix == ".gguf":
        from edge_client.drafters.llama_cpp.drafter import LlamaCppDrafter

        return LlamaCppDrafter(path, top_candidates=candidates)
    from edge_client.drafters.onnx.drafter import OnnxDrafter

    return OnnxDrafter(path, top_candidates=candidates)


def check(source: Path, path: Path, tokens: Iterable[Sequence[int]] | None = None) -> Agreement:
    """Agreement over the whole vocabulary; the time is that of the usual number of candidates."""
    tokens = sequences(source) if tokens is None else list(tokens)
    found = []
    for candidates in (WHOLE_VOCABULARY, USUAL_CANDIDATES):
        drafter = load(path, candidates)
        try:
            found.append(compare(source, drafter, tokens))
        finally:
            drafter.close()
    return dataclasses.replace(found[0], ms_per_token=found[1].ms_per_token)


def export_and_check(
    kind: str, model: Path, output: Path, quantize: str | None = None, vocabulary: int | None = None, text: str = ""
) -> Exported:
    """`export`, then `check` on sample text. vocabulary, text: see `trimmed_copy`; what was written is then held
    against the trimmed model."""
    name = quantize or DEFAULT_QUANTIZATION[kind]
    if vocabulary is None:
        path = export(kind, model, output, quantize)
        return Exported(path, name, size_bytes(path), check(model, path))
    from edge_client.export.trimming import trimmed_copy

    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / f"{model.resolve().name}-{vocabulary}"
        kept = trimmed_copy(model, copy, vocabulary, text)
        path = export(kind, copy, output, quantize)
        return Exported(path, name, size_bytes(path), check(copy, path), vocabulary, kept if text else None)


def size_bytes(output: Path) -> int:
    """Bytes of the file, or of all files in the folder."""
    files = [output] if output.is_file() else [file for file in output.iterdir() if file.is_file()]
    return sum(file.stat().st_size for file in files)
