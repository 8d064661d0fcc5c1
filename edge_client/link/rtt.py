"""Round-trip time, from the device's own clock readings that the verifier echoes with its hold time."""

from __future__ import annotations

import statistics
from collections import deque


class RttEstimator:
    """The last samples and what they say. Times in milliseconds."""

    def __init__(self, samples: int = 64) -> None:
        self._samples: deque[float] = deque(maxlen=samples)

    def observe(self, now_us: int, echo_sent_at_us: int, hold_us: int) -> None:
        """Take an echo; one that makes no sense (no echo yet, or held longer than it took) is ignored."""
        if echo_sent_at_us and (rtt_us := now_us - echo_sent_at_us - hold_us) >= 0:
            self._samples.append(rtt_us / 1000)

    @property
    def latest_ms(self) -> float | None:
        """The last sample; None before the first."""
        return self._samples[-1] if self._samples else None

    @property
    def median_ms(self) -> float | None:
        """Median of the last samples; None before the first."""
        return statistics.median(self._samples) if self._samples else None
