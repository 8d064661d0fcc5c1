"""What a device has measured. Answers of one client share it, so that only the first begins with guesswork."""

from __future__ import annotations

from speculation.pace.base import News
from speculation.pace.estimators import Calibration, TransferTime, Window

LEARN = 0.1  # how much of what a step wrote without the device counts for the next
GUESS_BYTES = 4  # on the wire: an id and a confidence


class Experience:
    """rtt: round trips. step: of the verifier, queueing included. draft: to draw a guess. Times in milliseconds.

    fill_tokens: what a step writes without the device: one, and the guesses of the verifier's own.
    ahead_ms: how far the latest answer was ahead of plain streaming when it was last heard of.
    """

    def __init__(self) -> None:
        self.rtt, self.step, self.draft = Window(16, 50.0), Window(16, 30.0), Window(32, 5.0)
        self._tips = 1.0  # drawn at in an evaluation, lately
        self._tip_share = Window(32, 0.4)  # of what one tip takes alone
        self.uplink = TransferTime()
        self.calibration = Calibration()
        self.ahead_ms = 0.0
        self.fill_tokens = 1.0

    def heard(self, news: News, *, waited: bool = False) -> None:
        """Take what a commit tells. waited: whether the verifier may have waited for guesses before that step.

        A full verifier serves a session every other step or so, and its queue is part of what a token takes. But
        guesses that a verifier waited for land in the midst of others' steps: the rest of such a step is the price of
        waiting, which streaming, ready whenever a step begins, does not pay.
        """
        if news.rtt_ms is not None:
            self.rtt.add(news.rtt_ms)
            if news.echoed_bytes:
                self.uplink.add(news.echoed_bytes, news.rtt_ms)
        if news.forward_ms > 0:
            queue_ms = max(0.0, news.queue_ms - news.forward_ms) if waited else news.queue_ms
            self.step.add(news.forward_ms + queue_ms)
        if not news.used:  # or else own guesses went on where the device's ended
            self.fill_tokens += LEARN * (1 + news.own - self.fill_tokens)
        for outcome in news.outcomes:
            self.calibration.learn(outcome)

    def drafted(self, draft_ms: float, tips: int) -> None:
        """Guesses were drawn at so many tips at once."""
        self._tips += LEARN * (tips - self._tips)
        if tips == 1:
            self.draft.add(draft_ms)
        else:
            self._tip_share.add((draft_ms / self.draft.median_ms - 1) / (tips - 1))

    @property
    def tip_ms(self) -> float:
        """What one more tip adds to an evaluation."""
        return max(0.0, self._tip_share.median_ms) * self.draft.median_ms

    @property
    def draw_ms(self) -> float:
        """What a place of a tree takes to be drawn at, several at once as far as they are; and to be sent."""
        alone_ms, tips = self.draft.median_ms, self._tips
        return (alone_ms + (tips - 1) * self.tip_ms) / tips + GUESS_BYTES * self.uplink.ms_per_byte

    @property
    def measured(self) -> bool:
        """Whether there is more than priors."""
        return self.rtt.measured and self.draft.measured

    @property
    def token_ms(self) -> float:
        """What a token takes without the device."""
        return self.step.median_ms / self.fill_tokens

    @property
    def guess_ms(self) -> float:
        """What one more guess takes: to draw it, and to send it."""
        return self.draft.median_ms + GUESS_BYTES * self.uplink.ms_per_byte
