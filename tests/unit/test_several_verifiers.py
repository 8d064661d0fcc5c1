"""Many devices against several verifiers, full ones, and those that choose for themselves how patient to be."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import pytest

from cloud_verifier.scheduling.token_budget import Want
from netlab.simulator.device import DeviceSettings
from netlab.simulator.link import Link
from netlab.simulator.pair import Answer, heavy_headed, independent
from netlab.simulator.run import Assignment, Played, Rider, simulate
from netlab.simulator.verifier import StepTime, VerifierSettings
from speculation.pace.base import BoundedLookahead, Objective, Streaming

STEP = StepTime(30)


def ride(count: int, *, alpha: float = 0.8, tokens: int = 60, gap_ms: float = 0.0) -> list[Rider]:
    answers = independent(alpha).answers(count, tokens, 2)
    return [
        Rider(answer, Link.of_rtt(20), BoundedLookahead(), starts_ms=gap_ms * i) for i, answer in enumerate(answers)
    ]


def test_somebody_has_to_verify() -> None:
    with pytest.raises(ValueError, match="0 verifiers"):
        simulate(ride(1), verifiers=0)


def test_round_robin_deals_sessions_out_evenly() -> None:
    played = simulate(ride(8), VerifierSettings(STEP), verifiers=3)
    assert list(played.sessions) == [3, 3, 2]
    assert all(result.same_words for result in played.results)


def test_sessions_go_where_fewest_are() -> None:
    """Short and long answers by turns: dealt out, all long ones would meet."""
    long, short = independent(0.8).answers(1, 200, 2)[0], independent(0.8).answers(1, 10, 2)[0]
    step = StepTime(20, per_session_ms=10)

    def play(assignment: Assignment) -> Played:
        riders = [
            Rider((long, short)[i % 2], Link.of_rtt(10), Streaming(), starts_ms=500.0 * i, prompt_tokens=4)
            for i in range(8)
        ]
        return simulate(riders, VerifierSettings(step), 2, assignment)

    dealt, balanced = play(Assignment.ROUND_ROBIN), play(Assignment.LEAST_SESSIONS)
    assert list(dealt.sessions) == [4, 4]
    assert max(r.total_ms for r in balanced.results) < max(r.total_ms for r in dealt.results)


def test_two_verifiers_do_the_work_of_one_and_keep_the_devices_apart() -> None:
    crowded = VerifierSettings(StepTime(20, per_session_ms=5))
    one, two = simulate(ride(8), crowded), simulate(ride(8), crowded, verifiers=2)
    assert sum(r.total_ms for r in two.results) < sum(r.total_ms for r in one.results)


@pytest.mark.parametrize("step_tokens", [1, 3, 8, 20])
def test_a_tiny_budget_trims_and_slows_and_never_changes_a_word(step_tokens: int) -> None:
    played = simulate(ride(8), VerifierSettings(STEP, step_tokens=step_tokens, chunk_tokens=16))
    assert all(result.same_words for result in played.results)
    assert sum(result.trimmed_tokens for result in played.results) > 0
    slowest, fastest = (f(r.total_ms for r in played.results) for f in (max, min))
    assert slowest < 2.5 * fastest  # nobody starves


def test_a_full_verifier_makes_more_of_good_drafters_than_of_bad_ones() -> None:
    good, bad = independent(0.95).answers(4, 80, 2), independent(0.3).answers(4, 80, 2)
    riders = [Rider(answer, Link.of_rtt(10), BoundedLookahead(16, 0.0)) for answer in (*good, *bad)]
    played = simulate(riders, VerifierSettings(STEP, step_tokens=24))
    used = [result.accepted_tokens / result.verified_tokens for result in played.results]
    assert min(used[:4]) > max(used[4:])
    checked = [result.verified_tokens / result.target_forwards for result in played.results]
    assert min(checked[:4]) > max(checked[4:])


def first_come(wants: Sequence[Want], room: int, chunk: int) -> list[int]:
    """What a scheduler without a budget policy does: everybody takes what there is."""
    given = []
    for want in wants:
        given.append(min(room, min(want.pending, chunk) + (want.guesses if want.pending <= chunk else 0)))
        room -= given[-1]
    return given


def test_survival_first_is_better_than_first_come_first_served(monkeypatch: pytest.MonkeyPatch) -> None:
    """Good and bad drafters, near and far: better on average, and for the worst-off, who stay ahead of streaming."""

    def play() -> list[float]:
        alphas, rtts_ms = (0.9, 0.6, 0.8, 0.4), (10, 30, 60, 100)
        riders = [
            Rider(
                heavy_headed(alphas[i % 4]).answers(1, 300, seed=i)[0],
                Link.of_rtt(rtts_ms[i // 4 % 4]),
                BoundedLookahead(),
                DeviceSettings(4),
                starts_ms=3.0 * i,
            )
            for i in range(16)
        ]
        return [result.ms_per_token for result in simulate(riders, VerifierSettings(STEP, step_tokens=32)).results]

    ours = play()
    monkeypatch.setattr("netlab.simulator.verifier.allocate", first_come)
    theirs = play()
    assert statistics.mean(ours) < 0.95 * statistics.mean(theirs)
    assert max(ours) <= 30 < max(theirs)


def test_devices_draft_less_for_a_verifier_that_can_use_less() -> None:
    free = simulate(ride(8, alpha=0.95, tokens=300), VerifierSettings(STEP))
    full = simulate(ride(8, alpha=0.95, tokens=300), VerifierSettings(STEP, step_tokens=16))

    def per_token(played: Played) -> float:
        return sum(r.drafted_tokens for r in played.results) / sum(r.tokens for r in played.results)

    assert per_token(full) < 0.85 * per_token(free)


def led(answer: Answer, rtt_ms: float, objective: Objective) -> Rider:
    """A device that leaves its patience to the verifier."""
    pace = BoundedLookahead()
    pace.objective = objective
    return Rider(answer, Link.of_rtt(rtt_ms), pace, DeviceSettings(3), leaves_patience=True)


def test_a_patient_verifier_trades_time_for_forwards_by_the_objective() -> None:
    answer = independent(0.85).answers(1, 400, 2)[0]

    def play(objective: Objective, step_tokens: int = 512) -> tuple[int, float, float]:
        settings = VerifierSettings(STEP, step_tokens=step_tokens, max_lookahead=32)
        (result,) = simulate([led(answer, 60, objective)], settings).results
        assert result.same_words
        return result.target_forwards, result.total_ms, result.waited_ms

    latency, balanced, capacity = (play(objective) for objective in Objective)
    assert latency[2] == 0
    assert capacity[0] < 0.8 * latency[0]
    assert capacity[1] > latency[1]
    assert capacity[0] < balanced[0] <= latency[0]  # an idle engine is hardly waited with
    assert balanced[1] < capacity[1]
    busy = play(Objective.BALANCED, step_tokens=16)
    assert busy[0] < balanced[0]


def test_waiting_for_a_device_that_guesses_nonsense_ends_soon() -> None:
    answer = independent(0.0).answers(1, 200, 2)[0]

    def total_ms(objective: Objective) -> float:
        return simulate([led(answer, 200, objective)], VerifierSettings(STEP)).results[0].total_ms

    assert total_ms(Objective.CAPACITY) < 1.35 * total_ms(Objective.LATENCY)
