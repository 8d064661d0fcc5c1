"""Small helpers around SimPy's clock."""

from __future__ import annotations

from collections.abc import Callable

from simpy import Environment, Event
from simpy.events import Timeout


def after(env: Environment, delay_ms: float, action: Callable[[], object]) -> None:
    """Do something later. A bare event with a callback costs a third of a process."""
    event = Timeout(env, delay_ms)
    assert event.callbacks is not None

    def call(_event: Event) -> None:
        action()

    event.callbacks.append(call)


class Bell:
    """Wakes one process that waits for something to come in. Rung while nobody waits, it is not heard."""

    def __init__(self, env: Environment) -> None:
        self._env = env
        self._event: Event | None = None

    def wait(self) -> Event:
        """What to yield until the bell rings."""
        self._event = self._env.event()
        return self._event

    def ring(self) -> None:
        """Wake who waits."""
        if self._event is not None:
            self._event.succeed()
            self._event = None
