"""The draft tree as the verifier keeps it.

What a draft says is judged by the log as it is now, for it was drawn when the device knew less of it. *Behind* is not
*diverged*: a guess whose position the log has reached is spent if the log says the same, and what hangs on it hangs on
the log from there; it is dead if the log says otherwise, and so is all that hangs on it.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from speculation.draft_tree import MAX_LOOKAHEAD, UNSAID_CONFIDENCE, DraftError, Outcome

_ALIVE, _SPENT, _DEAD = range(3)


class Node:
    """One guess. confidence: what the device says of it, if all before it are right. depth: how far past the log as the
    device knew it. rank: how many guesses its place had before it. children: by token."""

    __slots__ = ("_dead_at", "_state", "children", "confidence", "depth", "parent", "position", "rank", "token")

    def __init__(self, token: int, confidence: float, depth: int, position: int, parent: Node | None) -> None:
        self.token, self.confidence, self.depth, self.position, self.parent = token, confidence, depth, position, parent
        self.rank = len(parent.children) if parent is not None else 0
        self.children: dict[int, Node] = {}
        self._state, self._dead_at = _ALIVE, 0

    @property
    def alive(self) -> bool:
        """Whether the log may yet say so."""
        return self._state == _ALIVE

    @property
    def spent(self) -> bool:
        """Whether the log has said so."""
        return self._state == _SPENT

    @property
    def dead_at(self) -> int | None:
        """Position from which on the path to it disagrees with the log; None if it does not."""
        return self._dead_at if self._state == _DEAD else None

    def spend(self) -> None:
        """The log says so."""
        self._state, self.parent, self.children = _SPENT, None, {}

    def die(self, at: int) -> int:
        """The log says otherwise at a position: so this node and all below it are dead. Returns how many that are."""
        killed, stack = 0, [self]
        while stack:
            node = stack.pop()
            stack += node.children.values()
            node._state, node._dead_at, node.parent, node.children = _DEAD, at, None, {}
            killed += 1
        return killed


@dataclass(frozen=True)
class Picked:
    """Guesses for one step: parents[i] is the index among them of what guess i hangs on, -1 for the log.

    A guess comes after what it hangs on, and a path is laid out in one piece as far as it can be: the likeliest first,
    then what branches off. parents is empty if every guess hangs on the one before it. own: indices of those that are
    the verifier's own.
    """

    nodes: Sequence[Node]
    parents: Sequence[int] = ()
    own: frozenset[int] = frozenset()

    def parent(self, index: int) -> int:
        """Of a guess, see above."""
        return self.parents[index] if self.parents else index - 1

    def path_to(self, index: int) -> list[int]:
        """The tokens from the log to a guess; none for -1."""
        tokens = []
        while index >= 0:
            tokens.append(self.nodes[index].token)
            index = self.parent(index)
        return tokens[::-1]

    def first(self, count: int) -> Picked:
        """The first guesses, of a line."""
        return Picked(self.nodes[:count], self.parents[:count], frozenset(i for i in self.own if i < count))

    def with_own(self, lines: Mapping[int, Sequence[Node]]) -> Picked:
        """The same with lines of the verifier's own, each behind the guess that it hangs on and what hangs there."""
        children: dict[int, list[int]] = {}
        for index in range(len(self.nodes)):
            children.setdefault(self.parent(index), []).append(index)
        nodes: list[Node] = []
        parents: list[int] = []
        own: list[int] = []
        stack: list[tuple[int | Sequence[Node], int]] = []  # what waits to be laid out, and what it hangs on

        def hang_on(before: int, now: int) -> None:
            if line := lines.get(before):
                stack.append((line, now))
            stack.extend((child, now) for child in reversed(children.get(before, ())))

        hang_on(-1, -1)
        while stack:
            waiting, parent = stack.pop()
            if isinstance(waiting, int):
                nodes.append(self.nodes[waiting])
                parents.append(parent)
                hang_on(waiting, len(nodes) - 1)
                continue
            for node in waiting:
                own.append(len(nodes))
                nodes.append(node)
                parents.append(parent)
                parent = len(nodes) - 1
        plain = all(parent == index - 1 for index, parent in enumerate(parents))
        return Picked(nodes, () if plain else parents, frozenset(own))

    @property
    def tokens(self) -> list[int]:
        """Of the guesses."""
        return [node.token for node in self.nodes]


