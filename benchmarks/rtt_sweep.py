"""Streaming, synchronous rounds and Outrider over a range of round-trip times: where does each win?

Same server, same run, interleaved; the synchronous length is swept anew at every round-trip time. The ratio to
streaming is taken prompt by prompt.
"""

from __future__ import annotations

import contextlib
import statistics
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks import report
from netlab.demo import DEMO, OPENINGS
from netlab.link_process import LinkProcess
from netlab.link_settings import LinkSettings
from netlab.race import Figures, Lane, chat, interleaved, open_lanes, same_words
from netlab.verifier_process import VerifierProcess
from speculation.sampling import SamplingParams


def ratios_to_streaming(lane: Lane, streaming: Lane) -> list[float]:
    """Total time over streaming's, prompt by prompt."""
    return [
        ours.output.metrics.total_ms / theirs.output.metrics.total_ms
        for ours, theirs in zip(lane.runs, streaming.runs, strict=True)
    ]


def rows(lanes: list[Lane], rtt_ms: float) -> list[dict[str, Any]]:
    """One row of figures per lane."""
    same = same_words(lanes)
    result = []
    for lane in lanes:
        figures, ratios = Figures.of(lane.runs), ratios_to_streaming(lane, lanes[0])
        result.append(
            {
                "rtt_ms": rtt_ms,
                "policy": lane.title,
                "ttft_ms_p50": round(figures.ttft_ms, 1),
                "ms_per_token_p50": round(figures.ms_per_token, 2),
                "total_over_streaming_p50": round(statistics.median(ratios), 3),
                "total_over_streaming_max": round(max(ratios), 3),
                "target_forwards_per_token": round(figures.target_forwards_per_token, 3),
                "acceptance": round(figures.acceptance, 3) if figures.acceptance is not None else None,
                "uplink_bytes_per_token": round(figures.uplink_bytes_per_token, 1),
                "downlink_bytes_per_token": round(figures.downlink_bytes_per_token, 1),
                "same_words": same,
            }
        )
    return result


@click.command(context_settings={"show_default": True})
@click.option("--rtt-ms", default="0,20,50,100,200,400", help="Round-trip times, comma-separated.")
@click.option("--step-ms", default=30.0, help="Least time of a target step.")
@click.option("--temperature", default=0.8)
@click.option("--prompts", default=6, type=click.IntRange(1, len(OPENINGS)))
@click.option("--max-tokens", default=96)
@click.option("--drafter", default=str(DEMO / "drafter-onnx"))
@click.option("--json", "json_file", type=click.Path(path_type=Path))
def main(
    rtt_ms: str, step_ms: float, temperature: float, prompts: int, max_tokens: int, drafter: str, json_file: Path | None
) -> None:
    """Run the sweep and print its table."""
    params = SamplingParams(temperature=temperature, max_tokens=max_tokens, ignore_eos=True)
    openings = OPENINGS[:prompts]
    table = Table(
        "RTT ms", "way", "first ms", "ms/token", "total/streaming", "worst", "forwards", "accepted", "same words"
    )
    results: list[dict[str, Any]] = []
    with contextlib.ExitStack() as stack:
        options = ["--step-ms", str(step_ms), "--threads", "1", "--max-sessions", "8"]
        verifier = stack.enter_context(VerifierProcess(DEMO / "target", options=options))
        link = stack.enter_context(LinkProcess(("127.0.0.1", verifier.port)))
        lanes, sync = stack.enter_context(open_lanes(f"127.0.0.1:{link.port}", drafter))
        for rtt in track([float(value) for value in rtt_ms.split(",")], "round-trip times"):
            link.configure(LinkSettings.of_rtt(rtt))
            for lane in lanes:
                lane.runs.clear()
            sync.sweep(lanes[1], params, seed=0)
            for lane, index in interleaved(lanes, openings):
                lane.measure(link, chat(openings[index]), params, index, lambda _chunk: None)
            results += rows(lanes, rtt)
    for row in results:
        table.add_row(*(str(value) for key, value in row.items() if not key.endswith("bytes_per_token")))
    Console().print(table)
    settings = {"step_ms": step_ms, "temperature": temperature, "prompts": prompts, "max_tokens": max_tokens}
    report.write(json_file, {"settings": settings, "rows": results})


if __name__ == "__main__":
    main()
