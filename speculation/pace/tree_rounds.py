"""Rounds of trees, as others draw them: draw one, send it, wait for the verdict on it.

The candidates at a place are the drafter's best under the shared noise, which are draws from its distribution without
replacement. So one target evaluation follows the tree as far as it is right, and no rule of acceptance is needed.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from speculation.pace.base import PATIENCE_UNLIMITED_MS, Action, Pace, View

SPECINFER = (1, 1, 3, 1, 1, 1, 1, 1)
_LAST = 1e-9  # of its probability: what a leaf counts for, so that every other tip is drawn first


class TreeRounds(Pace):
    """A round: draw where a guess is likeliest to be right while `more` says so, send, wait."""

    patience_ms = PATIENCE_UNLIMITED_MS

    def next(self, view: View) -> Action:
        if view.in_flight:
            return Action.WAIT
        if view.can_draft and view.nodes < view.budget and self.more(view):
            return Action.DRAFT
        return Action.FLUSH  # an empty one asks the waiting verifier for a token of its own

    def tips(self, values: Sequence[float]) -> int:
        return len(values)  # a layer at once, as far as the drafter can

    @abstractmethod
    def more(self, view: View) -> bool:
        """Whether to draw at the best tip before the tree is sent."""


class FixedShape(TreeRounds):
    """So many candidates at each depth, whatever the drafter says of them: multi-candidate drafts.

    SpecInfer (2305.09781) calls it the expansion configuration; MCSD (2401.06706) and TSLT-MC (2512.16273) draw such
    trees without replacement.
    """

    name = "multi-candidate"

    def __init__(self, widths: Sequence[int] = SPECINFER) -> None:
        """widths: of each depth. Raises ValueError unless all are at least 1 and there is one."""
        if not widths or min(widths) < 1:
            raise ValueError(f"a tree has at least one guess at every depth, not {list(widths)}")
        self._widths, self.width = tuple(widths), max(widths)

    def more(self, view: View) -> bool:
        return view.depth < len(self._widths)

    def judge(self, confidences: Sequence[float], depth: int, survival: float) -> Sequence[float]:
        depths = len(self._widths)
        share = _LAST if depth >= depths - 1 else 1.0
        return [confidence * share for confidence in confidences[: self._widths[min(depth, depths - 1)]]]


class BestFirst(TreeRounds):
    """The likeliest guesses, as many as a node budget has: OPT-Tree (2406.17276).

    Of all trees of so many nodes it has the most guesses that are right, as the drafter's confidence has it. DDTree
    (2604.12989) fills its budget by the same order from a drafter that draws a block at once. Both choose the nodes
    after they were drawn; here a guess whose path is less likely than `least` does not come into the tree.
    """

    name = "opt-tree"

    def __init__(self, nodes: int, least: float = 0.03, width: int = 4) -> None:
        """Raises ValueError unless there is a node."""
        if nodes < 1:
            raise ValueError(f"a tree has at least 1 node, not {nodes}")
        self._nodes, self._least, self.width = nodes, least, width

    def more(self, view: View) -> bool:
        return view.nodes < self._nodes and (not view.nodes or view.survival >= self._least)

    def judge(self, confidences: Sequence[float], depth: int, survival: float) -> Sequence[float]:
        likely = [confidence for confidence in confidences if survival * confidence >= self._least]
        return likely or confidences[:1]
