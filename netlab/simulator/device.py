"""The device's side: `edge_client.riding.riding_loop`, with a described pair in the place of a drafter.

The order of things is the real loop's: before every action the inbox is emptied; a commit reaches the line first and
then the pace; a draft cannot be interrupted within a token; guesses count from when they are drawn.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

from simpy import Environment, Event

from edge_client.drafters.base import MOST_PATH_TOKENS
from netlab.simulator.clock import Bell
from netlab.simulator.messages import Commit, Draft
from netlab.simulator.pair import Answer
from speculation.device_tree import DeviceTree, Node
from speculation.pace.base import Action, News, Pace, View
from speculation.pace.piece_size import PieceSize

IDLE_FLUSHES = 1000  # more of these in a row without a moment passing, and the pace hangs


class PaceError(RuntimeError):
    """A pace that can never end an answer. The message says what it does."""


@dataclass(frozen=True)
class DeviceSettings:
    """How fast a device is.

    draft_ms: to draw one guess; a function of the time if it changes (throttling). feed_ms: to read one more token, of
    a prompt, of what the verifier wrote or of another branch; the last token before a guess is part of draft_ms.
    most_tips, tip_ms: at so many tips in one evaluation, and what each more of them takes; such a drafter need not read
    a branch again that it has left. width: most guesses at one place, whatever the pace wants. draft_ms must be
    positive unless the link is slow: a device that drafts in no time has guessed everything at once.
    """

    draft_ms: float | Callable[[float], float] = 5.0
    feed_ms: float = 0.0
    width: int = 4
    tip_ms: float = 0.0
    most_tips: int = 1

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
        self.line = DeviceTree([])
        self.drafted_tokens = self.draft_messages = self.accepted_tokens = self.commits = 0
        self.arrived_ms: list[float] = []  # when each token of the answer did
        self._env, self._pace, self._settings, self._send = env, pace, settings, send
        self._answer, self._truth = answer, truth
        self._width = min(pace.width, settings.width) if answer.ranks else 1
        self._inbox: deque[tuple[Commit, float, float | None]] = deque()
        self._bell = Bell(env)
        self._prompt_length = 0
        self._held = 0  # tokens of the log that the drafter has read
        self._read: set[Node] = set()  # and the guesses after them
        self._piece = PieceSize()
        self._right: dict[int, Node] = {}  # by position: guesses that are right, and so is all that they hang on
        self._in_flight = False
        self._told_patience_ms = pace.patience_ms
        self._unsent_since_ms = 0.0
        self._rtt_ms: float | None = None
        self._draft_bytes: dict[float, int] = {}
        self._budget = self._max_lookahead = 0

    def hear(self, commit: Commit) -> None:
        """A commit has arrived."""
        if commit.echo_sent_at_ms is not None:
            self._rtt_ms = self._env.now - commit.echo_sent_at_ms - commit.hold_ms
        self._inbox.append((commit, self._env.now, self._rtt_ms))
        self._bell.ring()

    def run(self, prompt: Sequence[int], max_lookahead: int) -> Generator[Event, None, None]:
        """Ride until the answer is complete, from the moment the session is open."""
        self.line.log = list(prompt)
        self.line.erase()
        self._prompt_length, self._budget = len(prompt), max_lookahead
        self._max_lookahead = max_lookahead
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
                tip = self.line.tip
                assert tip is not None  # or else it could not draft
                if self._lacking(tip) > (piece := self._piece.tokens):
                    self._read_on(piece, tip)
                    piece_ms = piece * self._settings.feed_ms
                    yield env.timeout(piece_ms)
                    self._piece.read(piece, piece_ms)
                    continue
                tips = [tip, *self._others(tip)]
                settings = self._settings
                draft_ms = settings.drafting_ms(env.now) + (len(tips) - 1) * settings.tip_ms
                for at in tips:
                    lacking = self._lacking(at)
                    draft_ms += max(0, lacking - 1) * settings.feed_ms
                    self._read_on(lacking, at)
                yield env.timeout(draft_ms)
                for at in reversed(tips):  # the first is drawn on: the latest
                    confidence = self._guess(at)
                pace.drafted(draft_ms, confidence, len(tips))
            elif action is Action.FLUSH or changed:
                idle_flushes += not (self.line.unsent or changed)
                if idle_flushes > IDLE_FLUSHES:
                    raise PaceError(f"the pace {pace.name!r} sends empty drafts without end")
                self._flush()
            else:
                idle_flushes = 0
                yield self._bell.wait()

    def _others(self, tip: Node) -> list[Node]:
        """Tips to draw at in the same evaluation, as in the riding loop."""
        line, pace, settings = self.line, self._pace, self._settings
        most = min(settings.most_tips, 1 + (self._budget - line.nodes) // self._width)
        if most < 2 or self._width == 1:
            return []
        end = self._prompt_length + len(self._answer.hits) - 1
        farthest = min(end, line.length + min(self._max_lookahead - 1, MOST_PATH_TOKENS))
        others = [other for other in line.tips(most)[1:] if other.position < farthest]
        return others[: pace.tips([line.value(tip), *map(line.value, others)]) - 1] if others else []

    def _unread(self, tip: Node) -> list[Node]:
        """The guesses on the way to a tip that the drafter has not read, the last first."""
        unread: list[Node] = []
        node: Node | None = tip
        while node is not None and node.parent is not None and node not in self._read:
            unread.append(node)
            node = node.parent
        return unread

    def _lacking(self, tip: Node) -> int:
        """Tokens to read before guesses can be drawn at a tip: at least its last one."""
        return max(1, self.line.length - self._held + len(self._unread(tip)))

    def _read_on(self, tokens: int, tip: Node) -> None:
        """Read so many tokens of the log and of the path to a tip after it."""
        of_log = min(tokens, self.line.length - self._held)
        self._held += of_log
        unread = self._unread(tip)
        if self._settings.most_tips == 1:  # what is held of another branch goes
            self._read.clear()
            node = unread[-1].parent if unread else tip
            while node is not None and node.parent is not None:
                self._read.add(node)
                node = node.parent
        self._read.update(unread[len(unread) - (tokens - of_log) :] if tokens > of_log else ())

    def _view(self) -> View:
        line, now_ms = self.line, self._env.now
        line.lead, line.typical = self._pace.lead_tokens, self._pace.typical
        tip = line.tip
        depth = 0 if tip is None else line.depth(tip)
        return View(
            now_ms=now_ms,
            known_length=line.length,
            depth=depth,
            nodes=line.nodes,
            unsent=line.unsent,
            unsent_age_ms=now_ms - self._unsent_since_ms if line.unsent else 0.0,
            survival=0.0 if tip is None else line.survival(tip),
            value=0.0 if tip is None else line.value(tip),
            open_mass=line.open_mass,
            sent_mass=line.sent_mass,
            in_flight=self._in_flight,
            can_draft=tip is not None
            and depth < self._max_lookahead
            and line.length + depth - self._prompt_length < len(self._answer.hits),
            budget=self._budget,
            branches=self._width > 1,
        )

    def _guess(self, tip: Node) -> float:
        """Draw at a tip; how sure the drafter is of its first guess there."""
        line, answer = self.line, self._answer
        depth = line.depth(tip)
        index = line.length + depth - self._prompt_length
        if not line.unsent:
            self._unsent_since_ms = self._env.now
        confidences = [answer.confidences[index]]
        if self._width > 1:
            confidences += answer.others[index][: self._width - 1]
        probabilities = self._pace.judge(confidences, depth, line.survival(tip))
        right = -1
        if not depth or self._right.get(tip.position) is tip:
            right = answer.ranks[index] if answer.ranks else answer.hits[index] - 1
        # Token ids of the truth are even: its neighbours are never right.
        truth = self._truth[index]
        tokens = [truth if rank == right else truth + 1 + 2 * rank for rank in range(len(probabilities))]
        line.grow(tip, tokens, confidences[: len(tokens)], probabilities)
        assert tip.children is not None
        if 0 <= right < len(tokens):
            self._right[tip.position + 1] = tip.children[right]
        self.drafted_tokens += len(tokens)
        return confidences[0]

    def _flush(self) -> None:
        start, tokens, confidences, parents = self.line.flush()
        patience_ms = self._pace.patience_ms
        changed = patience_ms != self._told_patience_ms
        self._told_patience_ms = patience_ms
        self._in_flight |= bool(tokens) or not changed
        self.draft_messages += 1
        now_ms, known = self._env.now, self.line.length
        draft = Draft(
            start, tokens, known, now_ms, patience_ms if changed else None, _on_the_wire(confidences), parents
        )
        self._draft_bytes[now_ms] = draft.size_bytes
        self._send(draft)

    def _commit(self, commit: Commit, came_ms: float, rtt_ms: float | None) -> bool:
        """Take a commit that came in at came_ms, maybe while a guess was drawn; returns whether it was the last."""
        line, known = self.line, self.line.length
        new, agreed, outcomes = line.commit(commit.start, commit.tokens)
        held = 0
        while held < agreed and self._right[known + held] in self._read:
            held += 1
        self._held = min(self._held, known) + held
        if agreed < len(new):
            self._read.clear()
            self._right.clear()
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
                standing=line.sent,
            )
        )
        echoed_ms = commit.echo_sent_at_ms or 0.0
        self._draft_bytes = {at: size for at, size in self._draft_bytes.items() if at >= echoed_ms}
        return commit.finished


def _on_the_wire(confidences: Sequence[float]) -> list[float]:
    """A byte each."""
    return [min(255, round(confidence * 255)) / 255 for confidence in confidences]
