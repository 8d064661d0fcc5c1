"""The device's side: `edge_client.riding.riding_loop`, with a described pair in the place of a drafter.

The order of things is the real loop's: before every action the inbox is emptied; a commit reaches the line first and
then the pace; a draft cannot be interrupted within a token; guesses count from when they are drawn.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

from simpy import Environment, Event

from netlab.simulator.clock import Bell
from netlab.simulator.messages import Commit, Draft
from netlab.simulator.pair import Answer
from speculation.line import DeviceLine
from speculation.pace.base import Action, News, Pace, View
from speculation.pace.piece_size import PieceSize

IDLE_FLUSHES = 1000  # more of these in a row without a moment passing, and the pace hangs


class PaceError(RuntimeError):
    """A pace that can never end an answer. The message says what it does."""


@dataclass(frozen=True)
class DeviceSettings:
    """How fast a device is.

    draft_ms: to draw one guess; a function of the time if it changes (throttling). feed_ms: to read one more token, of
    a prompt or of what the verifier wrote; the last token before a guess is part of draft_ms. draft_ms must be positive
    unless the link is slow: a device that drafts in no time has guessed everything at once.
    """

    draft_ms: float | Callable[[float], float] = 5.0
    feed_ms: float = 0.0

    def drafting_ms(self, now_ms: float) -> float:
        """To draw one guess now."""
        return self.draft_ms if isinstance(self.draft_ms, int | float) else self.draft_ms(now_ms)


class Device:
    """One session's device; `run` is its SimPy process. Counters are those of `commit_reader.Ride`."""

    def __init__(
        self,
        env: Environment,
        answer: Answer,
        truth: Sequence[int],
        pace: Pace,
        settings: DeviceSettings,
        send: Callable[[Draft], object],
    ) -> None:
        """truth[i]: the target's token at answer position i, as far as the answer's hits reach."""
        self.line = DeviceLine([])
        self.drafted_tokens = self.draft_messages = self.accepted_tokens = self.commits = 0
        self.arrived_ms: list[float] = []  # when each token of the answer did
        self._env, self._pace, self._settings, self._send = env, pace, settings, send
        self._hits, self._confidences, self._truth = answer.hits, answer.confidences, truth
        self._inbox: deque[tuple[Commit, float, float | None]] = deque()
        self._bell = Bell(env)
        self._prompt_length = 0
        self._held = 0  # tokens that the drafter has read
        self._piece = PieceSize()
        self._on_path = True  # whether all guesses on the line are right
        self._in_flight = False
        self._told_patience_ms = pace.patience_ms
        self._unsent_since_ms = 0.0
        self._rtt_ms: float | None = None
        self._draft_bytes: dict[float, int] = {}
        self._budget = 0

    def hear(self, commit: Commit) -> None:
        """A commit has arrived."""
        if commit.echo_sent_at_ms is not None:
            self._rtt_ms = self._env.now - commit.echo_sent_at_ms - commit.hold_ms
        self._inbox.append((commit, self._env.now, self._rtt_ms))
        self._bell.ring()

    def run(self, prompt: Sequence[int], budget: int) -> Generator[Event, None, None]:
        """Ride until the answer is complete, from the moment the session is open."""
        self.line.log = list(prompt)
        self._prompt_length, self._budget = len(prompt), budget
        env, pace, inbox = self._env, self._pace, self._inbox
        idle_flushes = 0
        while True:
            while inbox:
                if self._commit(*inbox.popleft()):
                    return
            action = pace.next(self._view())
            changed = pace.patience_ms != self._told_patience_ms
            if action is Action.DRAFT and pace.patience_ms <= self._told_patience_ms:
                idle_flushes = 0
                lacking = self.line.end - self._held
                if lacking > (piece := self._piece.tokens):
                    self._held += piece
                    piece_ms = piece * self._settings.feed_ms
                    yield env.timeout(piece_ms)
                    self._piece.read(piece, piece_ms)
                    continue
                self._held += lacking
                draft_ms = self._settings.drafting_ms(env.now) + (lacking - 1) * self._settings.feed_ms
                yield env.timeout(draft_ms)
                self._guess(draft_ms)
            elif action is Action.FLUSH or changed:
                idle_flushes += not (self.line.unsent or changed)
                if idle_flushes > IDLE_FLUSHES:
                    raise PaceError(f"the pace {pace.name!r} sends empty drafts without end")
                self._flush()
            else:
                idle_flushes = 0
                yield self._bell.wait()

    def _view(self) -> View:
        line, now_ms = self.line, self._env.now
        unsent = line.unsent
        return View(
            now_ms=now_ms,
            known_length=line.length,
            depth=len(line.guesses),
            unsent=unsent,
            unsent_age_ms=now_ms - self._unsent_since_ms if unsent else 0.0,
            survival=line.survival(),
            in_flight=self._in_flight,
            can_draft=line.end - self._prompt_length < len(self._hits),
            budget=self._budget,
        )

    def _guess(self, draft_ms: float) -> None:
        line = self.line
        index = line.end - self._prompt_length
        right = self._on_path and self._hits[index]
        self._on_path = right
        if not line.unsent:
            self._unsent_since_ms = self._env.now
        confidence = self._confidences[index]
        # Token ids of the truth are even: its neighbour is never right.
        line.extend(self._truth[index] if right else self._truth[index] + 1, confidence)
        self._pace.drafted(draft_ms, confidence)
        self.drafted_tokens += 1

    def _flush(self) -> None:
        start, tokens, confidences = self.line.flush()
        patience_ms = self._pace.patience_ms
        changed = patience_ms != self._told_patience_ms
        self._told_patience_ms = patience_ms
        self._in_flight |= bool(tokens) or not changed
        self.draft_messages += 1
        now_ms, known = self._env.now, self.line.length
        draft = Draft(start, tokens, known, now_ms, patience_ms if changed else None, _on_the_wire(confidences))
        self._draft_bytes[now_ms] = draft.size_bytes
        self._send(draft)

    def _commit(self, commit: Commit, came_ms: float, rtt_ms: float | None) -> bool:
        """Take a commit that came in at came_ms, maybe while a guess was drawn; returns whether it was the last."""
        line, known = self.line, self.line.length
        new, agreed, outcomes = line.commit(commit.start, commit.tokens)
        self._held = min(self._held, known + agreed)
        if not line.guesses:
            self._on_path = True
        self._in_flight = False
        self._budget = commit.budget
        self.arrived_ms += [self._env.now] * len(new)
        self.commits += 1
        self.accepted_tokens += commit.drafted
        self._pace.heard(
            News(
                now_ms=came_ms,
                known_length=line.length,
                new_tokens=len(new),
                outcomes=outcomes,
                used=commit.drafted,
                rtt_ms=rtt_ms,
                forward_ms=commit.forward_ms,
                queue_ms=commit.queue_ms,
                echoed_bytes=self._draft_bytes.get(commit.echo_sent_at_ms or 0.0, 0),
            )
        )
        echoed_ms = commit.echo_sent_at_ms or 0.0
        self._draft_bytes = {at: size for at, size in self._draft_bytes.items() if at >= echoed_ms}
        return commit.finished


def _on_the_wire(confidences: Sequence[float]) -> list[float]:
    """A byte each."""
    return [min(255, round(confidence * 255)) / 255 for confidence in confidences]
