"""Pace: whether to draft one more token, send what there is, or wait.

A pace is asked before every single token, so drafting is interruptible between any two. It sees a snapshot of the line
and of the clock, never the clock itself: the simulator runs the very same code.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import ClassVar, NamedTuple

from speculation.draft_tree import Outcome

PATIENCE_UNLIMITED_MS = 0xFFFFFFFF


class Objective(Enum):
    """What a session is to be good at."""

    LATENCY = "latency"
    BALANCED = "balanced"
    CAPACITY = "capacity"


class Action(Enum):
    """What the device does next."""

    DRAFT = auto()
    FLUSH = auto()
    WAIT = auto()


class View(NamedTuple):  # one before every guess: a dataclass that is frozen takes four times as long to make
    """What a pace may look at. The *tip* is where the next guesses would be drawn: of a line, its end.

    now_ms: the device's clock. known_length: of the log. depth: guesses between the log and the tip. nodes: guesses in
    the tree, of a line as many as its depth. unsent: how many of them were not sent. unsent_age_ms: time since the
    oldest of those was drafted. survival: estimated probability that all guesses up to the tip are right. value: the
    same times the probability of those that are missing up to where guesses begin to count. open_mass, sent_mass: as in
    `DeviceTree`; of a line the probability that all its guesses are right, and that all that were sent are. in_flight:
    whether anything was sent since the last commit. can_draft: whether there is a drafter with room for another token.
    budget: most guesses the verifier wants. branches: whether it takes guesses that branch.
    """

    now_ms: float
    known_length: int
    depth: int
    nodes: int
    unsent: int
    unsent_age_ms: float
    survival: float
    value: float
    open_mass: float
    sent_mass: float
    in_flight: bool
    can_draft: bool
    budget: int
    branches: bool = True

    @property
    def sent(self) -> int:
        """Guesses in the tree that were sent."""
        return self.nodes - self.unsent


@dataclass(frozen=True, slots=True)
class News:
    """What a commit told the device.

    now_ms: the device's clock when it came in. known_length: of the log, after the commit. new_tokens: that the commit
    added. outcomes: of the guesses the commit decided, up to and including the first wrong one. used: guesses that had
    reached the verifier in time and were right. rtt_ms: the round trip it measured, if it measured one, with a draft of
    echoed_bytes (0: not known). own: new tokens that were guesses of the verifier's own.
    forward_ms, queue_ms: of the verifier's latest step for this session. standing: guesses
    that were sent and are still in the tree.
    """

    now_ms: float
    known_length: int
    new_tokens: int
    outcomes: tuple[Outcome, ...]
    used: int
    rtt_ms: float | None
    forward_ms: float
    queue_ms: float
    echoed_bytes: int = 0
    standing: int = 0
    own: int = 0


class Pace(ABC):
    """One session's pace. `patience_ms` is what the session asks of the verifier when it opens.

    `heard` and `drafted` are told what happens; a pace that does not learn leaves them alone. width: most guesses that
    it wants at one place; 1 draws a line.
    """

    name: ClassVar[str]
    objective: Objective = Objective.LATENCY
    patience_ms: int = 0
    width: int = 1

    @property
    def lead_tokens(self) -> float:
        """How far past the log guesses begin to count: see `DeviceTree.tip`."""
        return 0.0

    @property
    def typical(self) -> float:
        """How likely a guess is right that is yet to be drawn."""
        return 1.0

    @abstractmethod
    def next(self, view: View) -> Action:
        """What to do now. After WAIT the pace is asked again when a message has arrived."""

    def heard(self, news: News) -> None:  # noqa: B027 - optional
        """A commit arrived."""

    def judge(self, confidences: Sequence[float], depth: int, survival: float) -> Sequence[float]:
        """Probabilities that guesses of these confidences are right, the likeliest first: of all of them, or of as many
        as are worth sending, at least one. They were drawn at a tip of this depth and survival."""
        return confidences

    def tips(self, values: Sequence[float]) -> int:
        """At how many tips of these values to draw in one evaluation, the best first; at least at the first."""
        return 1

    def drafted(self, draft_ms: float, confidence: float, tips: int = 1) -> None:  # noqa: B027 - optional
        """Guesses were drawn at so many tips: how long it took, feeding included, and how sure the drafter is of the
        first guess at the best of them."""

    def reset(self) -> None:  # noqa: B027 - optional
        """The line was erased for another reason than a commit: the drafter failed."""


class Streaming(Pace):
    """Never draft: plain streaming from the verifier."""

    name = "streaming"

    def next(self, view: View) -> Action:
        return Action.WAIT


class Synchronous(Pace):
    """The textbook round: draft k tokens, send them, wait for the verdict (Leviathan et al., 2211.17192)."""

    name = "sync"
    patience_ms = PATIENCE_UNLIMITED_MS

    def __init__(self, draft_tokens: int) -> None:
        """Raises ValueError if draft_tokens is negative."""
        if draft_tokens < 0:
            raise ValueError(f"a round drafts at least 0 tokens, not {draft_tokens}")
        self.draft_tokens = draft_tokens

    def next(self, view: View) -> Action:
        if view.in_flight:
            return Action.WAIT
        if view.can_draft and view.depth < min(self.draft_tokens, view.budget):
            return Action.DRAFT
        return Action.FLUSH  # an empty flush asks the waiting verifier for a token of its own


class BoundedLookahead(Pace):
    """Ride ahead of a verifier that never waits, up to a depth and while the line is likely enough to survive.

    Guesses are sent in small blocks: a message costs about as much as drafting a token of a tiny model, while a guess
    that waits longer than a fraction of a server step may come too late to count.
    """

    name = "server-led"

    def __init__(
        self, max_depth: int = 32, min_survival: float = 0.02, block_tokens: int = 8, block_age_ms: float = 4.0
    ) -> None:
        self.max_depth, self.min_survival = max_depth, min_survival
        self.block_tokens, self.block_age_ms = block_tokens, block_age_ms

    def next(self, view: View) -> Action:
        wanted = view.can_draft and view.depth < min(self.max_depth, view.budget) and view.survival >= self.min_survival
        if view.unsent and (not wanted or view.unsent >= self.block_tokens or view.unsent_age_ms >= self.block_age_ms):
            return Action.FLUSH
        return Action.DRAFT if wanted else Action.WAIT


class FixedTree(BoundedLookahead):
    """Ride ahead of a verifier that never waits, with so many guesses at every place, the likeliest path first."""

    name = "tree"

    def __init__(self, width: int, max_depth: int = 32, max_nodes: int = 128) -> None:
        """Raises ValueError unless width is at least 1."""
        if width < 1:
            raise ValueError(f"a tree has a width of at least 1 guess, not {width}")
        super().__init__(max_depth)
        self.width, self._max_nodes = width, max_nodes

    def next(self, view: View) -> Action:
        action = super().next(view)
        if action is Action.DRAFT and view.nodes >= min(self._max_nodes, view.budget):
            return Action.FLUSH if view.unsent else Action.WAIT
        return action

    def tips(self, values: Sequence[float]) -> int:
        return len(values)


class FixedLookahead(BoundedLookahead):
    """Ride ahead of a verifier that never waits, always to the same depth."""

    name = "fixed"

    def __init__(self, depth: int, patience_ms: int = 0, block_tokens: int = 4) -> None:
        """Raises ValueError unless depth is at least 1."""
        if depth < 1:
            raise ValueError(f"a lookahead has a depth of at least 1 token, not {depth}")
        super().__init__(depth, min_survival=0.0, block_tokens=min(block_tokens, depth))
        self.patience_ms = patience_ms


class Pipelined(BoundedLookahead):
    """Led by the device, with blocks in flight one after another: no pause for a verdict (DSI, 2405.14105)."""

    name = "pipelined"
    patience_ms = PATIENCE_UNLIMITED_MS

    def __init__(self, depth: int = 32, block_tokens: int = 4) -> None:
        """Raises ValueError unless depth is at least 1."""
        if depth < 1:
            raise ValueError(f"a lookahead has a depth of at least 1 token, not {depth}")
        super().__init__(depth, min_survival=0.0, block_tokens=min(block_tokens, depth), block_age_ms=float("inf"))

    def next(self, view: View) -> Action:
        action = super().next(view)
        if action is Action.WAIT and not view.depth and not view.in_flight:
            return Action.FLUSH  # nothing to guess with: ask for a token, or wait for ever
        return action
