"""A session: one answer in the making. State, and the rules by which a step's result becomes log; no I/O, no engine."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import takewhile

from cloud_verifier.engines.base import Choices, Logprobs, Sampler, SequenceId
from cloud_verifier.errors import VerifierError
from cloud_verifier.guessing.base import Guesser
from cloud_verifier.scheduling.draft_budget import DraftBudget
from cloud_verifier.scheduling.patience import Patience
from speculation.acceptance import Rule, shared_noise
from speculation.answer_text import AnswerText
from speculation.draft_tree import UNSAID_CONFIDENCE, Outcome
from speculation.pace.base import PATIENCE_UNLIMITED_MS
from speculation.pace.estimators import Calibration
from speculation.verifier_tree import Node, Picked, VerifierTree

UNKNOWN_LOGPROBS = Logprobs(math.nan, (), ())
LEAST_SURVIVAL = 0.01  # of a guess among others that branch
KEPT_TOKENS = 4096  # how far back a device that resumes may have to be told again


class FinishReason(Enum):
    """Why an answer ended."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"


@dataclass
class Statistics:
    """What a session cost and gained; the fields are those of `SessionStatistics` in the contract."""

    verified_tokens: int = 0
    accepted_tokens: int = 0
    target_forwards: int = 0
    fills: int = 0
    forward_us: int = 0
    resumes: int = 0
    trimmed_tokens: int = 0
    waited_us: int = 0
    slowed_messages: int = 0
    own_verified_tokens: int = 0
    own_accepted_tokens: int = 0


@dataclass
class Echo:
    """The device's latest clock reading, and when it came (seconds, monotonic)."""

    sent_at_us: int = 0
    received_s: float = 0.0


@dataclass
class LastStep:
    """How the session's latest engine step went."""

    queue_us: int = 0
    forward_us: int = 0
    batch_size: int = 0


