"""The thread on which a model draws the verifier's own guesses: sessions wait for it a while, and then go on without.

A model that hangs must not hang the target. While a call is under way nothing else is asked of the model, not even to
free a sequence; when the call comes back, all goes on as before.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from cloud_verifier.guessing.base import Guesser
from cloud_verifier.log_redaction import log_failure
from cloud_verifier.scheduling.engine_thread import EngineThread

log = logging.getLogger(__name__)

PATIENCE_S = 1.0  # at least
PATIENCE_STEPS = 20  # of the target: guesses that take longer are worth nothing

Draw = Callable[[Callable[[], bool]], None]  # is told how to ask whether anybody still waits


class GuessThread:
    """Draws, for one scheduler."""

    def __init__(self) -> None:
        self._thread = EngineThread(PATIENCE_S, name="guesses")
        self._under_way: asyncio.Future[None] | None = None
        self._closing: list[Guesser] = []
        self._left = False  # with a call under way for which nobody will look again

    @property
    def busy(self) -> bool:
        """Whether a call is under way that was not waited for to its end."""
        if self._left or self._under_way is None or not self._under_way.done():
            return self._left or self._under_way is not None
        self._under_way = None
        log.warning("guesses of the verifier's own are drawn again")
        closing, self._closing = self._closing, []
        for guesser in closing:
            self.close(guesser)
        return False

    async def draw(self, work: Draw, step_s: float) -> None:
        """Do it, and wait for it as long as it may be worth. Call it only if not `busy`. step_s: of the target."""
        waiting = True
        drawn = self._thread.run(lambda: work(lambda: waiting), 0)
        await asyncio.wait([drawn], timeout=max(PATIENCE_S, PATIENCE_STEPS * step_s))
        if drawn.done():
            drawn.result()
            return
        waiting = False
        self._under_way = drawn
        log.warning("guesses of the verifier's own do not come; sessions go on without, and no more are asked for")

    def close(self, guesser: Guesser) -> None:
        """Free what a guesser holds, once nothing is under way."""
        if self.busy:
            self._closing.append(guesser)
            return
        try:
            guesser.close()
        except Exception as error:  # a place is lost; the other sessions must go on
            log_failure(log, "a guesser could not be closed", error)

    def end(self) -> None:
        """Draw no more, and free nothing more of a model that has not come back."""
        self._left = not self._thread.end()
