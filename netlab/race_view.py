"""A race to look at: one pane per lane, words coloured by who wrote them first, and the table at the end."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text
from tokenizers import Tokenizer

from edge_client.types import StreamChunk
from netlab.race import Figures, Lane, by_task

DEVICE_STYLE, BRANCH_STYLE, SERVER_STYLE, ROLE_STYLE = "green", "green underline", "default", "dim italic"
ROLES = {"<|user|>": "\nuser: ", "<|assistant|>": "\nassistant: ", "<|end|>": "", "<|endoftext|>": "", "<|im_end|>": ""}


class Pieces:
    """Token ids as the text a person reads, role marks included."""

    def __init__(self, tokenizer_json: str) -> None:
        self._tokenizer = Tokenizer.from_file(tokenizer_json)

    def __call__(self, token: int) -> tuple[str, bool]:
        """The text of one token, and whether it is a role mark."""
        piece = self._tokenizer.decode([token], skip_special_tokens=False)
        return (ROLES[piece], True) if piece in ROLES else (piece, False)


class Pane:
    """What one lane has written of the present prompt."""

    def __init__(self, title: str, pieces: Pieces) -> None:
        self.title, self._pieces = title, pieces
        self.clear()

    def clear(self) -> None:
        """Begin a fresh prompt."""
        self.text, self.tokens, self.state = Text(), 0, ""

    def take(self, chunk: StreamChunk) -> None:
        """Show news; safe to call from the lane's own thread."""
        for token, guessed, corrected in zip(chunk.token_ids, chunk.drafted, chunk.corrected, strict=True):
            piece, role = self._pieces(token)
            by_device = BRANCH_STYLE if corrected else DEVICE_STYLE
            self.text.append(piece, ROLE_STYLE if role else by_device if guessed else SERVER_STYLE)
        self.tokens += len(chunk.token_ids)
        if chunk.output is not None:
            metrics = chunk.output.metrics
            self.state = f"{metrics.total_ms / 1000:.2f} s, {metrics.ms_per_token:.1f} ms per token"

    def render(self, height: int, width: int) -> RenderableType:
        """The pane, showing the end of its text if it is too long."""
        body = Text("\n").join(list(self.text.wrap(Console(width=width - 4), width - 4))[-(height - 2) :])
        done = bool(self.state)
        return Panel(
            body,
            title=f"[bold]{self.title}",
            subtitle=self.state or f"{self.tokens} tokens",
            border_style="bright_green" if done else "bright_black",
            height=height,
            width=width,
        )


class RaceView:
    """Panes above a progress bar; a `rich` renderable."""

    def __init__(self, console: Console, panes: Sequence[Pane], runs: int) -> None:
        self._console, self.panes = console, panes
        self._runs = runs
        self.headline = Text()
        self.progress = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
        )
        self.task = self.progress.add_task("measuring", total=runs)

    @classmethod
    def on(cls, console: Console, view: RaceView) -> RaceView:
        """The same race on another console."""
        copy = cls(console, view.panes, view._runs)
        copy.headline = view.headline
        return copy

    def __rich__(self) -> RenderableType:
        width = max(24, self._console.width // len(self.panes) - 1)
        height = min(18, max(8, self._console.height - 6))
        legend = Text.assemble(
            ("guessed by the device, confirmed by the verifier", DEVICE_STYLE),
            "   ",
            ("its second guess", BRANCH_STYLE),
            "   ",
            ("written by the verifier", SERVER_STYLE),
        )
        panes = Columns([pane.render(height, width) for pane in self.panes], padding=(0, 0))
        return Group(self.headline, panes, legend, self.progress)


def draw(path: Path, view: RaceView) -> None:
    """The race as it stands, as a picture."""
    paper = Console(record=True, width=132, height=24, file=io.StringIO(), force_terminal=True)
    paper.print(RaceView.on(paper, view))
    paper.save_svg(str(path), title="make demo")


def table(lanes: Sequence[Lane]) -> Table:
    """The figures of every lane side by side; the least time per token is bold."""
    grid = Table(
        title="medians over prompts; target forwards and bytes are per token; acceptance: accepted / checked; saved: "
        "tokens that were second guesses",
        title_style="dim",
    )
    for column in ("", "first", "per token", "total", "forwards", "acceptance", "saved", "B up", "B down"):
        grid.add_column(column, justify="left" if not column else "right")
    figures = [Figures.of(lane.runs) for lane in lanes]
    best = min(f.ms_per_token for f in figures)
    rows: list[Callable[[Figures], str]] = [
        lambda f: f"{f.ttft_ms:.0f} ms",
        lambda f: f"[bold green]{f.ms_per_token:.1f} ms[/]" if f.ms_per_token == best else f"{f.ms_per_token:.1f} ms",
        lambda f: f"{f.total_ms / 1000:.2f} s",
        lambda f: f"{f.target_forwards_per_token:.2f}",
        lambda f: "" if f.acceptance is None else f"{f.acceptance:.0%}",
        lambda f: f"{f.saved_per_token:.0%}" if f.saved_per_token else "",
        lambda f: f"{f.uplink_bytes_per_token:.0f}",
        lambda f: f"{f.downlink_bytes_per_token:.0f}",
    ]
    for lane, lane_figures in zip(lanes, figures, strict=True):
        grid.add_row(lane.title, *(row(lane_figures) for row in rows))
    return grid


def task_table(lanes: Sequence[Lane], tasks: Sequence[str]) -> Table:
    """Time per token by kind of work, a line per task and a column per lane; the least is bold. tasks: of each run."""
    grid = Table(title="ms per token by kind of work, medians", title_style="dim")
    grid.add_column("")
    found = [by_task(lane.runs, tasks) for lane in lanes]
    for lane in lanes:
        grid.add_column(lane.title, justify="right")
    for task in found[0]:
        least = min(one[task] for one in found)
        grid.add_row(task, *(f"[bold green]{v:.1f}[/]" if (v := one[task]) == least else f"{v:.1f}" for one in found))
    return grid