@dataclass(eq=False)
class VerifierTree:
    """The log of a session and the tree that its device last drew.

    log: prompt and answer. nodes: how many guesses are alive. gaps: whether the latest draft had a guess that is not
    kept, though nothing contradicts it: the device takes it for sent, and no commit will say so. Counters are totals
    for the session: dropped are guesses that were dead, spent, said twice or too many when they came, and those that
    the log contradicted before a step looked at them or after.
    """

    log: list[int]
    nodes: int = 0
    gaps: bool = False
    drafted: int = 0
    dropped: int = 0
    _root: Node = field(init=False)
    _recent: deque[Node | None] = field(default_factory=lambda: deque(maxlen=MAX_LOOKAHEAD))  # None: not kept
    _farthest: int = -1  # position that no guess so far was past
    _last: Node | None = None  # end of the line that a draft without parents goes on with

    def __post_init__(self) -> None:
        """A tree begins without guesses."""
        self._root = Node(-1, 1.0, 0, len(self.log) - 1, None)

    @property
    def length(self) -> int:
        """Committed length: the only clock."""
        return len(self.log)

    @property
    def forked(self) -> bool:
        """Whether guesses branch anywhere."""
        return len(self.first_path()) < self.nodes

    @property
    def guesses(self) -> list[int]:
        """The likeliest path by what the device said first: of a line, all of it."""
        return [node.token for node in self.first_path()]

    @property
    def first_guesses(self) -> list[Node]:
        """Those that hang on the log, as they came."""
        return list(self._root.children.values())

    def draft(
        self,
        start: int,
        tokens: Sequence[int],
        known_length: int,
        limit: int,
        confidences: Sequence[float] = (),
        parents: Sequence[int] = (),
        max_nodes: int = MAX_LOOKAHEAD,
    ) -> None:
        """Take a draft, drawn when the device knew `known_length` of the log.

        Without parents it says: from `start` on the line reads `tokens`. One that starts at or before what the device
        knew stands on the log itself; one that starts later goes on with the line sent before, in whose place it comes
        from `start` on, and is dropped if that line is dead or has a gap.

        With parents it adds to the tree: parents[i] tells how many guesses before guess i, in the order in which they
        were sent, came the one that it hangs on; 0 for the log at `known_length`.

        Guesses beyond `limit` tokens past the log, and beyond the first MAX_LOOKAHEAD of a draft, and more than
        `max_nodes` in all, are dropped. confidences: one for each token, or none.

        Raises DraftError if the device claims to know more of the log than there is.
        """
        length = len(self.log)
        if known_length > length:
            raise DraftError(
                f"the draft claims to know {known_length} tokens of the log, which has {length}; resume to resync"
            )
        self.drafted += len(tokens)
        taken = tokens[:MAX_LOOKAHEAD]
        excess = len(tokens) - len(taken)
        self.gaps = excess > 0
        hangs_on = self._place_in_line(start, known_length) if taken and not parents else None
        for index, token in enumerate(taken):
            if parents:
                hangs_on = self._named(parents[index], known_length)
            said = confidences[index] if confidences else UNSAID_CONFIDENCE
            hangs_on = node = self._add(hangs_on, token, said, known_length, limit, max_nodes)
            self.gaps |= node is None
            # A line that goes on with a branch that is not kept has nothing to stand on.
            self._last = node if parents else node or self._last
        self.dropped += excess
        self._recent.extend([None] * min(excess, MAX_LOOKAHEAD))

    def commit(self, tokens: Sequence[int], learn: Callable[[Outcome], object] | None = None) -> int:
        """Append to the log; returns how many of the tokens, from the first on, the tree had guessed.

        learn: is told what became of the guesses at each of these positions.
        """
        guessed = 0
        for token in tokens:
            position, children = len(self.log), self._root.children
            self.log.append(token)
            if not children:
                continue
            if learn is not None:
                for node in children.values():
                    learn(Outcome(node.depth, node.confidence, node.token == token, node.rank))
            right = children.pop(token, None)
            for node in children.values():
                self._kill(node, position)
            self._root.children = {}
            if right is not None:
                guessed += 1
                self.nodes -= 1
                self._root.children = right.children
                for node in right.children.values():
                    node.parent = self._root
                right.spend()
        self._root.position = len(self.log) - 1
        return guessed

    def forget(self) -> None:
        """Drop the tree, as after a reconnect: what the device had sent may have been lost."""
        self._root.children = {}
        self._recent.clear()
        self._last, self.nodes, self._farthest = None, 0, -1

    def within(self, reach: int) -> int:
        """How many guesses lie within the first `reach` positions past the log."""
        end = len(self.log) + reach
        if self.nodes == 0 or self._farthest < end:
            return self.nodes
        count, stack = 0, [*self._root.children.values()]
        while stack:
            node = stack.pop()
            if node.position < end:
                count += 1
                stack += node.children.values()
        return count

    # -- for a step ----------------------------------------------------------------------------------------------------

    def survivals(self, probability: Callable[[Node], float], reach: int) -> list[tuple[float, Node]]:
        """All guesses of the first `reach` positions past the log, the likeliest first, each after what it hangs on.

        Each with its survival: the probability that it and all before it are right. probability: of a guess, given that
        all before it are right. At one place they are held to 1 in all: a device that says of a thousand that each is
        certain gains nothing.
        """
        end, order = len(self.log) + reach, 0
        found: list[tuple[float, Node]] = []
        heap: list[tuple[float, int, Node]] = []
        survival, node = 1.0, self._root
        while True:
            left = 1.0
            for child in node.children.values():
                if child.position < end:
                    order += 1
                    likely = min(left, probability(child))
                    left -= likely
                    heapq.heappush(heap, (-survival * likely, order, child))
            if not heap:
                return found
            doubt, _, node = heapq.heappop(heap)
            survival = -doubt
            found.append((survival, node))

    def pick(self, wanted: Sequence[Node] | None, reach: int) -> Picked:
        """Lay out guesses for a step: all within the first `reach` positions past the log, or the wanted ones of them.

        wanted: likeliest first, with all that they hang on; None for all, in the order in which they came.
        """
        end = len(self.log) + reach
        line = self.first_path()
        if wanted is None and len(line) == self.nodes:
            return Picked(line[: max(0, reach)])
        chosen = None if wanted is None else {id(node): number for number, node in enumerate(wanted)}
        nodes: list[Node] = []
        parents: list[int] = []
        # The branches that wait to be laid out, the likeliest on top: so a path is followed to its end first.
        stack = [(node, -1) for node in self._chosen(self._root, chosen, end)]
        while stack:
            node, parent = stack.pop()
            nodes.append(node)
            parents.append(parent)
            stack += [(child, len(nodes) - 1) for child in self._chosen(node, chosen, end)]
        plain = all(parent == index - 1 for index, parent in enumerate(parents))
        return Picked(nodes, () if plain else parents)

    # -- inside --------------------------------------------------------------------------------------------------------

    def _chosen(self, node: Node, chosen: dict[int, int] | None, end: int) -> list[Node]:
        """Children that take part, the likeliest last."""
        children = [child for child in node.children.values() if child.position < end]
        if chosen is None:
            return children[::-1]
        return sorted((c for c in children if id(c) in chosen), key=lambda child: -chosen[id(child)])

    def first_path(self) -> list[Node]:
        """The first child of the first child and so on."""
        line: list[Node] = []
        children = self._root.children
        while children:
            node = next(iter(children.values()))
            line.append(node)
            children = node.children
        return line

    def _named(self, offset: int, known_length: int) -> Node | int | None:
        """What a guess hangs on: a node, or the position of the log that it is a guess of; None if it is not kept."""
        if offset == 0:
            return known_length
        return self._recent[-offset] if offset <= len(self._recent) else None

    def _add(
        self, parent: Node | int | None, token: int, confidence: float, known_length: int, limit: int, max_nodes: int
    ) -> Node | None:
        """Put one guess where it belongs. Returns the node, alive or not; None if it is not kept."""
        node = self._placed(parent, token, confidence, known_length, limit, max_nodes)
        self._recent.append(node)
        return node

    def _placed(
        self, parent: Node | int | None, token: int, confidence: float, known_length: int, limit: int, max_nodes: int
    ) -> Node | None:
        length = len(self.log)
        if isinstance(parent, Node) and (dead_at := parent.dead_at) is not None:
            self.dropped += 1
            node = Node(token, confidence, 0, parent.position + 1, None)
            node.die(dead_at)
            return node
        if isinstance(parent, Node) and parent.spent:
            parent = parent.position + 1
        if isinstance(parent, int) and parent < length:
            self.dropped += 1
            node = Node(token, confidence, 0, parent, None)
            if self.log[parent] == token:
                node.spend()
            else:
                node.die(parent)
            return node
        hangs_on = self._root if isinstance(parent, int) else parent
        if hangs_on is None:
            self.dropped += 1
            return None
        if (same := hangs_on.children.get(token)) is not None:
            self.dropped += 1
            return same
        position = hangs_on.position + 1
        if position >= length + limit or self.nodes >= max_nodes:
            self.dropped += 1
            return None
        node = Node(token, confidence, position - known_length, position, hangs_on)
        hangs_on.children[token] = node
        self.nodes += 1
        self._farthest = max(self._farthest, position)
        return node

    def _place_in_line(self, start: int, known_length: int) -> Node | int | None:
        """What a line from `start` on hangs on, None if that is not there. What the line said there before is over."""
        length, last = len(self.log), self._last
        fresh = start <= known_length
        if not fresh and last is not None and last.dead_at is not None and start > last.dead_at:
            return last
        end = last.position + 1 if last is not None and last.alive else length
        if not fresh and start > end:
            return None
        node = last
        while start > length and node is not None and node.position >= start:
            node = node.parent
        self._cut_line(start)
        return node if start > length else start

    def _cut_line(self, start: int) -> None:
        """What the line said from `start` on does not hold any more, nor what hangs on that."""
        node = self._last
        if node is None or not node.alive or node.position < start:
            return
        while node.parent is not None and node.parent is not self._root and node.position > start:
            node = node.parent
        above = node.parent
        assert above is not None
        above.children.pop(node.token, None)
        self.nodes -= node.die(node.position)
        self._last = above if above is not self._root else None

    def _kill(self, node: Node, position: int) -> None:
        killed = node.die(position)
        self.nodes -= killed
        self.dropped += killed
