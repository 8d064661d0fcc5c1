import copy
import random

import pytest

from speculation.acceptance import shared_noise
from speculation.device_tree import DeviceTree
from speculation.draft_tree import MAX_LOOKAHEAD, UNSAID_CONFIDENCE, DraftError, Outcome
from speculation.verifier_tree import Picked, VerifierTree
from tests.unit.views import tip_of


def line(*log: int) -> VerifierTree:
    return VerifierTree(list(log))


def drawn(*log: int) -> DeviceTree:
    return DeviceTree(list(log))


def extend(tree: DeviceTree, token: int, confidence: float) -> None:
    tree.grow(tip_of(tree), [token], [confidence], [confidence])


def said(tree: VerifierTree) -> tuple[list[int], list[float], list[int]]:
    """Tokens, confidences and depths of a line."""
    nodes = tree.pick(None, MAX_LOOKAHEAD).nodes
    return [n.token for n in nodes], [n.confidence for n in nodes], [n.depth for n in nodes]


def test_acceptance_is_the_common_prefix() -> None:
    assert shared_noise([], [7]) == []
    assert shared_noise([1, 2, 3], [1, 2, 3, 4]) == [0, 1, 2]
    assert shared_noise([1, 9, 3], [1, 2, 3, 4]) == [0]
    with pytest.raises(ValueError, match="need 3 choices"):
        shared_noise([1, 2], [1, 2])


def test_acceptance_on_a_tree_follows_the_targets_own_choices() -> None:
    guesses, parents = [1, 2, 3, 7, 8, 2], [-1, 0, 1, -1, 3, 3]
    assert shared_noise(guesses, [1, 2, 9, 0, 0, 0, 0], parents) == [0, 1]
    assert shared_noise(guesses, [7, 0, 0, 0, 8, 4, 0], parents) == [3, 4]
    assert shared_noise(guesses, [7, 0, 0, 0, 2, 0, 5], parents) == [3, 5]
    assert shared_noise(guesses, [6, 1, 2, 3, 8, 0, 0], parents) == []


def test_a_draft_at_the_end_of_the_log_is_on_the_path() -> None:
    subject = line(1, 2)
    subject.draft(2, [3, 4], known_length=2, limit=8)
    assert subject.guesses == [3, 4]
    assert subject.commit([3]) == 1
    assert subject.guesses == [4]


def test_the_part_the_log_agrees_with_is_spent_and_the_rest_counts() -> None:
    subject = line(1, 2, 3)
    subject.draft(2, [3, 4, 5], known_length=2, limit=8)
    assert subject.guesses == [4, 5]


def test_a_draft_the_log_contradicts_is_dead_until_overwritten() -> None:
    subject = line(1, 2, 3)
    subject.draft(2, [9, 4, 5], known_length=2, limit=8)
    assert subject.guesses == []
    subject.draft(5, [6], known_length=2, limit=8)  # goes on with the dead line
    assert subject.guesses == []
    subject.draft(2, [3, 7], known_length=2, limit=8)  # overwrites the disagreement
    assert subject.guesses == [7]


def test_a_draft_that_knows_the_correction_revives_the_line() -> None:
    subject = line(1)
    subject.draft(1, [5, 6], known_length=1, limit=8)
    subject.commit([2])
    assert subject.guesses == []
    subject.draft(3, [7], known_length=1, limit=8)
    assert subject.guesses == []
    subject.draft(2, [8], known_length=2, limit=8)
    assert subject.guesses == [8]


def test_a_later_draft_goes_on_with_the_line_and_overwrites_from_its_start() -> None:
    subject = line(1)
    subject.draft(1, [2, 3], known_length=1, limit=8)
    subject.draft(3, [4, 5], known_length=1, limit=8)
    assert subject.guesses == [2, 3, 4, 5]
    subject.draft(2, [9], known_length=1, limit=8)
    assert subject.guesses == [2, 9]


def test_a_gap_is_dropped_and_counted() -> None:
    subject = line(1)
    subject.draft(3, [4, 5], known_length=1, limit=8)
    assert subject.guesses == []
    assert subject.dropped == 2


