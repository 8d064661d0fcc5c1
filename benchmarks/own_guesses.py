"""Never slower than the same server with speculation of its own: a device's guesses, the verifier's, and both.

Two verifiers serve one target over the same emulated link, one of them with guesses of its own: by a small model beside
the target (`--draft-model`), or by lookup. Their steps take at least so long and so much more for every position. Five
ways take turns on every prompt: plain streaming; streaming from the verifier that guesses, which is what a server with
co-located speculation gives; a device that drafts for the plain verifier, and for the one that guesses.
"""

from __future__ import annotations

import random
import statistics
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks import report
from edge_client.client import EdgeClient
from edge_client.drafters.base import Drafter
from edge_client.types import RequestOutput
from netlab.console import print_whole
from netlab.experiments import drafters
from netlab.experiments.rig import DEMO
from netlab.link_process import LinkProcess
from netlab.link_settings import LinkSettings
from netlab.prompts import OPENINGS
from netlab.race import WARM_UP, chat
from netlab.verifier_process import VerifierProcess
from speculation.sampling import SamplingParams

# name: does the verifier guess, does the device draft
WAYS = {
    "streaming": (False, False),
    "co-located": (True, False),
    "device": (False, True),
    "device + co-located": (True, True),
}


def row(rtt_ms: float, way: str, outputs: dict[str, list[RequestOutput]]) -> dict[str, Any]:
    """What a way cost at a round trip."""
    ours = outputs[way]

    def over(other: str) -> list[float]:
        return [one.metrics.total_ms / two.metrics.total_ms for one, two in zip(ours, outputs[other], strict=True)]

    tokens = sum(len(output.token_ids) for output in ours)
    served = over("co-located")
    return {
        "rtt_ms": rtt_ms,
        "way": way,
        "ms_per_token": round(statistics.median(o.metrics.ms_per_token for o in ours), 2),
        "over_streaming": round(statistics.median(over("streaming")), 3),
        "over_co_located": round(statistics.median(served), 3),
        "over_co_located_p95": round(float(np.percentile(served, 95)), 3),
        "forwards_per_token": round(sum(o.metrics.target_forwards for o in ours) / tokens, 3),
        "device_share": round(sum(o.metrics.accepted_tokens for o in ours) / tokens, 3),
        "own_share": round(sum(o.metrics.own_accepted_tokens for o in ours) / tokens, 3),
    }


@click.command(context_settings={"show_default": True})
@click.option("--rtt-ms", "rtts_ms", multiple=True, type=float, default=(0.0, 20.0, 50.0, 100.0, 200.0, 400.0))
@click.option(
    "--drafter", default=str(DEMO / "drafter.gguf"), help="The device's; `garbage` for one that is always wrong."
)
@click.option("--draft-ms", default=0.0, help="Least time of a guess of the device's.")
@click.option("--draft-model", default=str(DEMO / "drafter.gguf"), help="The verifier's; `ngram` for lookup.")
@click.option("--step-ms", default=30.0, help="Least time of a step of the target, its own guesses aside.")
@click.option("--step-ms-per-token", default=0.1, help="And so much more for each position.")
@click.option("--temperature", default=0.8)
@click.option("--tokens", default=96)
@click.option("--prompts", default=8)
@report.json_option()
def main(rtts_ms: tuple[float, ...], json_file: Path | None, **settings: Any) -> None:
    """Race the ways at every round trip and print a table."""
    params = SamplingParams(temperature=settings["temperature"], max_tokens=settings["tokens"], ignore_eos=True)
    paced = ["--threads", "1", "--step-ms", settings["step_ms"], "--step-ms-per-token", settings["step_ms_per_token"]]
    guessing = ["--draft-model", settings["draft_model"]]
    if settings["draft_model"] == "ngram":
        guessing = ["--own-guesses", "ngram"]
    rows: list[dict[str, Any]] = []
    with (
        VerifierProcess(DEMO / "target", options=[*map(str, paced)]) as plain,
        VerifierProcess(DEMO / "target", options=[*map(str, paced), *guessing]) as helped,
        LinkProcess(("127.0.0.1", plain.port), LinkSettings()) as to_plain,
        LinkProcess(("127.0.0.1", helped.port), LinkSettings()) as to_helped,
    ):
        with EdgeClient(plain.address) as client:
            info = client.model_info()

        def drafter() -> Drafter | None:
            return drafters.load(
                settings["drafter"], settings["draft_ms"], info.vocabulary_size, info.vocabulary_fingerprint
            )

        clients = {
            way: EdgeClient(f"127.0.0.1:{(to_helped if own else to_plain).port}", drafter() if drafts else None)
            for way, (own, drafts) in WAYS.items()
        }
        for rtt_ms in rtts_ms:
            for link in (to_plain, to_helped):
                link.configure(LinkSettings.of_rtt(rtt_ms))
            for client in clients.values():
                client.generate(chat(WARM_UP), params, seed=0)
            outputs: dict[str, list[RequestOutput]] = {way: [] for way in WAYS}
            for index in track(range(settings["prompts"]), f"round trip {rtt_ms:g} ms", console=Console(stderr=True)):
                prompt = chat(OPENINGS[index % len(OPENINGS)])
                for way in random.Random(index).sample(list(WAYS), len(WAYS)):
                    outputs[way].append(clients[way].generate(prompt, params, seed=index))
                if len({outputs[way][-1].token_ids for way in WAYS}) != 1:
                    raise click.ClickException(f"the ways gave different words for {prompt}")
            rows += [row(rtt_ms, way, outputs) for way in WAYS]
        for client in clients.values():
            client.close()
    table = Table(*rows[0])
    for one in rows:
        table.add_row(*map(str, one.values()))
    print_whole(Console(), table)
    report.write(json_file, settings | {"rows": rows})


if __name__ == "__main__":
    main()