@dataclass(eq=False)
class Session:
    """One answer.

    owner: name of the principal that opened it. line holds the log and what the device guesses past it; max_lookahead,
    max_nodes: how far past it and how many. drafted[i], own[i], logprobs[i] and text.pieces[i] belong
    to answer token i: whether a guess of the device's or of the verifier's own said it first. guesser: where those come
    from. cached: tokens that the engine holds; sequence is None before the first step and after the last.
    sent: log length that went out on the present stream. attachment counts streams, so that an old stream notices that
    a new one took over. half_closed: the present stream will bring no more drafts, so there is nothing to be patient
    for. cut_short: part of the line was dropped, as past the lookahead, and the device takes it for sent and may
    wait. detached_s: when its last stream left. ready_since_s: when its latest step ended; work_since_s: since when it
    has something to do that needs no patience. calibration: what this device's confidence is worth, by what the log
    said in the end; own_calibration: what the guesser's is worth.
    priority: higher goes first. has_written: it has written something since it got its sequence.
    evicted: it then lost that to another; its log is read again once it has something to do. found: tokens of the
    prompt that the engine had when the session first got its sequence. prompt_fingerprint: as in the contract.
    """

    session_id: str
    sampler: Sampler
    line: VerifierTree
    text: AnswerText
    stop_ids: frozenset[int]
    max_length: int
    max_lookahead: int
    patience: Patience
    ready_since_s: float
    rule: Rule = shared_noise
    owner: str = ""
    want_text: bool = False
    prompt_fingerprint: int = 0
    max_nodes: int = 0
    priority: int = 0
    has_written: bool = False
    evicted: bool = False
    sequence: SequenceId | None = None
    cached: int = 0
    found: int | None = None
    drafted: list[bool] = field(default_factory=list)
    own: list[bool] = field(default_factory=list)
    guesser: Guesser | None = None
    logprobs: list[Logprobs] = field(default_factory=list)
    token_requested: bool = False
    cut_short: bool = False
    finish: FinishReason | None = None
    error: VerifierError | None = None
    sent: int = 0
    attachment: int = 0
    attached: bool = True
    half_closed: bool = False
    detached_s: float = 0.0
    echo: Echo = field(default_factory=Echo)
    last_step: LastStep = field(default_factory=LastStep)
    statistics: Statistics = field(default_factory=Statistics)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    calibration: Calibration = field(default_factory=Calibration)
    own_calibration: Calibration = field(default_factory=Calibration)
    draft_budget: DraftBudget = field(init=False)
    work_since_s: float = field(init=False)
    arrived_s: float = field(init=False)
    _gone: int = 0

    def __post_init__(self) -> None:
        """A session starts with all it may have."""
        self.draft_budget = DraftBudget(self.max_lookahead)
        self.work_since_s = self.arrived_s = self.ready_since_s

    @property
    def prompt_length(self) -> int:
        """Position of the first answered token."""
        return self.sampler.prompt_length

    @property
    def over(self) -> bool:
        """Whether nothing more will be written."""
        return self.finish is not None or self.error is not None

    @property
    def answer(self) -> list[int]:
        """Answer tokens."""
        return self.line.log[self.prompt_length :]

    @property
    def reading(self) -> bool:
        """Whether part of the prompt (or of what the answer continues from) is still to be evaluated."""
        length = self.line.length
        return length - self.cached > 1 or length == self.sampler.prompt_length

    @property
    def oldest(self) -> int:
        """Length of the log from which it can be told again."""
        return self.prompt_length + self._gone

    def drop_sent_text(self) -> None:
        """Drop the text and log-probabilities of tokens that went out long ago; the tokens stay."""
        gone = max(self._gone, self.sent - self.prompt_length - KEPT_TOKENS)
        for index in range(self._gone, gone):
            self.text.pieces[index] = ""
            if self.logprobs:
                self.logprobs[index] = UNKNOWN_LOGPROBS
        self._gone = gone

    def due_s(self, unread_tokens: int) -> float | None:
        """Since or from when this session may take part in a step (seconds, monotonic); None if only a message can
        change that.

        A session that nobody reads writes on for a while, so that a device that was away finds its words ready.
        """
        if self.over or self.line.length - self.sent >= unread_tokens:
            return None
        if (self.reading and not self.evicted) or self.half_closed or self.cut_short:
            return self.ready_since_s
        patience_ms = self.patience.ms
        due_s = math.inf if patience_ms == PATIENCE_UNLIMITED_MS else self.ready_since_s + patience_ms / 1000
        if self.line.nodes or self.token_requested:
            due_s = min(due_s, self.work_since_s)
        return None if due_s == math.inf else due_s

    def silent_s(self, unread_tokens: int, now_s: float) -> float:
        """For how long it has waited for its device, to draft or to read; 0 while it has something to do."""
        due_s = self.due_s(unread_tokens)
        waits = not self.over and (due_s is None or due_s > now_s)
        return now_s - self.ready_since_s if waits else 0.0

    def draft(
        self,
        start: int,
        tokens: Sequence[int],
        known_length: int,
        confidences: Sequence[float],
        now_s: float,
        *,
        parents: Sequence[int] = (),
        asks: bool = True,
    ) -> None:
        """Take a draft. asks: whether one without tokens asks for a token of the verifier's own. Guesses past the
        lookahead are dropped.

        Raises DraftError if it claims to know what is not written yet.
        """
        idle = not (self.line.nodes or self.token_requested)
        if parents:
            self.draft_budget.allow(self.max_nodes)
        most = max(self.max_nodes, self.max_lookahead)
        self.line.draft(start, tokens, known_length, self.max_lookahead, confidences, parents, most)
        if tokens:
            self.cut_short = self.line.gaps
            self.draft_budget.heard(self.line.length - known_length)
            self.patience.turnaround.came(known_length, now_s * 1e3)
        elif asks and known_length == self.line.length:
            self.token_requested = True
        if idle:
            self.work_since_s = now_s

    @property
    def reach(self) -> int:
        """Positions past the log whose guesses are worth evaluating: never past the end of the answer."""
        return self.max_length - self.line.length - 1

    @property
    def guesses(self) -> int:
        """How many guesses there are within reach."""
        return self.line.within(self.reach)

    def survivals(self) -> list[float]:
        """Of each guess within reach the probability that it and all before it are right, the greatest first."""
        return [survival for survival, _ in self._ranked()]

    def pick(self, room: int, *, trees: bool) -> Picked:
        """Guesses for a step that has room for so many. trees: whether they may branch."""
        line, reach = self.line, self.reach
        if not line.forked and self.guesses <= room:
            return line.pick(None, reach)
        ranked = self._ranked()
        if not trees:
            return line.pick(_likeliest_path([node for _, node in ranked])[:room], reach)
        # A branch costs a piece of attention of its own: what hardly ever counts is left out even where there is room.
        return line.pick([node for survival, node in ranked[:room] if survival >= LEAST_SURVIVAL], reach)

    def _ranked(self) -> list[tuple[float, Node]]:
        return self.line.survivals(self.probability, self.reach)

    def probability(self, node: Node) -> float:
        """Of a guess of the device's being right, if all before it are."""
        return self.calibration.probability(node.confidence, node.depth, node.rank)

    def own_probability(self, place: int, confidence: float = UNSAID_CONFIDENCE, *, beside: bool = False) -> float:
        """Of the verifier's own guess at this place of its line being right, if all before it are.

        beside: the device has guesses there, too, of which none is right.
        """
        return self.own_calibration.probability(confidence, place, int(beside))

    def replay(self, tokens: Sequence[int]) -> None:
        """Take over answer tokens from an earlier life of the session (`continue_from`)."""
        written, _ = self._write(tokens)
        if self.sampler.params.logprobs is not None:
            self.logprobs += [UNKNOWN_LOGPROBS] * written  # known to the device from that life

    def take(self, picked: Picked, choices: Choices) -> list[int]:
        """Turn a step's choices into log. picked: the evaluated guesses, len(choices.tokens) - 1.

        Returns the guesses that the log took, as a path of indices: what the engine is to keep.
        """
        path = self.rule(picked.tokens, choices.tokens, picked.parents)
        rows = [0, *(guess + 1 for guess in path)]
        tokens = [choices.tokens[row] for row in rows]
        logprobs = [choices.logprobs[row] for row in rows] if choices.logprobs else []
        written = self._took(picked, path, tokens, logprobs)
        self._learn_own(picked, path)
        # The log's last token is evaluated with the next step.
        return path[: written - 1]

    def commit(self, picked: Picked, tokens: Sequence[int], logprobs: Sequence[Logprobs]) -> None:
        """Write what an engine wrote that decides itself which guesses are right. picked: a line, all of it checked."""
        right = takewhile(lambda pair: pair[0] == pair[1], zip(picked.tokens, tokens, strict=False))
        path = range(len(list(right)))
        self._took(picked, path, tokens, logprobs)
        self._learn_own(picked, path)

    def _took(self, picked: Picked, path: Sequence[int], tokens: Sequence[int], logprobs: Sequence[Logprobs]) -> int:
        """The target chose these tokens, the first ones as the guesses of `path` say. Returns how many were written."""
        self.token_requested, self.has_written = False, True
        own = picked.own
        written, right = self._write(tokens, [guess not in own for guess in path], [guess in own for guess in path])
        self.logprobs += logprobs[:written]
        self.patience.wrote(written, right)
        stats = self.statistics
        stats.target_forwards += 1
        stats.verified_tokens += len(picked.nodes) - len(own)
        stats.own_verified_tokens += len(own)
        taken_own = sum(guess in own for guess in path[:written])
        stats.accepted_tokens += min(len(path), written) - taken_own
        stats.own_accepted_tokens += taken_own
        stats.fills += not picked.nodes
        return written

    def _learn_own(self, picked: Picked, path: Sequence[int]) -> None:
        """What became of the verifier's own guesses at the places that the log reached. One beside a guess of the
        device's that is right says nothing."""
        if not picked.own:
            return
        reached = {picked.parent(index): index for index in path}
        for index in sorted(picked.own):
            place, node = picked.parent(index), picked.nodes[index]
            if place != -1 and place not in path:
                continue
            right = reached.get(place) == index
            if right or not node.rank or place not in reached:
                self.own_calibration.learn(Outcome(node.depth, node.confidence, right, node.rank))

    def _write(self, tokens: Sequence[int], drafted: Sequence[bool] = (), own: Sequence[bool] = ()) -> tuple[int, int]:
        """Write tokens up to where the answer ends. drafted, own: of the first ones, which are checked guesses, whether
        they were the device's or the verifier's.

        Returns how many were written, and how many of them, from the first on, the line had right, checked or not.
        """
        line, written = self.line, 0
        left = self.max_length - line.length
        for token in tokens:
            written += 1
            if self.text.push(token) or token in self.stop_ids:
                self.finish = FinishReason.STOP
                break
            if written >= left:
                self.finish = FinishReason.LENGTH
                break
        right = line.commit(tokens[:written], self.calibration.learn)
        for writers, said in ((self.drafted, drafted), (self.own, own)):
            writers += [*said[:written], *[False] * (written - len(said))]
        return written, right


def _likeliest_path(ranked: Sequence[Node]) -> list[Node]:
    """Of guesses that branch, the likeliest first: one line of them."""
    path: list[Node] = []
    for node in ranked:
        if not path or node.parent is path[-1]:
            path.append(node)
    return path
