"""What people see of a set-up: the table of what was measured, what was left out and why."""

from __future__ import annotations

from collections.abc import Sequence

import click
from rich.console import Console
from rich.table import Table

from edge_client.drafters.sources.model_search import LeftOut
from edge_client.drafters.sources.spec import LOOKUPS
from edge_client.setup.drafter_trial import Tried
from edge_client.setup.end_to_end_check import Checked
from edge_client.setup.reference_answers import Reference
from edge_client.setup.speed_race import Race
from outrider_models.memory_check import readable

UNJUDGED = (
    "Without the verifier nobody knows which guesses would be right: only their time is measured. Run this again when "
    "it answers."
)
NO_MODEL = (
    "No model to draft with was found. A small GGUF or ONNX model that speaks as the target does would make answers "
    "faster: put it here or name it. docs/drafters.md says which."
)
SAME_WORDS = "Their words are those that came without drafts."
OTHER_WORDS = (
    "Their words are not those that came without drafts: this verifier's sums depend on what it computes at once. Its "
    "operator can ask `cloud-verifier doctor`."
)


def in_order(tried: Sequence[Tried], first: Tried | None) -> list[Tried]:
    """What can be used: the proposed one first, then by expected speed, then as tried."""
    usable = [one for one in tried if not one.trouble]
    return sorted(usable, key=lambda one: (one is not first, one.expected_ms or 0.0))


def show(console: Console, rows: Sequence[Tried], left_out: Sequence[LeftOut], reference: Reference | None) -> None:
    """All that is known of drafters here."""
    show_left_out(left_out)
    show_drafters(console, rows, reference)
    if all(one.spec in LOOKUPS for one in rows):
        click.echo(NO_MODEL)


def show_drafters(console: Console, rows: Sequence[Tried], reference: Reference | None) -> None:
    """A numbered table: of what a guess takes, how many are right, and how fast answers are to be expected."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    table.add_column("drafter", overflow="fold", min_width=10)
    several = any(one.threads > 1 for one in rows)
    columns = ["memory", *(["threads"] if several else []), "ms/guess", "hits"]
    for name in [*columns, *(["ms/token", "speed-up"] if reference else [])]:
        table.add_column(name, justify="right", no_wrap=True)
    for number, one in enumerate(rows, 1):
        table.add_row(
            str(number),
            one.label + (f" ({one.vocabulary})" if one.vocabulary in ("translated", "nearly the target's") else ""),
            readable(one.memory_bytes) if one.memory_bytes else "-",
            *([str(one.threads)] if several else []),
            _ms(one.token_ms),
            "-" if one.acceptance is None else f"{one.acceptance:.0%}",
            *(_speed(one, reference) if reference else ()),
        )
    console.print(table)
    if reference is not None:
        click.echo("hits: share of this verifier's tokens that the drafter guesses right; silence is no hit.")
        click.echo("ms/token, speed-up: expected of answers on this way to the verifier.")


def show_left_out(left_out: Sequence[LeftOut]) -> None:
    """What is not in the table; alike reasons once."""
    by_reason: dict[str, list[str]] = {}
    for one in left_out:
        by_reason.setdefault(one.why, []).append(one.what)
    for why, what in by_reason.items():
        click.echo(f"left out: {', '.join(what)}: {why}")


def told_of(reference: Reference) -> str:
    """The verifier in a line."""
    return (
        f"{reference.model} answers: round trip {reference.rtt_ms:.0f} ms, "
        f"{reference.step_ms:.1f} ms per token without drafts."
    )


def show_check(checked: Checked, raced: Race | None, trouble: str) -> None:
    """How the whole path did: what is missing, if anything, or the answers' figures."""
    for finding in checked.findings:
        if not finding.ok:
            click.echo(f"FAULT  {finding.what}: {finding.detail}")
    if not checked.answers:
        told = all(finding.ok for finding in checked.findings)
        click.echo(f"No answer yet. {checked.trouble or trouble if told else ''}".rstrip())
        return
    click.echo(
        f"Checked: answers came with {checked.ms_per_token:.1f} ms per token; {checked.guessed:.0%} of their "
        "tokens were guessed here first."
    )
    if raced is not None:
        low, high = raced.spread
        click.echo(
            f"Measured: {raced.speed_up:.2f} times as fast as streaming: {len(raced.drafted)} answers in turns, "
            f"{raced.drafted_ms:.1f} ms per token against {raced.streamed_ms:.1f}; half of the answers were between "
            f"{low:.2f} and {high:.2f} times as fast."
        )
    if checked.same_words is not None:
        click.echo(SAME_WORDS if checked.same_words else OTHER_WORDS)


def _ms(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.1f}" if value >= 0.1 else "< 0.1"


def _speed(one: Tried, reference: Reference) -> tuple[str, str]:
    if one.expected_ms is None:
        return "-", "-"
    return f"{one.expected_ms:.1f}", f"{reference.step_ms / one.expected_ms:.1f} x"
