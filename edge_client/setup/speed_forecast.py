"""How fast answers would come with a drafter, told from its hits on recorded answers. Pure: figures in, figures out.

Words do not depend on the drafter, so a drafter that reads a recorded answer and guesses at each of its tokens is right
exactly where it would be right while riding. An answer is then a row of hits, cut into lines by each miss.
"""

from __future__ import annotations

from collections.abc import Sequence

from speculation.pace.adaptive import BLOCKS
from speculation.pace.plan import Conditions, Floats, Plans, survival_curve

DEPTHS = 64
_PRIOR_WEIGHT = 6.0  # as `speculation.pace.estimators.Calibration` has it
_MARGIN_MS = 1.0


def survivals(answers: Sequence[Sequence[bool]]) -> Floats:
    """Probabilities that the first 0, 1, 2... guesses of a line are right. answers: hits, token by token.

    Of each depth its own rate, pulled towards the rate of all where few lines have reached it; an answer's last line
    ends with the answer, not with a miss.
    """
    right, tried = [0.0] * DEPTHS, [0.0] * DEPTHS
    for hits in answers:
        depth = 0
        for hit in hits:
            at = min(depth, DEPTHS - 1)
            tried[at] += 1
            right[at] += hit
            depth = depth + 1 if hit else 0
    mean = sum(right) / max(1.0, sum(tried))
    return survival_curve(
        [(hits + _PRIOR_WEIGHT * mean) / (trials + _PRIOR_WEIGHT) for hits, trials in zip(right, tried, strict=True)]
    )


def expected_ms_per_token(answers: Sequence[Sequence[bool]], draft_ms: float, rtt_ms: float, step_ms: float) -> float:
    """By the best way of riding there is; that of plain streaming, step_ms, if none is faster."""
    if not any(any(hits) for hits in answers):
        return step_ms
    now = Conditions(rtt_ms, step_ms, max(draft_ms, 1e-3), survivals(answers))
    plans = Plans.under(now, BLOCKS, _MARGIN_MS)
    return min(step_ms, float(plans.ms_per_token.min()))
