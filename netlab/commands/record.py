"""`netlab record`: real accept/reject sequences for the simulator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from netlab.commands.options import FILE_IN, FILE_OUT


@click.command()
@click.option("--target", required=True, help="Target model: a local folder or a hub id.")
@click.option("--drafter", required=True, help="GGUF file or ONNX folder.")
@click.option(
    "--prompts",
    type=FILE_IN,
    required=True,
    help="Lines of text, or .jsonl (also .xz) with messages or prompt in each line.",
)
@click.option("--count", default=32, type=click.IntRange(1), help="How many answers.")
@click.option("--tokens", default=128, type=click.IntRange(1), help="Tokens of an answer.")
@click.option("--temperature", default=0.8, type=click.FloatRange(0), help="0 takes the likeliest token.")
@click.option("--seed", default=1000, type=click.IntRange(0), help="Of the first answer; each has its own.")
@click.option("--stop-at-end", is_flag=True, help="End answers where the target does, instead of writing on.")
@click.option("--threads", default=1, type=click.IntRange(1), help="CPU threads of target and drafter.")
@click.option("--out", type=FILE_OUT, required=True, help="Where to write the recording.")
def record(target: str, drafter: str, prompts: Path, threads: int, out: Path, **options: Any) -> None:
    """Record where a real drafter guesses a real target right, for `netlab simulate --trace`.

    \b
        netlab record --target models/demo/target --drafter models/demo/drafter-onnx \\
            --prompts dialogues.jsonl.xz --out pair.jsonl
    """
    from rich.progress import track

    from edge_client.drafters import load_drafter
    from edge_client.drafters.base import DrafterError
    from netlab import provenance
    from netlab.simulator import record as recorder
    from netlab.simulator import recording

    settings = recorder.RecordSettings(**options)
    try:
        conversations = recorder.conversations(prompts, settings.seed)
        loaded = load_drafter(drafter, threads=threads)
    except (DrafterError, recorder.PromptsError) as error:
        raise click.ClickException(str(error)) from error
    if loaded is None:
        raise click.UsageError("without a drafter there is nothing to record; name a GGUF file or an ONNX folder.")

    from transformers.utils import logging  # late, with what needs it: seconds

    from cloud_verifier.engines.base import ModelError
    from cloud_verifier.engines.torch_engine import load
    from cloud_verifier.serving.codec import Codec
    from cloud_verifier.serving.text_codec import TextError

    logging.disable_progress_bar()
    try:
        codec = Codec(target)
        if codec.fingerprint != loaded.info.vocabulary_fingerprint:
            raise click.UsageError(
                "the drafter's vocabulary is not the target's; every guess would be of another text."
            )
        engine = load(target, strict=False, max_sequences=1, threads=threads)
        recorded = recorder.record(engine, codec, loaded, conversations, settings)
        answers = list(track(recorded, "recording", settings.count, transient=True))
    except (ModelError, DrafterError, TextError) as error:
        raise click.ClickException(str(error)) from error
    head = {
        "target": engine.info.name,
        "drafter": loaded.info.name,
        "prompts": prompts.name,
        "temperature": settings.temperature,
        "stop_at_end": settings.stop_at_end,
        "commit": provenance.commit(),
        "date": provenance.today(),
    }
    recording.write(recording.Recording(answers, head), out)
    right, total = sum(sum(a.hits) for a in answers), sum(len(a.hits) for a in answers)
    click.echo(f"{len(answers)} answers, {total} tokens, {right / total:.3f} of the guesses right: {out}")
