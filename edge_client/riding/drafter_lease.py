"""A drafter's lease: what it holds of a conversation, and how much of its time it may use.

A next turn of the same conversation need not be read again. A conversation that outgrows the drafter's context is
held from a later start: a drafter may forget, the words are the verifier's.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edge_client.drafters.base import ANY_VOCABULARY, Candidates, Drafter
from speculation.pace.duty import DutyCycle
from speculation.pace.piece_size import PieceSize

if TYPE_CHECKING:
    from outrider.v1 import verifier_pb2 as pb


@dataclass
class DrafterLease:
    """tokens: what the drafter holds, from position `start` of the conversation on. duty: None for all the time.
    notices: what the next answer is to tell.

    One thread at a time calls the drafter, through here; any thread may ask for `busy_s`.
    """

    drafter: Drafter
    duty: DutyCycle | None = None
    tokens: list[int] = field(default_factory=list)
    start: int = 0
    piece: PieceSize = field(default_factory=PieceSize)
    notices: list[str] = field(default_factory=list)
    _vocabulary: tuple[str, int] | None = None
    _call_began_s: float | None = None

    @property
    def busy_s(self) -> float:
        """How long the present call into the drafter has taken so far; 0 if there is none."""
        began_s = self._call_began_s
        return 0.0 if began_s is None else time.perf_counter() - began_s

    @contextlib.contextmanager
    def calling(self) -> Iterator[None]:
        """Around a call into the drafter, which a runtime may not return from for a long time."""
        outer_s, self._call_began_s = self._call_began_s, time.perf_counter()
        try:
            yield
        finally:
            self._call_began_s = outer_s

    @property
    def end(self) -> int:
        """Position after the last token that the drafter holds."""
        return self.start + len(self.tokens)

    @property
    def speaks_any_vocabulary(self) -> bool:
        """Whether the drafter's ids are the target's, whatever those are."""
        return self.drafter.info.vocabulary_fingerprint == ANY_VOCABULARY

    def speaks(self, target: pb.GetModelInfoResponse) -> bool:
        """Whether the drafter's ids are this target's now: another session may have exchanged the drafter since this
        one was opened."""
        return self.drafter.info.vocabulary_fingerprint in (ANY_VOCABULARY, target.vocabulary_fingerprint)

    def adopt_vocabulary(self, fingerprint: str, size: int) -> Sequence[str]:
        """The target's vocabulary, at the start of a session; returns the drafter's notices."""
        if self._vocabulary not in (None, (fingerprint, size)):
            self.rollback(0)  # those ids meant something else
        self._vocabulary = fingerprint, size
        with self.calling():
            return self.drafter.adopt_vocabulary(fingerprint, size)

    def exchange(self, make: Callable[[], Drafter]) -> None:
        """Another drafter from now on, which may share its model or lookups with the present one.

        Both are rolled back to 0: what they share would otherwise still hold tokens that the new one knows nothing of.
        """
        self.rollback(0)
        self.start, self._vocabulary = 0, None
        with self.calling():
            self.drafter = make()
            self.drafter.rollback(0)

    def keep_common_prefix(self, tokens: Sequence[int]) -> None:
        """Keep what the drafter holds of a conversation that begins with `tokens`, drop the rest."""
        agreed = self.start
        for held, wanted in zip(self.tokens, tokens[self.start :], strict=False):
            if held != wanted:
                break
            agreed += 1
        # The candidates after the last token are only known once it is fed again.
        self.rollback(min(agreed, len(tokens) - 1))

    def follow(self, position: int, tokens: Sequence[int]) -> None:
        """The log reads `tokens` from a position on: drop what differs."""
        at = position - self.start
        if at >= 0 and self.tokens[at : at + len(tokens)] == tokens:
            return
        for token in tokens:
            if at >= len(self.tokens):
                return
            if at >= 0 and self.tokens[at] != token:
                self.rollback(self.start + at)
                return
            at += 1

    def lacks(self, log: Sequence[int], path: list[int], most: int) -> list[int]:
        """What to read next so as to hold the log and then a path: at most so many tokens, at least the last one.

        Drops what it holds of another path. The log is what it holds already, as far as that goes.
        """
        length = len(log)
        if (held := self.end) < length:
            return [*log[held : held + most], *path[: max(0, most - length + held)]]
        # The candidates after the last token are only known once it is fed again.
        if not path:
            self.rollback(length - 1)
            return [log[-1]]
        beyond = self.tokens[length - self.start :]
        kept = len(beyond)
        if kept >= len(path) or beyond != path[:kept]:
            kept = 0
            while kept < min(len(beyond), len(path) - 1) and beyond[kept] == path[kept]:
                kept += 1
            self.rollback(length + kept)
        return path[kept : kept + most]

    def rollback(self, position: int) -> None:
        """Drop everything from `position` on."""
        kept = max(0, position - self.start)
        if kept < len(self.tokens):
            with self.calling():
                self.drafter.rollback(kept)
            del self.tokens[kept:]

    @property
    def most_ahead(self) -> int:
        """How far past the log guesses may go: what it begins again with is never guesses alone, see `reach`."""
        return max(1, self.drafter.info.context_tokens // 2)

    def room(self, position: int) -> int:
        """How many tokens from a position on the drafter can hold as it is."""
        return self.start + self.drafter.info.context_tokens - position

    def reach(self, position: int) -> None:
        """Make sure that everything up to `position` can be held: if need be, begin again half a context before it.

        At most `most_ahead` of that are guesses.
        """
        context = self.drafter.info.context_tokens
        if self.tokens and position - self.start <= context:
            return
        self.rollback(self.start)
        self.start = 0 if position <= context else position - (context + 1) // 2

    def feed(self, tokens: Sequence[int]) -> None:
        """Append and evaluate."""
        self._call_began_s = time.perf_counter()  # written out: once for every guess
        try:
            self.drafter.feed(tokens)
        finally:
            self._call_began_s = None
        self.tokens.extend(tokens)

    @property
    def most_tips(self) -> int:
        """See `Drafter`."""
        return self.drafter.most_tips

    def feed_beside(self, tokens: Sequence[int], position: int, paths: Sequence[Sequence[int]]) -> list[Candidates]:
        """Append and evaluate, and look at paths from a position of what it held before on."""
        with self.calling():
            found = self.drafter.feed_beside(tokens, position - self.start, paths)
        self.tokens.extend(tokens)
        return found

    def read(self, tokens: Sequence[int]) -> None:
        """Append and evaluate a piece of a longer text, see `piece`."""
        began_s = time.perf_counter()
        self.feed(tokens)
        self.piece.read(len(tokens), (time.perf_counter() - began_s) * 1e3)

    def candidates(self) -> Candidates:
        """What may follow."""
        self._call_began_s = time.perf_counter()
        try:
            return self.drafter.candidates()
        finally:
            self._call_began_s = None

    def learn(self, log: Sequence[int], prompt_tokens: int) -> None:
        """An answer is complete."""
        with self.calling():
            self.drafter.learn(log, prompt_tokens)
