"""A view as most tests of paces want it."""

from collections.abc import Sequence

from speculation.device_tree import DeviceTree, Node
from speculation.pace.base import Pace, View


def view(**changes: object) -> View:
    """Of a line, unless `nodes` says otherwise."""
    values = {
        "now_ms": 1000.0,
        "known_length": 9,
        "depth": 0,
        "nodes": changes.get("depth", 0),
        "unsent": 0,
        "unsent_age_ms": 0.0,
        "survival": 1.0,
        "value": 1.0,
        "open_mass": 1.0,
        "sent_mass": 1.0,
        "in_flight": False,
        "can_draft": True,
        "budget": 64,
    }
    return View(**(values | changes))  # type: ignore[arg-type]


def tip_of(tree: DeviceTree) -> Node:
    """Where guesses would be drawn next."""
    tip = tree.tip
    assert tip is not None
    return tip


def view_of(tree: DeviceTree, pace: Pace, **changes: object) -> View:
    """What a pace would see of a tree."""
    tree.lead, tree.typical = pace.lead_tokens, pace.typical
    tip = tip_of(tree)
    values = {
        "depth": tree.depth(tip),
        "nodes": tree.nodes,
        "unsent": tree.unsent,
        "survival": tree.survival(tip),
        "value": tree.value(tip),
        "open_mass": tree.open_mass,
        "sent_mass": tree.sent_mass,
    }
    return view(**(values | changes))


def draw(tree: DeviceTree, pace: Pace, draft_ms: float, confidences: Sequence[float]) -> None:
    """Guesses of these confidences at the tip."""
    tip = tip_of(tree)
    probabilities = pace.judge(confidences, tree.depth(tip), tree.survival(tip))
    count = len(probabilities)
    tree.grow(tip, range(count), confidences[:count], probabilities)
    pace.drafted(draft_ms, confidences[0])
