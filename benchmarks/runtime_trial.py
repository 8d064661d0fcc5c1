"""What it costs to try a runtime in a process of its own: at the first start with a model, and at later ones.

python -m benchmarks.runtime_trial models/demo/drafter.gguf models/demo/drafter-onnx/model.onnx
"""

from __future__ import annotations

import os
import resource
import statistics
import tempfile
import time
from pathlib import Path

import click

from edge_client.drafters.runtime_trial import Trial, check_runtime
from outrider_models.runtime_build import LLAMA_CPP, ONNX_RUNTIME

LATER_STARTS = 20


@click.command()
@click.argument("models", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--runs", default=7, type=click.IntRange(1), help="First starts of each model.")
def main(models: tuple[Path, ...], runs: int) -> None:
    """Medians, in milliseconds; the file is in the page cache after the first run."""
    for model in models:
        trial = Trial(ONNX_RUNTIME if model.suffix == ".onnx" else LLAMA_CPP, (model,))
        first, processor, later = [], [], []
        for _ in range(runs):
            with tempfile.TemporaryDirectory() as folder:
                os.environ["XDG_CACHE_HOME"] = folder
                before_s = _children_s()
                first.append(_timed_ms(trial))
                processor.append((_children_s() - before_s) * 1e3)
                later += [_timed_ms(trial) for _ in range(LATER_STARTS)]
        medians = [statistics.median(times) for times in (first, processor, later)]
        click.echo("{}: first start {:.0f} ms, {:.0f} of processor time; later {:.1f} ms".format(model, *medians))


def _timed_ms(trial: Trial) -> float:
    began_s = time.perf_counter()
    check_runtime(trial)
    return (time.perf_counter() - began_s) * 1e3


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
