"""The log and the line, as the verifier and as the device see them.

The log is the text as decided: prompt and answer, append-only, owned by the verifier. The line is the device's guess of
how the log goes on. Positions count from the first token of the prompt. Both sides keep the line as the tokens that
follow their own log; what the log has caught up with is spent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

MAX_LOOKAHEAD = 1024  # most that any verifier takes of a line past its log, and of one draft
UNSAID_CONFIDENCE = 0.75  # of a guess whose device does not say how sure it is


class LineError(ValueError):
    """A message that cannot be true. The message says what was claimed and what is known."""


def _agreement(tokens: Sequence[int], log: Sequence[int], start: int) -> int:
    """How many of `tokens`, laid from position `start`, the log agrees with before it ends or disagrees."""
    n = min(len(tokens), len(log) - start)
    for i in range(n):
        if tokens[i] != log[start + i]:
            return i
    return n


def news_of(log: Sequence[int], start: int, tokens: Sequence[int]) -> list[int]:
    """The tokens of a commit that the log does not have yet. A repeated commit brings none.

    Raises LineError for a gap, or if the log is said to read differently than before.
    """
    if not 0 <= start <= len(log):
        raise LineError(f"a commit starts at {start}, but the log is only known up to {len(log)}")
    old = len(log) - start
    if _agreement(tokens, log, start) < min(old, len(tokens)):
        raise LineError(f"the verifier now tells another log at or after position {start}")
    return list(tokens[old:])


@dataclass
class VerifierLine:
    """The log of a session and the line its device last drew.

    log: prompt and answer. guesses: the line past the log's end; they are on the path, for a line that disagrees with
    the log is dead and has no guesses. confidences and depths belong to them: what the device says of each, and how far
    past the log it knew. Counters are totals for the session.
    """

    log: list[int]
    guesses: list[int] = field(default_factory=list)
    confidences: list[float] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    drafted: int = 0
    dropped: int = 0
    _dead_at: int | None = None

    @property
    def length(self) -> int:
        """Committed length: the only clock."""
        return len(self.log)

    def ends_before(self, position: int) -> bool:
        """Whether the line ends before a position though the log contradicts nothing: no commit will say so."""
        return self._dead_at is None and self.length + len(self.guesses) < position

    def draft(
        self, start: int, tokens: Sequence[int], known_length: int, limit: int, confidences: Sequence[float] = ()
    ) -> None:
        """Take a draft: from `start` on the line reads `tokens`, drawn when the device knew `known_length` of the log.

        A start behind the log is no error: the part that the log agrees with is spent, the rest counts. A draft that
        starts at or before what the device knew stands on the log itself; one that starts later goes on with the line
        sent before, and is dropped if that line is dead or has a gap. Guesses beyond `limit` tokens past the log are
        dropped, and so are those beyond the first MAX_LOOKAHEAD. confidences: one for each token, or none.

        Raises LineError if the device claims to know more of the log than there is.
        """
        length = len(self.log)
        if known_length > length:
            raise LineError(
                f"the draft claims to know {known_length} tokens of the log, which has {length}; resume to resync"
            )
        self.drafted += len(tokens)
        reach = min(MAX_LOOKAHEAD, max(0, length + limit - start))
        self.dropped += max(0, len(tokens) - reach)
        tokens, confidences = tokens[:reach], confidences[:reach]
        fresh = start <= known_length
        if not fresh and (self._dead_at is not None and start > self._dead_at):
            self.dropped += len(tokens)
            return
        behind = max(0, length - start)
        agreed = _agreement(tokens, self.log, start) if behind else 0
        if agreed < min(behind, len(tokens)):  # the log already says otherwise
            self._die(start + agreed)
            self.dropped += len(tokens)
            return
        if not fresh and start > length + len(self.guesses):
            self.dropped += len(tokens)
            return
        keep = max(0, start - length)
        kept = self.guesses[:keep] + list(tokens[behind:])
        self.dropped += min(len(tokens), behind)
        said = confidences or [UNSAID_CONFIDENCE] * len(tokens)
        depth = max(start, length) - known_length
        self.guesses = kept
        self.confidences = [*self.confidences[:keep], *said[behind:]]
        self.depths = [*self.depths[:keep], *range(depth, depth + len(tokens) - behind)]
        self._dead_at = None

    def commit(self, tokens: Sequence[int]) -> int:
        """Append to the log; returns how many of the tokens, from the first on, the line had guessed."""
        guessed = 0
        while guessed < min(len(tokens), len(self.guesses)) and tokens[guessed] == self.guesses[guessed]:
            guessed += 1
        ran_out = guessed == len(self.guesses)
        if guessed == len(tokens):
            self.guesses = self.guesses[guessed:]
            self.confidences, self.depths = self.confidences[guessed:], self.depths[guessed:]
        elif ran_out and self._dead_at is None:
            self._clear()  # the log has overtaken the line; a later draft that agrees revives it
        else:
            self.dropped += len(self.guesses) - guessed
            self._die(self.length + guessed)
        self.log.extend(tokens)
        return guessed

    def forget(self) -> None:
        """Drop the line, as after a reconnect: what the device had sent may have been lost."""
        self._clear()
        self._dead_at = None

    def _clear(self) -> None:
        self.guesses, self.confidences, self.depths = [], [], []

    def _die(self, at: int) -> None:
        self._clear()
        self._dead_at = at if self._dead_at is None else min(at, self._dead_at)


class Outcome(NamedTuple):
    """What became of one guess: its depth when drawn, how sure the drafter was, and whether the log says the same."""

    depth: int
    confidence: float
    right: bool


class Verdict(NamedTuple):
    """What a commit means for the device's line.

    new: tokens that the log did not have. agreed: how many of them, from the first on, the line had right. outcomes: of
    the guesses that the commit decided, up to and including the first wrong one.
    """

    new: list[int]
    agreed: int
    outcomes: tuple[Outcome, ...]


@dataclass
class DeviceLine:
    """The log as far as the device knows it, and the line it has drawn past it.

    log: prompt and answer as committed. guesses: drafted tokens that follow the log; confidences and depths belong to
    them, a depth being how many guesses stood between it and the log when it was drawn. sent: how many were sent.
    """

    log: list[int]
    guesses: list[int] = field(default_factory=list)
    confidences: list[float] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    sent: int = 0

    @property
    def length(self) -> int:
        """Known committed length."""
        return len(self.log)

    @property
    def end(self) -> int:
        """Position after the last guess: where the next token is drafted."""
        return len(self.log) + len(self.guesses)

    @property
    def unsent(self) -> int:
        """Guesses that the verifier has not been told."""
        return len(self.guesses) - self.sent

    def survival(self) -> float:
        """Estimated probability that every guess on the line is right."""
        product = 1.0
        for confidence in self.confidences:
            product *= confidence
        return product

    def extend(self, token: int, confidence: float) -> None:
        """Draw one more guess."""
        self.depths.append(len(self.guesses))
        self.guesses.append(token)
        self.confidences.append(confidence)

    def flush(self) -> tuple[int, list[int], list[float]]:
        """Start position, tokens and confidences of the unsent guesses, which count as sent from now on."""
        first = self.sent
        self.sent = len(self.guesses)
        return self.length + first, self.guesses[first:], self.confidences[first:]

    def commit(self, start: int, tokens: Sequence[int]) -> Verdict:
        """Take a commit and say what it means for the line.

        The line stands only if it had all new tokens right; else it is erased. Repeated commits are no error. Raises
        LineError for a gap or if the log is said to read differently than before.
        """
        new = news_of(self.log, start, tokens)
        agreed = 0
        while agreed < min(len(new), len(self.guesses)) and new[agreed] == self.guesses[agreed]:
            agreed += 1
        decided = min(len(self.guesses), len(new), agreed + 1)
        outcomes = tuple(Outcome(self.depths[i], self.confidences[i], i < agreed) for i in range(decided))
        self.log.extend(new)
        if agreed == len(new):
            del self.guesses[:agreed], self.confidences[:agreed], self.depths[:agreed]
            self.sent = max(0, self.sent - agreed)
        else:
            self.erase()
        return Verdict(new, agreed, outcomes)

    def erase(self) -> None:
        """Forget the guesses."""
        self.guesses, self.confidences, self.depths, self.sent = [], [], [], 0

    def trim(self, limit: int) -> None:
        """Forget the guesses beyond `limit` past the log: a verifier takes no more."""
        del self.guesses[limit:], self.confidences[limit:], self.depths[limit:]
        self.sent = min(self.sent, limit)

    def unsend(self) -> None:
        """Count all guesses as unsent, as after a reconnect."""
        self.sent = 0
