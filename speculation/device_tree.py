"""The draft tree as the device keeps it.

A *tip* is a place where guesses may be drawn next: the end of the log or of any path whose next guesses were not drawn
yet. What a drafter says at a tip gives it children, one for each candidate that is worth a guess. The best tip is the
one that will most likely count; of a tree without forks there is one tip only, its end.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from speculation.draft_tree import Outcome, news_of


class Node:
    """One guess. confidence: what the drafter says of it. probability: of its being right, if all before it are;
    survival: of that and of those being so, too, as estimated when it was drawn. depth: how many guesses stood between
    it and the log then. serial: its number among those that went out on the present stream, None until it is sent.
    children: None until they are drawn."""

    __slots__ = (
        "children",
        "confidence",
        "depth",
        "parent",
        "position",
        "probability",
        "rank",
        "serial",
        "survival",
        "token",
    )

    def __init__(
        self, token: int, confidence: float, probability: float, depth: int, rank: int, parent: Node | None
    ) -> None:
        self.token, self.confidence, self.probability = token, confidence, probability
        self.depth, self.rank, self.parent = depth, rank, parent
        self.position, self.survival = 0, probability
        if parent is not None:
            self.position, self.survival = parent.position + 1, probability * parent.survival
        self.serial: int | None = None
        self.children: list[Node] | None = None


class Flushed(NamedTuple):
    """A draft as the contract has it: see `Draft`. parents is empty for one that goes on with the line sent before."""

    start: int
    tokens: list[int]
    confidences: list[float]
    parents: list[int]


class Verdict(NamedTuple):
    """What a commit means for the device's tree.

    new: tokens that the log did not have. agreed: how many of them, from the first on, the tree had. outcomes: of the
    guesses that the commit decided: those at each position up to and including the first that has no right one.
    """

    new: list[int]
    agreed: int
    outcomes: tuple[Outcome, ...]


@dataclass(eq=False)
class DeviceTree:
    """The log as far as the device knows it, and the tree that it has drawn past it.

    log: prompt and answer as committed. nodes: guesses in the tree. lead: how far past the log guesses begin to count,
    see `tip`; typical: how likely a guess that is not drawn yet is right. loyalty: share of the best tip's value for
    which the branch that was drawn on last is drawn on.
    """

    log: list[int]
    nodes: int = 0
    lead: float = 0.0
    typical: float = 1.0
    loyalty: float = 0.6
    _root: Node = field(init=False)
    _unsent: list[Node] = field(default_factory=list)
    _tips: list[tuple[float, int, Node]] = field(default_factory=list)
    _order: int = 0
    _serial: int = 0
    _scale: float = 1.0  # survival of the root: those of the nodes are in units of it
    _open_mass: float = 1.0
    _sent_mass: float = 1.0
    _path: list[Node] = field(default_factory=list)
    _tokens: list[int] = field(default_factory=list)  # of the path
    _latest: Node | None = None  # where was drawn last

    def __post_init__(self) -> None:
        """A tree begins without guesses."""
        self._plant()

    @property
    def length(self) -> int:
        """Known committed length."""
        return len(self.log)

    @property
    def unsent(self) -> int:
        """Guesses that the verifier has not been told."""
        return len(self._unsent)

    @property
    def sent(self) -> int:
        """Guesses in the tree that it has been told."""
        return self.nodes - len(self._unsent)

    @property
    def sent_mass(self) -> float:
        """Probability that what was sent does not turn out to lack the target's token anywhere but past its ends."""
        return self._sent_mass

    @property
    def open_mass(self) -> float:
        """The same of all that was drawn. Of a line it is the probability that every guess is right."""
        return self._open_mass

    # -- drawing -------------------------------------------------------------------------------------------------------

    @property
    def tip(self) -> Node | None:
        """Where the next guesses are best drawn: where they will most likely be right and count. None if there is
        nowhere to draw: the drafter has nothing to say at any tip.

        A guess less than `lead` past the log will be spent before it arrives. It is worth what those after it are, so a
        tip's value is its survival times that of the guesses which are missing up to there.
        """
        tips = self._tips
        while tips and tips[0][2].children is not None:  # it is none any more
            heapq.heappop(tips)
        if not tips:
            return None
        best, latest = tips[0][2], self._latest
        if len(tips) == 1:  # a line: asked before every guess
            return best
        if latest is None or not latest.children or (onward := latest.children[0]).children is not None:
            return best
        # Another branch has to be read again from where it parts: the present one is left for a better one only.
        return onward if self.value(onward) >= self.loyalty * self.value(best) else best

    def tips(self, most: int) -> list[Node]:
        """The best tips, at most so many, the best first; `tip` is the first of them."""
        best = self.tip
        if best is None or len(self._tips) == 1:
            return [] if best is None else [best]
        others = [tip for _, _, tip in self._tips if tip.children is None and tip is not best]
        return [best, *heapq.nlargest(most - 1, others, key=self.value)]

    def survival(self, node: Node) -> float:
        """Estimated probability that a guess and all before it are right, given the log as it is now."""
        return node.survival / self._scale

    def depth(self, tip: Node) -> int:
        """How many guesses stand between the log and what is drawn at a tip."""
        return tip.position + 1 - len(self.log)

    def value(self, tip: Node) -> float:
        """See `tip`."""
        missing = self.lead - (tip.position + 1 - len(self.log))
        survival = tip.survival / self._scale
        return survival * self.typical**missing if missing > 0 else survival

    def path(self, tip: Node) -> list[int]:
        """The guesses from the log up to a tip: to be read only, and before the tree changes."""
        path, tokens = self._path, self._tokens
        if not (path and path[-1] is tip):
            if path and path[-1] is tip.parent:
                path.append(tip)
                tokens.append(tip.token)
            else:
                path[:] = self._nodes_to(tip)
                tokens[:] = [node.token for node in path]
        return tokens

    def path_to(self, tip: Node) -> list[int]:
        """As `path`, for a tip beside the best one: the list is the caller's."""
        return [node.token for node in self._nodes_to(tip)]

    def _nodes_to(self, tip: Node) -> list[Node]:
        """Those on the way from the log to a tip, in order."""
        nodes: list[Node] = []
        node: Node | None = tip
        while node is not None and node is not self._root:
            nodes.append(node)
            node = node.parent
        nodes.reverse()
        return nodes

    def grow(
        self, tip: Node, tokens: Sequence[int], confidences: Sequence[float], probabilities: Sequence[float]
    ) -> None:
        """What was drawn at a tip, the likeliest first; nothing if the drafter has nothing to say there.

        probabilities: of each being right, given that the path up to the tip is.
        """
        depth, tips = tip.position + 1 - len(self.log), self._tips
        if len(tokens) == len(tips) == 1 and tips[0][2] is tip:
            # A line: one tip takes the other's place. What it is worth matters only beside others.
            node = Node(tokens[0], confidences[0], probabilities[0], depth, 0, tip)
            tip.children, tips[0] = [node], (0.0, 0, node)
            self._latest, self.nodes = tip, self.nodes + 1
            self._unsent.append(node)
            self._open_mass = max(0.0, self._open_mass - (tip.survival - node.survival) / self._scale)
            return
        children = [
            Node(token, confidence, probability, depth, rank, tip)
            for rank, (token, confidence, probability) in enumerate(
                zip(tokens, confidences, probabilities, strict=True)
            )
        ]
        tip.children = children
        self._latest = tip
        self.nodes += len(children)
        self._unsent += children
        if children:
            self._open_mass = max(0.0, self._open_mass - tip.survival / self._scale * (1.0 - sum(probabilities)))
        if tips and tips[0][2] is tip:
            heapq.heappop(tips)
        for child in children:
            self._push(child)

    # -- what goes out and comes in ------------------------------------------------------------------------------------

    def flush(self) -> Flushed:
        """The unsent guesses, which count as sent from now on."""
        nodes, others = self._unsent, self.nodes - len(self._unsent)
        if not nodes:
            return Flushed(len(self.log), [], [], [])
        parents: list[int] = []
        serial = self._serial
        for node in nodes:
            before = node.parent.serial if node.parent is not None else None  # None of the root
            parents.append(0 if before is None else serial - before)
            node.serial = serial
            serial += 1
        self._serial, first = serial, nodes[0]
        plain = parents[0] == (1 if others else 0) and all(offset == 1 for offset in parents[1:])
        self._unsent = []
        self._sent_mass = self._open_mass
        tokens, confidences = [node.token for node in nodes], [node.confidence for node in nodes]
        return Flushed(first.position, tokens, confidences, [] if plain else parents)

    def commit(self, start: int, tokens: Sequence[int]) -> Verdict:
        """Take a commit and say what it means for the tree.

        What hangs on the new tokens stands, if the tree had all of them; else it is erased. Repeated commits are no
        error. Raises DraftError for a gap or if the log is said to read differently than before.
        """
        new = news_of(self.log, start, tokens)
        root, agreed = self._root, 0
        outcomes: list[Outcome] = []
        for token in new:
            if not root.children:
                break
            right = None
            for child in root.children:
                outcomes.append(Outcome(child.depth, child.confidence, child.token == token, child.rank))
                right = child if child.token == token else right
            if right is None:
                break
            root, agreed = right, agreed + 1
        self.log.extend(new)
        if agreed < len(new):
            self.erase()
        elif agreed:
            tip = self._tips[0][2] if len(self._tips) == 1 else None
            is_line = tip is not None and tip.children is None and tip.position - self._root.position == self.nodes
            del self._path[:agreed], self._tokens[:agreed]
            if self._path and self._path[0].parent is not root:
                self._path.clear()
            latest = self._latest
            while latest is not None and latest is not root:
                latest = latest.parent
            self._latest = self._latest if latest is root else None
            # What is spent goes at once: no cycle of it waits for the garbage collector.
            spent = root.parent
            self._root, root.parent, root.serial, self._scale = root, None, None, root.survival
            while spent is not None:
                spent.children, spent.parent, spent = None, None, spent.parent
            if tip is not None and is_line:
                self._spend(agreed, tip)
            else:
                self._settle()
        return Verdict(new, agreed, tuple(outcomes))

    def erase(self) -> None:
        """Forget the guesses; also after the log was replaced."""
        self._plant()

    def trim(self, limit: int, max_nodes: int) -> None:
        """Forget the guesses beyond `limit` past the log, and beyond `max_nodes`: a verifier takes no more."""
        end, left = len(self.log) + limit, max_nodes
        level = [self._root]
        while level:
            deeper: list[Node] = []
            for node in level:
                if node.children is None:
                    continue
                kept = [child for child in node.children if child.position < end][: max(0, left)]
                left -= len(kept)
                node.children = kept or None
                deeper += kept
            level = deeper
        self._path.clear()
        self._latest = None
        self._settle()

    def straighten(self) -> None:
        """Forget all branches but the first everywhere: a verifier takes lines only."""
        node = self._root
        while node.children:
            del node.children[1:]
            node = node.children[0]
        self._path.clear()
        self._latest = None
        self._settle()

    def unsend(self) -> None:
        """Count all guesses as unsent, as after a reconnect."""
        for node in self._all():
            node.serial = None
        self._serial = 0
        self._settle()

    # -- inside --------------------------------------------------------------------------------------------------------

    def _plant(self) -> None:
        """Begin anew at the end of the log."""
        self._root = Node(-1, 1.0, 1.0, 0, 0, None)
        self._root.position = len(self.log) - 1
        self.nodes, self._unsent, self._scale = 0, [], 1.0
        self._open_mass = self._sent_mass = 1.0
        self._path.clear()
        self._latest, self._tips = None, [(-1.0, 0, self._root)]

    @property
    def line(self) -> list[int]:
        """The first guess after the log, the first after that, and so on."""
        tokens: list[int] = []
        node = self._root
        while node.children:
            node = node.children[0]
            tokens.append(node.token)
        return tokens

    def _all(self) -> list[Node]:
        """Every guess, after what it hangs on, as drawn."""
        found: list[Node] = list(self._root.children or ())
        for node in found:
            found += node.children or ()
        return found

    def _spend(self, agreed: int, tip: Node) -> None:
        """What `_settle` does, after a line up to this tip has lost its first guesses to the log."""
        self.nodes -= agreed
        unsent = self._unsent
        del unsent[: max(0, len(unsent) - self.nodes)]
        self._open_mass = tip.survival / self._scale
        last_sent = unsent[0].parent if unsent else tip
        assert last_sent is not None
        self._sent_mass = last_sent.survival / self._scale

    def _settle(self) -> None:
        """Everything that is kept about the tree, after it lost a part."""
        nodes = self._all()
        self.nodes = len(nodes)
        self._unsent = [node for node in nodes if node.serial is None]
        self._tips = []
        for node in (self._root, *nodes):
            if node.children is None:
                self._push(node)
        self._open_mass, self._sent_mass = self._masses()

    def _masses(self) -> tuple[float, float]:
        scale = self._scale
        everything = sent = 0.0
        stack = [(self._root, True)]
        while stack:
            node, counts = stack.pop()
            children = node.children
            if not children:
                everything += node.survival
            told = [child for child in children or () if child.serial is not None]
            if counts and not told:
                sent += node.survival
            stack += [(child, child.serial is not None) for child in children or ()]
        return everything / scale, sent / scale

    def _push(self, node: Node) -> None:
        self._order += 1
        heapq.heappush(self._tips, (-self.value(node), self._order, node))
