"""How long a device takes to answer a commit: what a verifier that waits for it has to wait."""

from __future__ import annotations

from speculation.pace.estimators import Window


class Turnaround:
    """From sending the commit that brought the log to some length to the first draft that knows of that length.

    One commit at a time is timed, as TCP times one segment: a sample per round trip is enough.
    """

    SAMPLES = 16

    def __init__(self) -> None:
        self._window = Window(self.SAMPLES, prior_ms=0.0)
        self._timed: tuple[int, float] | None = None  # log length and when the commit went out

    @property
    def late_ms(self) -> float:
        """The 95th percentile, and not more than twice the median: a device that rested once is no slow device.

        0 before the first sample.
        """
        return min(self._window.median_ms + self._window.spread_ms, 2 * self._window.median_ms)

    def sent(self, length: int, now_ms: float) -> None:
        """A commit that brings the device's log to this length goes out."""
        if self._timed is None:
            self._timed = (length, now_ms)

    def came(self, known_length: int, now_ms: float) -> None:
        """A draft came, drawn when the device knew so much of the log."""
        if self._timed is not None and known_length >= self._timed[0]:
            self._window.add(now_ms - self._timed[1])
            self._timed = None

    def forget(self) -> None:
        """The stream broke: the commit that is timed may have been lost. What was measured stands."""
        self._timed = None
