"""The commands `edge-client pull` and `edge-client models`: drafters fetched ahead of time, and those that are here."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edge_client.drafters.errors import DrafterError
from edge_client.settings.options import CommandError
from outrider_models.runtime_build import LLAMA_CPP, ONNX_RUNTIME, is_installed, runtime_install

if TYPE_CHECKING:
    from edge_client.drafters.sources.model_search import Model

RUNTIMES = {"gguf": LLAMA_CPP, "onnx": ONNX_RUNTIME}
_REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w.-]+([@:].*)?")


@click.command()
@click.argument("spec")
def pull(spec: str) -> None:
    """Fetch a drafter of the Hugging Face hub before it is needed, and say where it lies.

    SPEC is hf:ORG/REPO[@REVISION][:QUANTIZATION or FILE], as --drafter takes it; hf: may be left out. What is here
    already is not fetched again.
    """
    from edge_client.drafters.sources.spec import LocalModel, parse
    from outrider_models.hub import fetch
    from outrider_models.hub_model import HubModel
    from outrider_models.memory_check import readable

    if _REPOSITORY.fullmatch(spec) and not Path(spec).exists():
        spec = f"hf:{spec}"
    try:
        parts = parse(spec)
        models = [part for part in parts if isinstance(part, HubModel)]
        for model in models:
            file = fetch(model)
            click.echo(f"{model}: {file} ({readable(file.stat().st_size)})")
            _tell_runtime("onnx" if file.suffix == ".onnx" else "gguf")
    except DrafterError as error:
        raise CommandError(str(error)) from error
    if models:
        click.echo(f"To draft with it: --drafter {spec}")
        return
    for part in parts:
        here = f"it is here: {part.path}" if isinstance(part, LocalModel) else f"{spec} needs no download"
        click.echo(f"Nothing to fetch: {here}")
    if not parts:
        raise CommandError("no drafter was named; expected hf:ORG/REPO[@REVISION][:QUANTIZATION or FILE]")


@click.command()
@click.option(
    "--look-in",
    multiple=True,
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Look for models here, too.",
)
@click.option("--json", "as_json", is_flag=True, help="Print them as JSON.")
def models(look_in: tuple[Path, ...], as_json: bool) -> None:
    """List the drafters on this device: the demo's, models here and in models/, and other programs' models.

    The caches of the Hugging Face hub and llama.cpp and the models of LM Studio and Ollama are looked through. Only
    headers are read; `edge-client setup` measures which drafter is the fastest.
    """
    from edge_client.drafters.sources.model_search import search

    found, left_out = search(look_in, demo=True)
    if as_json:
        report = {"models": [_as_json(model) for model in found], "left_out": [one._asdict() for one in left_out]}
        click.echo(json.dumps(report, indent=1))
        return
    _show(found)
    for kind in sorted({model.kind for model in found}):
        _tell_runtime(kind)
    for one in left_out:
        click.echo(f"cannot be used: {one.what}: {one.why}")
    click.echo("ngram and history need no model.")


def _show(found: list[Model]) -> None:
    """A table of plain lines: it goes through a pipe, and no column is cut."""
    from outrider_models.memory_check import readable

    rows = [("--drafter", "kind", "size", "vocabulary", "runtime")]
    for model in found:
        vocabulary = "-" if model.vocabulary_tokens is None else f"{model.vocabulary_tokens:,}"
        runtime = "installed" if is_installed(RUNTIMES[model.kind]) else "missing"
        rows.append((model.spec, model.kind.upper(), readable(model.weights_bytes), vocabulary, runtime))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for spec, kind, size, vocabulary, runtime in rows:
        line = f"{spec:{widths[0]}}  {kind:{widths[1]}}  {size:>{widths[2]}}  {vocabulary:>{widths[3]}}  {runtime}"
        click.echo(line)


def _tell_runtime(kind: str) -> None:
    if not is_installed(RUNTIMES[kind]):
        click.echo(f"The runtime for {kind.upper()} drafters is missing: {runtime_install(RUNTIMES[kind])}")


def _as_json(model: Model) -> dict[str, object]:
    return {
        "drafter": model.spec,
        "name": model.label,
        "kind": model.kind,
        "path": str(model.path),
        "size_bytes": model.weights_bytes,
        "memory_bytes": model.memory_bytes,
        "vocabulary_tokens": model.vocabulary_tokens,
        "runtime": RUNTIMES[model.kind],
        "runtime_installed": is_installed(RUNTIMES[model.kind]),
    }
