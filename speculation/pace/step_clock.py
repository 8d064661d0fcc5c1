"""What the device knows of the verifier's steps: when it will next take what has landed."""

from __future__ import annotations


class StepClock:
    """All times are milliseconds of the device's clock; rtt_ms and step_ms are today's best estimates."""

    def __init__(self) -> None:
        self._free_ms = 0.0  # when the verifier ends its present step, as far as is known
        self._taken_next = False  # whether something will have landed by then
        self._sent_for_ms = 0.0  # the step of a verifier that never waits which the last block was to catch
        self._blocks = 0  # sent to catch that one

    def heard(self, now_ms: float, rtt_ms: float, step_ms: float, *, goes_on: bool) -> None:
        """A commit came: a step ended half a round trip ago. goes_on: whether the next one began at once."""
        self._taken_next = False
        self._free_ms = now_ms - rtt_ms / 2 + (step_ms if goes_on else 0.0)

    def sent(self, now_ms: float, rtt_ms: float, step_ms: float, *, waits: bool) -> None:
        """A block leaves. waits: whether the verifier waits for it, if it has nothing else to do."""
        lands_ms = now_ms + rtt_ms / 2
        begins_ms = self.next_step_ms(now_ms, rtt_ms, step_ms)
        self._blocks = self.blocks_for(begins_ms, step_ms) + 1
        self._sent_for_ms = begins_ms
        self._taken_next = lands_ms < self._free_ms
        if waits and not self._taken_next:
            self._free_ms = lands_ms + step_ms

    def waited_ms(self, lands_ms: float, step_ms: float) -> float:
        """How long a waiting verifier has waited for what lands then; negative if it is still busy."""
        if lands_ms > self._free_ms and self._taken_next:
            self._free_ms += step_ms
            self._taken_next = False
        return lands_ms - self._free_ms

    def next_step_ms(self, now_ms: float, rtt_ms: float, step_ms: float) -> float:
        """When a verifier that never waits takes what is sent now."""
        lands_ms = now_ms + rtt_ms / 2
        return lands_ms + step_ms - (lands_ms - self._free_ms) % step_ms

    def blocks_for(self, begins_ms: float, step_ms: float) -> int:
        """How many blocks were sent to catch the step that begins then."""
        return 0 if begins_ms > self._sent_for_ms + step_ms / 2 else self._blocks
