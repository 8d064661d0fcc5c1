"""What the verifier says, as news for whoever asked. It waits for no drafter."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from outrider.v1 import verifier_pb2 as pb

from edge_client.errors import SessionError
from edge_client.riding.token_texts import texts_of
from speculation.draft_tree import DraftError, news_of


@dataclass
class Ride:
    """What happened so far, for metrics. Times in milliseconds since the ride began."""

    drafted_tokens: int = 0
    accepted_tokens: int = 0
    draft_messages: int = 0
    commits: int = 0
    drafting_ms: float = 0.0
    ttft_ms: float = 0.0
    total_ms: float = 0.0
    notices: list[str] = field(default_factory=list)
    began_s: float = field(default_factory=time.perf_counter)

    def elapsed_ms(self) -> float:
        """Since the ride began."""
        return (time.perf_counter() - self.began_s) * 1e3


@dataclass(frozen=True)
class Progress:
    """New tokens of the answer, and what they add to its text; only at the very end may there be text alone.

    texts[i]: of tokens[i]. drafted[i]: the device had guessed tokens[i] before the verifier said it. corrected[i]: it
    had taken another token for the likeliest. own[i]: the verifier had guessed it by itself.
    """

    text: str
    tokens: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    drafted: list[bool] = field(default_factory=list)
    corrected: list[bool] = field(default_factory=list)
    logprobs: Sequence[pb.TokenLogprobs] = ()
    own: list[bool] = field(default_factory=list)


class CommitReader:
    """Keeps one answer's log. answered: tokens that an earlier session has committed."""

    def __init__(self, ride: Ride, answered: Sequence[int] = ()) -> None:
        self._ride = ride
        self._answer = list(answered)
        self._disproved: Mapping[int, int] | None = None
        self.opened: pb.Opened | None = None

    def commit(self, commit: pb.Commit, guessed: Mapping[int, int]) -> Progress | None:
        """The news of a commit; None if there are none.

        guessed: token by position, of the device's line; another object whenever the line was begun anew. Raises
        SessionError if the verifier contradicts itself.
        """
        if self.opened is None:
            raise SessionError("DATA_LOSS", "LOG_CHANGED", "the verifier told words before it opened the session")
        at, ride = commit.start - self.opened.prompt_length, self._ride
        try:
            new = news_of(self._answer, at, commit.tokens)
        except DraftError as error:
            raise SessionError("DATA_LOSS", "LOG_CHANGED", str(error)) from error
        if not new:
            return None
        if not ride.commits:
            ride.ttft_ms = ride.elapsed_ms()
        ride.commits += 1
        skipped = len(commit.tokens) - len(new)
        drafted, own = (
            [bool(mask >> i & 1) for i in range(skipped, len(commit.tokens))]
            for mask in (commit.drafted_mask, commit.own_mask)
        )
        ride.accepted_tokens += sum(drafted)
        corrected = self._corrected(self.opened.prompt_length + len(self._answer), new, guessed)
        self._answer.extend(new)
        texts = texts_of(commit)[skipped:]
        return Progress("".join(texts), new, texts, drafted, corrected, commit.logprobs[skipped:], own)

    def _corrected(self, position: int, new: Sequence[int], guessed: Mapping[int, int]) -> list[bool]:
        """Which token disproves the line: the first that differs. The guesses that follow it count for nothing."""
        corrected = [False] * len(new)
        if guessed is not self._disproved:
            for i, token in enumerate(new):
                if guessed.get(position + i, token) != token:
                    corrected[i], self._disproved = True, guessed
                    break
        return corrected
