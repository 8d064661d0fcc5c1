"""The oracle: the least time that any policy could take for an answer, knowing all hits and the link in advance.

One device, one verifier to itself, the rules of the line. The oracle may do what no device can: know where it will be
wrong, interrupt itself at any moment, send every guess at once and for free, and tell the verifier exactly how long to
wait. So no policy is faster, and the difference to the oracle is what not knowing costs.

Why a small search finds it. Let positions count within the answer, x be the log's length, d the time to draw a guess.

1. *A step never passes a miss.* A guess at a missed position is wrong and ends its line, so a step from x writes
   e + 1 - x tokens, where e is how far right guesses had come, and e <= m for the next missed position m. So some step
   ends at exactly m + 1, and what the device drew before that is spent or wrong: after it all starts afresh.
2. *The device never rests.* It can draw the guess at j once it knows or has rightly guessed everything before j. Each
   commit of a log of length c that reaches it at time s lets it begin at c; so its guess at j is drawn, at the
   earliest, at f + (j + 1) d, where f is the least s - c d over the commits since the last miss. More commits only
   lower f, and drawing early never hinders drawing later: one number says all about the device.
3. *The verifier.* When it is free, it may step with what has come or wait for the guess at e - 1, for any e. Waiting as
   long as a step of one token takes is no better than taking that step meanwhile: the log is longer, the guesses are
   the same, the verifier is free again in time. So only short waits are tried.
4. *Earlier and farther is better*: of two states at the same x, one with no greater time and no greater f takes no
   longer from there, because the link is first in, first out. All others are dropped.

With trees, of which the oracle would draw the right branch alone, a position is missed where none of the candidates is
right: see `Answer.within`.

With jitter or a trace, a message takes the least time that the link could give anything sent at that moment or later;
the oracle is then a bound rather than a schedule. So it is for a device whose speed changes, for which the best speed
counts, and where reading tokens takes time, which it ignores.
"""

from __future__ import annotations

from dataclasses import dataclass

from netlab.simulator.link import Link
from netlab.simulator.pair import Answer
from netlab.simulator.run import PROMPT_TOKENS
from netlab.simulator.verifier import VerifierSettings

TIE_MS = 1e-6  # what arrives as the verifier becomes free is there in time, however the sums were rounded


@dataclass(frozen=True)
class Bound:
    """What the best conceivable run takes. target_forwards: of one such run."""

    tokens: int
    ttft_ms: float
    total_ms: float
    target_forwards: int

    @property
    def ms_per_token(self) -> float:
        """Mean over the tokens after the first."""
        return (self.total_ms - self.ttft_ms) / max(1, self.tokens - 1)


State = tuple[float, float, int]  # free at, f, forwards so far


def oracle(
    answer: Answer,
    link: Link,
    draft_ms: float,
    settings: VerifierSettings | None = None,
    prompt_tokens: int = PROMPT_TOKENS,
) -> Bound:
    """The least time for this answer over this link. Nothing is sent: the link's counters stay as they are."""
    settings = settings or VerifierSettings()
    up, down = link.up.delay.earliest_ms, link.down.delay.earliest_ms
    step_time, hits, tokens = settings.step_time, answer.hits, answer.tokens
    fill_ms = step_time(1, 1)
    free_ms = opened_ms = up(0.0)
    for begin in range(0, prompt_tokens, settings.chunk_tokens):
        free_ms += step_time(1, min(settings.chunk_tokens, prompt_tokens - begin))
    first_ms = down(free_ms)
    f = first_ms - draft_ms
    if hits[0]:
        f = min(f, down(opened_ms))  # the device may have begun when it knew the prompt alone
    states: list[list[State]] = [[] for _ in range(tokens + 1)]
    states[1] = [(free_ms, f, 1)]
    misses = _next_misses(answer)
    for x in range(1, tokens):
        miss = misses[x]
        end = min(miss, tokens - 1)
        for free_ms, f, forwards in _pareto(states[x]):
            e = x
            starts_ms = free_ms
            while True:
                done_ms = starts_ms + step_time(1, 1 + e - x)
                told = down(done_ms) - (e + 1) * draft_ms
                states[e + 1].append((done_ms, told if e == miss else min(f, told), forwards + 1))
                if e >= end or e - x >= settings.max_lookahead:
                    break
                e += 1
                arrival_ms = up(f + e * draft_ms)
                starts_ms = free_ms if arrival_ms <= free_ms + TIE_MS else arrival_ms
                if starts_ms - free_ms >= fill_ms:
                    break
        states[x] = []
    best = min(states[tokens])
    return Bound(tokens, first_ms, down(best[0]), best[2])


def least_forwards(answer: Answer) -> int:
    """The fewest target forwards for this answer, however long it takes: one for the prompt, one per run of hits."""
    return 1 + sum(not hit for hit in answer.hits[1 : answer.tokens - 1]) + (answer.tokens > 1)


def _next_misses(answer: Answer) -> list[int]:
    """For each position, the next one from it on that the drafter would get wrong."""
    result = [0] * answer.tokens
    miss = answer.tokens
    for position in reversed(range(answer.tokens)):
        if not answer.hits[position]:
            miss = position
        result[position] = miss
    return result


def _pareto(states: list[State]) -> list[State]:
    """Those that no other beats in both time and f."""
    kept: list[State] = []
    for state in sorted(states):
        if not kept or state[1] < kept[-1][1]:
            kept.append(state)
    return kept
