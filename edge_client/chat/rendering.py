"""Answers on a terminal: text as it comes, coloured by who wrote it, and what is said about it."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator

from rich.console import Console
from rich.text import Text

from edge_client.chat.progress import Progress
from edge_client.chat.status import StatusLine
from edge_client.riding.offline import CheckedAnswer
from edge_client.terminal import TOLD
from edge_client.types import LinkState, RequestMetrics, RequestOutput, StreamChunk, Writer

DEVICE, BRANCH, OWN, SERVER, CORRECTED, OFFLINE = "green", "green underline", "blue", "", "yellow", "italic cyan"
STYLES = {
    Writer.DEVICE: DEVICE,
    Writer.BRANCH: BRANCH,
    Writer.OWN: OWN,
    Writer.SERVER: SERVER,
    Writer.CORRECTED: CORRECTED,
}
LEGEND = (
    ("the device guessed it", DEVICE),
    ("the device guessed it, beside another word", BRANCH),
    ("the verifier guessed it", OWN),
    ("the verifier's own", SERVER),
    ("the device guessed something else", CORRECTED),
    ("the device alone", OFFLINE),
)
# A verifier's words are anybody's: what could move the cursor or set the terminal's title is left out.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def clean(text: str) -> str:
    """Without control characters, except line ends and tabs."""
    return _CONTROLS.sub("", text)


def pieces(chunk: StreamChunk) -> Iterator[tuple[str, str]]:
    """The chunk's text in pieces with their styles."""
    if chunk.offline:
        yield chunk.text, OFFLINE
        return
    for text, writer in zip(chunk.texts, chunk.writers, strict=True):
        yield text, STYLES[writer]
    if not chunk.token_ids:
        yield chunk.text, SERVER


class Renderer:
    """Writes to a console: colours if it has any, plain text if not (pipes, NO_COLOR)."""

    def __init__(self, console: Console, errors: Console) -> None:
        self.console, self.errors = console, errors
        self._status: StatusLine | None = None  # while an answer comes

    def write(self, text: str, style: str = "") -> None:
        """Text as it is, without an end of line."""
        with self._room():
            self.console.print(Text(clean(text), style), end="", soft_wrap=True)

    def say(self, sentence: str, style: str = "dim") -> None:
        """A line about the answer, not of it; beside the answers, if those go into a file or a pipe."""
        console = self.console if self.console.is_terminal else self.errors
        with self._room():
            console.print(Text(clean(sentence), style), soft_wrap=True)

    def _room(self) -> contextlib.AbstractContextManager[object]:
        """Holds the status line back, if there is one, while text is written."""
        return self._status.lock if self._status is not None else contextlib.nullcontext()

    def stream(self, chunks: Iterable[StreamChunk], said: list[str], progress: Progress) -> RequestOutput | None:
        """Write an answer as it grows; `said` holds what was written, also if this is interrupted."""
        state, output = LinkState.LIVE, None
        with self._progress_shown(progress):
            for chunk in chunks:
                output = chunk.output or output
                progress.heard(chunk)
                if chunk.link is not state and chunk.output is None:
                    state = chunk.link
                    self._tell(state, begun=bool(said))
                if chunk.text:
                    said.append(chunk.text)
                for text, style in pieces(chunk):
                    self.write(text, style)
        return output

    @contextlib.contextmanager
    def _progress_shown(self, progress: Progress) -> Iterator[None]:
        """In the terminal's last row, if there is a terminal."""
        if not StatusLine.possible(self.console):
            yield
            return
        with StatusLine(self.console.file, progress) as status:
            self._status = status
            try:
                yield
            finally:
                self._status = None

    def _tell(self, state: LinkState, *, begun: bool) -> None:
        """News of the link: at once in the status line, if there is one, else and where it marks words as a line."""
        if self._status is not None:
            self._status.draw()
        if state in TOLD and (self._status is None or state is LinkState.OFFLINE):
            self.say(f"{chr(10) if begun and self.console.is_terminal else ''}[{TOLD[state]}]", "yellow")

    def difference(self, before: RequestOutput, checked: CheckedAnswer) -> None:
        """What the verifier makes of the device's own words."""
        if checked.agrees:
            self.say("The verifier says the same, word for word.", DEVICE)
            return
        self.write(before.committed_text, "dim")
        self.write(checked.kept_text, DEVICE)
        self.write(checked.device_text, "strike red")
        self.write("\n")
        self.write(checked.verifier_text)
        self.write("\n")
        kept = f" after {checked.kept_tokens} tokens" if checked.kept_tokens is not None else ""
        self.say(f"The verifier departs from the device's words{kept}; from there on its words stand.")

    def legend(self) -> None:
        """Which colour means what."""
        for meaning, style in LEGEND:
            self.console.print(Text.assemble("  ", ("words", style or "default"), f"  {meaning}"))


def figures(metrics: RequestMetrics) -> str:
    """An answer's figures in a line."""
    rate = 1e3 / metrics.ms_per_token if metrics.ms_per_token > 0 else 0.0
    parts = [f"{rate:.0f} tokens/s", f"first token {metrics.ttft_ms:.0f} ms"]
    if metrics.rtt_ms is not None:
        parts.append(f"round trip {metrics.rtt_ms:.0f} ms")
    if metrics.acceptance is not None:
        parts.append(f"{metrics.acceptance:.0%} acceptance rate")
    return ", ".join(parts)