def test_the_limit_bounds_the_line() -> None:
    subject = line(1)
    subject.draft(1, [2, 3, 4], known_length=1, limit=2)
    assert subject.guesses == [2, 3]
    assert subject.dropped == 1


def test_a_draft_of_any_length_is_cut_to_what_the_line_may_hold_and_counted() -> None:
    subject = line(1, 2, 3)
    subject.draft(1, [2, 3, 4, 5, 6, 7], known_length=1, limit=2, confidences=[0.5] * 6)
    assert subject.guesses == [4, 5]
    assert said(subject) == ([4, 5], [0.5, 0.5], [2, 3])
    assert (subject.drafted, subject.dropped) == (6, 4)
    assert subject.gaps
    subject.draft(5, [8], known_length=1, limit=2)  # goes on past the end of what is held
    assert subject.guesses == [4, 5]
    assert (subject.drafted, subject.dropped) == (7, 5)
    subject.draft(2**32 - 1, [8], known_length=1, limit=2)
    assert subject.guesses == [4, 5]
    subject.draft(3, [4] * 10_000_000, known_length=3, limit=MAX_LOOKAHEAD * 2)
    assert len(subject.guesses) == MAX_LOOKAHEAD
    assert subject.dropped == 6 + 10_000_000 - MAX_LOOKAHEAD


def test_a_line_that_the_log_contradicts_is_not_cut_short() -> None:
    subject = line(1)
    subject.draft(1, [2, 3, 4], known_length=1, limit=2)
    assert subject.gaps
    subject.commit([9])
    subject.draft(5, [6], known_length=1, limit=2)
    assert not subject.gaps, "the device hears so by the commit"


def test_a_device_trims_its_line_to_what_another_verifier_takes() -> None:
    subject = drawn(1)
    for token in (2, 3, 4):
        extend(subject, token, 0.5)
    subject.flush()
    subject.trim(2, 64)
    assert (subject.line, subject.sent, subject.length) == ([2, 3], 2, 1)
    subject.unsend()
    assert subject.flush() == (1, [2, 3], [0.5, 0.5], [])
    extend(subject, 5, 0.5)
    assert subject.line == [2, 3, 5]
    subject.trim(8, 2)
    assert subject.line == [2, 3]


def test_a_device_cannot_know_more_than_there_is() -> None:
    with pytest.raises(DraftError, match="has 1"):
        line(1).draft(1, [2], known_length=2, limit=8)


def test_a_log_that_overtakes_the_line_keeps_later_drafts_useful() -> None:
    subject = line(1)
    subject.draft(1, [2], known_length=1, limit=8)
    subject.commit([2, 3])
    subject.draft(2, [3, 4], known_length=1, limit=8)  # drawn before the device heard of 2 and 3
    assert subject.guesses == [4]


def test_device_line_spends_what_the_log_confirms() -> None:
    subject = drawn(1)
    extend(subject, 2, 0.5)
    extend(subject, 3, 0.5)
    assert subject.flush() == (1, [2, 3], [0.5, 0.5], [])
    extend(subject, 4, 0.5)
    assert subject.unsent == 1
    assert (subject.survival(tip_of(subject)), subject.open_mass, subject.sent_mass) == (0.125, 0.125, 0.25)
    assert subject.commit(1, [2]) == ([2], 1, (Outcome(0, 0.5, True),))
    assert (subject.line, subject.unsent, subject.length) == ([3, 4], 1, 2)
    assert (subject.survival(tip_of(subject)), subject.open_mass, subject.sent_mass) == (0.25, 0.25, 0.5)
    assert subject.flush() == (3, [4], [0.5], [])


def test_device_line_is_erased_by_a_contradiction_and_by_being_overtaken() -> None:
    subject = drawn(1)
    extend(subject, 2, 0.9)
    assert subject.commit(1, [7]) == ([7], 0, (Outcome(0, 0.9, False),))
    assert subject.line == []
    extend(subject, 8, 0.9)
    assert subject.commit(2, [8, 9]) == ([8, 9], 1, (Outcome(0, 0.9, True),))
    assert subject.line == []


