"""A view as most tests of paces want it."""

from speculation.pace.base import View


def view(**changes: object) -> View:
    values = {
        "now_ms": 1000.0,
        "known_length": 9,
        "depth": 0,
        "unsent": 0,
        "unsent_age_ms": 0.0,
        "survival": 1.0,
        "in_flight": False,
        "can_draft": True,
        "budget": 64,
    }
    return View(**(values | changes))  # type: ignore[arg-type]