def test_device_line_takes_repeats_and_refuses_gaps_and_other_logs() -> None:
    subject = drawn(1, 2)
    assert subject.commit(1, [2, 3]) == ([3], 0, ())
    assert subject.commit(1, [2, 3]) == ([], 0, ())
    with pytest.raises(DraftError, match="starts at 5"):
        subject.commit(5, [1])
    with pytest.raises(DraftError, match="another log"):
        subject.commit(1, [9])


def test_confidences_and_depths_stay_with_their_guesses() -> None:
    subject = line(9, 9)
    subject.draft(2, [1, 2, 3], 2, 64, [0.1, 0.2, 0.3])
    subject.draft(5, [4], 2, 64)
    assert said(subject) == ([1, 2, 3, 4], [0.1, 0.2, 0.3, UNSAID_CONFIDENCE], [0, 1, 2, 3])
    subject.commit([1])
    subject.draft(4, [7, 8], 2, 64, [0.7, 0.8])
    assert said(subject) == ([2, 7, 8], [0.2, 0.7, 0.8], [1, 2, 3])
    subject.draft(2, [1, 2, 5, 6], 2, 2, [0.1, 0.2, 0.5, 0.6])
    assert said(subject) == ([2, 5], [0.2, 0.5], [1, 2])
    subject.commit([3])
    assert said(subject) == ([], [], [])


def test_a_block_of_tokens_is_written_as_one_by_one() -> None:
    rng = random.Random(5)
    for _ in range(300):
        at_once, singly = line(7, 7), line(7, 7)
        guesses = [rng.randint(1, 3) for _ in range(rng.randint(0, 6))]
        tokens = [rng.randint(1, 3) for _ in range(rng.randint(1, 8))]
        for subject in (at_once, singly):
            subject.draft(2, guesses, 2, 64)
        assert at_once.commit(tokens) == sum(singly.commit([token]) for token in tokens)
        assert (at_once.log, said(at_once), at_once.dropped) == (singly.log, said(singly), singly.dropped)


# ----------------------------------------------------------------------------------------------------------------------
# Trees, against a walk that knows nothing but paths


Path = tuple[int, ...]


class Paths:
    """The verifier's tree as a set of texts: a guess with all that it hangs on, from the first token of the log on."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self.sent: list[Path | None] = []  # None: was not kept
        self.alive: set[Path] = set()

    def draft(self, tokens: list[int], known: int, parents: list[int], limit: int, most: int) -> None:
        for token, offset in zip(tokens, parents, strict=True):
            base = self.log[:known] if offset == 0 else self.sent[-offset] if offset <= len(self.sent) else None
            path = None if base is None else (*base, token)
            if path is not None and len(path) > len(self.log) and path[: len(self.log)] == self.log:
                full = len(path) - len(self.log) > limit or len(self.alive) >= most
                if path not in self.alive and full:
                    path = None
                else:
                    self.alive.add(path)
            self.sent.append(path)

    def commit(self, tokens: list[int]) -> int:
        guessed = 0
        while guessed < len(tokens) and (*self.log, *tokens[: guessed + 1]) in self.alive:
            guessed += 1
        self.log = (*self.log, *tokens)
        self.alive = {p for p in self.alive if len(p) > len(self.log) and p[: len(self.log)] == self.log}
        return guessed


def texts(tree: VerifierTree, picked: Picked) -> list[Path]:
    """What guesses read, with all that they hang on and the log."""
    found: list[Path] = []
    for index, node in enumerate(picked.nodes):
        parent = picked.parents[index] if picked.parents else index - 1
        found.append((*(found[parent] if parent >= 0 else tuple(tree.log)), node.token))
    return found


def all_texts(tree: VerifierTree) -> set[Path]:
    picked = tree.pick(None, MAX_LOOKAHEAD)
    found = texts(tree, picked)
    assert len(set(found)) == len(found) == tree.nodes
    return set(found)


@pytest.mark.parametrize("seed", range(80))
def test_any_tree_is_kept_as_the_texts_it_stands_for(seed: int) -> None:
    """Random parents, also of guesses that are dead, spent, dropped or were never sent; and lines in between."""
    rng = random.Random(seed)
    log = [rng.randrange(3) for _ in range(3)]
    tree, paths = line(*log), Paths(tuple(log))
    limit, most = rng.choice((4, 16)), rng.choice((6, 40))
    for _ in range(150):
        if rng.random() < 0.7:
            known = rng.randrange(max(1, tree.length - 3), tree.length + 1)
            tokens = [rng.randrange(3) for _ in range(rng.randrange(1, 6))]
            parents = [rng.choice((0, 1, 1, 1, 2, 3, 9, 5000)) for _ in tokens]
            tree.draft(known, tokens, known, limit, (), parents, most)
            paths.draft(tokens, known, parents, limit, most)
        else:
            some = [*paths.alive] or [(*paths.log, 0)]
            right = list(rng.choice(some)[tree.length :])
            tokens = right[: rng.randrange(1, 4)] if rng.random() < 0.7 else [rng.randrange(3)]
            assert tree.commit(tokens) == paths.commit(tokens)
        assert tuple(tree.log) == paths.log
        assert all_texts(tree) == paths.alive
        assert tree.drafted >= tree.dropped


@pytest.mark.parametrize("width", [1, 3], ids=["lines", "trees"])
@pytest.mark.parametrize("seed", range(60))
def test_any_traffic_leaves_the_log_as_the_target_writes_it(seed: int, width: int) -> None:
    """Random delays, losses and wrong guesses on the way: words never change, and the verifier never knows a guess that
    the device has not drawn."""
    rng = random.Random(seed)
    truth = [rng.randrange(4) for _ in range(200)]
    device, verifier = drawn(0), line(0)
    up: list[tuple[int, list[int], int, list[float], list[int]]] = []
    down: list[tuple[int, list[int]]] = []
    told, forks, guessed, limit = 1, 0, 0, rng.choice((16, 64))
    while verifier.length <= 100:
        event = rng.random()
        if event < 0.35 and device.nodes < 40:
            for _ in range(rng.randrange(1, 4)):
                tip = device.tip
                assert tip is not None
                at = device.length + device.depth(tip) - 1
                tokens = rng.sample(range(4), rng.randrange(1, width + 1))
                if rng.random() < 0.75 and truth[at] not in tokens:
                    tokens[-1] = truth[at]
                device.grow(tip, tokens, [0.5] * len(tokens), [0.9 / len(tokens)] * len(tokens))
        elif event < 0.5:
            flushed = device.flush()
            forks += bool(flushed.parents)
            confidences = flushed.confidences if seed % 2 else []
            up.append((flushed.start, flushed.tokens, device.length, confidences, flushed.parents))
        elif event < 0.7 and up:
            start, tokens, known, confidences, parents = up.pop(0)
            verifier.draft(start, tokens, known, limit, confidences, parents, limit)
        elif event < 0.78:
            room = rng.choice((3, 64))
            ranked = [node for _, node in verifier.survivals(lambda node: node.confidence, 64)]
            picked = verifier.pick(ranked[:room], 64)
            read = texts(verifier, picked)
            choices = [truth[verifier.length - 1], *(truth[len(path) - 1] for path in read)]
            path = shared_noise(picked.tokens, choices, picked.parents)
            new = [choices[0], *(choices[guess + 1] for guess in path)]
            assert new == truth[verifier.length - 1 : verifier.length + len(path)]
            assert verifier.commit(new) >= len(path)
            guessed += len(path)
        elif event < 0.97:
            down.append((told, verifier.log[told:]))
            told = verifier.length
        elif event < 0.98:  # the link is cut: what is under way is lost, the verifier tells again from what is known
            up.clear()
            down.clear()
            verifier.forget()
            device.unsend()
            told = device.length
        if down and rng.random() < 0.5:
            device.commit(*down.pop(0))
        assert verifier.log[1:] == truth[: verifier.length - 1]
        assert device.log == verifier.log[: device.length]
        assert verifier.nodes <= limit
        assert width > 1 or len(verifier.guesses) == verifier.nodes
        assert device.sent_mass >= device.open_mass - 1e-9
        assert 0 <= device.open_mass <= 1 + 1e-9
    assert guessed > 0
    assert forks > 3 if width > 1 else forks == 0


def test_the_likeliest_guesses_of_a_tree_are_a_tree() -> None:
    tree = line(0)
    #        1 (.6) - 3 (.5) - 5 (.9)        2 (.35) - 4 (.9)
    tree.draft(1, [1, 2, 3, 4, 5], 1, 8, [0.6, 0.35, 0.5, 0.9, 0.9], [0, 0, 2, 2, 2])
    ranked = tree.survivals(lambda node: node.confidence, 8)
    assert [node.token for _, node in ranked] == [1, 2, 4, 3, 5]
    assert [round(survival, 4) for survival, _ in ranked] == [0.6, 0.35, 0.315, 0.3, 0.27]
    best = [node for _, node in ranked]
    assert tree.pick(best, 8).tokens == [1, 3, 5, 2, 4]
    assert tree.pick(best, 8).parents == [-1, 0, 1, -1, 3]
    assert (tree.pick(best[:3], 8).tokens, tree.pick(best[:3], 8).parents) == ([1, 2, 4], [-1, -1, 1])
    assert tree.pick(best, 1).tokens == [1, 2]
    assert tree.within(2) == 4


def test_a_branch_that_the_log_takes_stands_and_the_others_are_dropped() -> None:
    tree = line(0)
    tree.draft(1, [1, 2, 3, 4], 1, 8, (), [0, 0, 2, 2])
    assert tree.commit([2]) == 1
    assert (tree.guesses, tree.dropped) == ([4], 2)
    tree.draft(2, [5, 6], 1, 8, (), [1, 3])  # on 4, and on 3, which is dead
    assert (tree.guesses, tree.dropped) == ([4, 5], 3)


def test_equal_branches_are_one() -> None:
    tree = line(0)
    tree.draft(1, [1, 1, 2, 2], 1, 8, (), [0, 0, 2, 2])
    assert (tree.nodes, tree.guesses) == (2, [1, 2])


def test_a_line_says_no_more_on_the_wire_than_it_did_without_trees() -> None:
    device = drawn(0)
    for token in (1, 2, 3):
        extend(device, token, 0.5)
        assert device.flush().parents == []
    device.commit(1, [1])
    extend(device, 4, 0.5)
    assert device.flush() == (4, [4], [0.5], [])
    device.commit(2, [9])
    extend(device, 5, 0.5)
    assert device.flush() == (3, [5], [0.5], [])


def test_a_fork_names_what_it_hangs_on() -> None:
    device = drawn(0)
    device.grow(tip_of(device), [1, 2], [0.6, 0.4], [0.6, 0.4])
    assert device.flush() == (1, [1, 2], [0.6, 0.4], [0, 0])
    device.grow(tip_of(device), [3], [0.3], [0.3])
    assert device.flush() == (2, [3], [0.3], [2])
    device.grow(tip_of(device), [4], [0.9], [0.9])  # on 2, which is likelier than 3 by now
    assert device.flush() == (2, [4], [0.9], [2])
    assert device.line == [1, 3]
    device.straighten()
    assert (device.nodes, device.line) == (2, [1, 3])


def test_drawing_stays_on_a_branch_until_another_is_worth_more() -> None:
    device = drawn(0)
    device.grow(tip_of(device), [1, 2], [0.5, 0.45], [0.5, 0.45])
    first = tip_of(device)
    device.grow(first, [3], [0.6], [0.6])
    assert device.path(tip_of(device)) == [1, 3]  # .3, against .45 for 2: not worth reading another branch
    device.grow(tip_of(device), [4], [0.5], [0.5])
    assert device.path(tip_of(device)) == [2]
    device.grow(tip_of(device), (), (), ())  # nothing to say there
    assert device.path(tip_of(device)) == [1, 3, 4]
    device.grow(tip_of(device), (), (), ())
    assert device.tip is None


def test_what_has_no_room_is_a_gap_and_what_the_log_contradicts_is_none() -> None:
    tree = line(0)
    tree.draft(1, [1, 2], 1, 8, (), [0, 0], 1)
    assert (tree.nodes, tree.gaps) == (1, True)
    tree.draft(2, [7], 1, 8)  # goes on with 2, which is not kept: not with 1
    assert all_texts(tree) == {(0, 1)}
    tree.draft(1, [3], 1, 8, (), [0], 8)
    assert (tree.nodes, tree.gaps) == (2, False)
    tree.commit([4])
    tree.draft(1, [5], 1, 8, (), [1], 8)  # on 3, which is dead
    assert (tree.nodes, tree.gaps) == (0, False)
    tree.draft(2, [0], 2, 8, (), [99], 8)
    assert (tree.nodes, tree.gaps) == (0, True)
    tree.draft(2, [0] * (MAX_LOOKAHEAD + 1), 2, 8, (), [0] * (MAX_LOOKAHEAD + 1), 8)
    assert (tree.nodes, tree.gaps) == (1, True)


def test_the_guesses_at_one_place_are_right_with_a_probability_of_one_at_most() -> None:
    tree = line(0)
    tree.draft(1, [*range(1, 1001), 5, 6], 1, 8, (), [*[0] * 1000, 1000, 1000], 2000)
    ranked = tree.survivals(lambda _: 0.3, 8)
    assert len(ranked) == tree.nodes == 1002
    at_log = [survival for survival, node in ranked if node.position == 1]
    assert sum(at_log) == pytest.approx(1.0)
    assert [survival for survival, node in ranked if node.position == 2] == pytest.approx([0.09, 0.09])


def kept_of(tree: DeviceTree) -> tuple[object, ...]:
    """What a device tree keeps of itself, so as not to walk it before every guess."""
    masses = round(tree.open_mass, 9), round(tree.sent_mass, 9)
    return tree.nodes, sorted(node.token for node in tree._unsent), tree.sent, *masses, tree.tip is None


@pytest.mark.parametrize("forks", [0.0, 0.05, 0.5])
@pytest.mark.parametrize("seed", range(12))
def test_what_a_tree_keeps_of_itself_is_what_a_walk_finds(seed: int, forks: float) -> None:
    """Lines are kept without walks: also those that have become one, or are none any more."""
    rng = random.Random(seed)
    tree, length = drawn(0), 1
    for _ in range(400):
        event = rng.random()
        tip = tree.tip
        if event < 0.6 and tip is not None and tree.nodes < 30:
            count = 2 if rng.random() < forks else 0 if rng.random() < 0.03 else 1
            tree.grow(tip, range(count), [0.6, 0.3][:count], [0.6, 0.3][:count])
            node = tip
            tokens: list[int] = []
            while node.parent is not None:
                tokens.insert(0, node.token)
                node = node.parent
            assert tree.path(tip) == tokens
        elif event < 0.8:
            tree.flush()
        elif event < 0.98 or tip is None:
            new = [*tree.line, 0][: rng.randrange(1, 4)]
            if rng.random() < 0.2:
                new[-1] = 9
            tree.commit(length, new)
            length += len(new)
        else:
            tree.unsend()
        walked = copy.deepcopy(tree)
        walked._settle()
        assert kept_of(tree) == kept_of(walked)


@pytest.mark.parametrize("seed", range(20))
def test_the_best_tips_of_a_tree_are_the_best_of_a_walk(seed: int) -> None:
    rng = random.Random(seed)
    tree = DeviceTree([1, 2, 3], loyalty=rng.choice((0.6, 1.0)))
    for _ in range(rng.randrange(1, 30)):
        best = tree.tips(4)
        assert best[0] is tree.tip
        drawn = best[: rng.randrange(1, 5)]
        for tip in reversed(drawn):
            first = rng.uniform(0.5, 0.9)
            width = rng.choice((0, 1, 2, 2)) if tree.nodes else 2
            tree.grow(tip, [7, 8][:width], [first, 0.2][:width], [first, (1 - first) * rng.random()][:width])
        if rng.random() < 0.2:
            tree.commit(tree.length, tree.line[:1])
        found = tree.tips(4)
        if not found:
            return
        leaves = [node for node in (tree._root, *tree._all()) if node.children is None]
        rest = sorted((tree.value(leaf) for leaf in leaves if leaf is not tree.tip), reverse=True)
        assert [tree.value(tip) for tip in found[1:]] == pytest.approx(rest[:3])
        assert all(tree.path_to(tip) == tree.path(tip) for tip in found)
