"""Decisions of the adaptive pace, one at a time. How good they are together is measured in the simulator."""

from speculation.device_tree import DeviceTree
from speculation.draft_tree import Outcome
from speculation.pace.adaptive import Adaptive
from speculation.pace.base import Action, News, Objective
from speculation.pace.experience import Experience
from tests.unit.views import draw, tip_of, view, view_of


def news(**changes: object) -> News:
    values = {
        "now_ms": 1000.0,
        "known_length": 9,
        "new_tokens": 1,
        "outcomes": (),
        "used": 1,
        "rtt_ms": 50.0,
        "forward_ms": 30.0,
        "queue_ms": 0.0,
    }
    return News(**(values | changes))  # type: ignore[arg-type]


def settled(draft_ms: float = 2.0, objective: Objective = Objective.LATENCY, **heard: object) -> Adaptive:
    """A pace that has heard the same for a while."""
    pace = Adaptive(objective)
    for _ in range(40):
        pace.drafted(draft_ms, 0.9)
        pace.heard(news(outcomes=(Outcome(0, 0.9, True), Outcome(1, 0.9, False)), new_tokens=2, **heard))
    return pace


def test_it_drafts_from_the_start_and_not_without_a_drafter_or_a_budget() -> None:
    pace = Adaptive()
    assert pace.next(view()) is Action.DRAFT
    assert pace.next(view(can_draft=False)) is Action.WAIT
    assert pace.next(view(budget=0)) is Action.WAIT


def test_it_stops_where_the_line_will_hardly_live() -> None:
    pace, tree = settled(), DeviceTree([1] * 9)
    while pace.next(view_of(tree, pace)) is Action.DRAFT:
        draw(tree, pace, 2.0, [0.2])
    assert 1 <= tree.nodes < 12


def test_a_longer_round_trip_makes_it_give_up_sooner() -> None:
    def depth_reached(rtt_ms: float) -> int:
        pace, tree = settled(rtt_ms=rtt_ms), DeviceTree([1] * 9)
        while tree.nodes < 64 and pace.next(view_of(tree, pace)) is Action.DRAFT:
            draw(tree, pace, 2.0, [0.5])
        return tree.nodes

    assert depth_reached(400) < depth_reached(50)


def test_it_sends_just_before_the_verifier_takes_what_has_arrived() -> None:
    pace = settled(rtt_ms=50.0)  # the verifier's step began 25 ms before the news came, at 975 ms, and takes 30
    heard_ms = 1000.0
    # A block sent at once lands 50 ms after that step began, so the step after it, at 60 ms, will take it.
    assert pace.next(view(now_ms=heard_ms, depth=1, unsent=1, open_mass=0.8)) is Action.DRAFT
    assert pace.next(view(now_ms=heard_ms + 6, depth=3, unsent=3, open_mass=0.5)) is Action.FLUSH


def test_a_second_guess_is_drawn_where_it_may_count_and_nowhere_else() -> None:
    pace = settled()
    assert len(pace.judge([0.5, 0.4], 0, 1.0)) == 2
    assert len(pace.judge([0.99, 0.004], 0, 1.0)) == 1
    assert len(pace.judge([0.5, 0.4], 12, 0.02)) == 1
    assert sum(pace.judge([0.9, 0.5, 0.5, 0.5], 0, 1.0)) <= 1
    assert len(Adaptive(width=1).judge([0.5], 0, 1.0)) == 1


def test_second_guesses_give_way_where_bytes_take_long_or_the_verifier_has_few_places() -> None:
    pace = settled()
    assert len(pace.judge([0.6, 0.1], 0, 1.0)) == 2
    pace.next(view(budget=6))
    assert len(pace.judge([0.6, 0.1], 0, 1.0)) == 1
    thin = settled()
    for size in range(40, 140, 4):
        thin.heard(news(rtt_ms=50 + size * 0.8, echoed_bytes=size))  # 10 kbps
    assert len(thin.judge([0.6, 0.1], 0, 1.0)) == 1


def test_a_device_with_time_left_draws_on_another_branch() -> None:
    pace, tree = settled(rtt_ms=100.0), DeviceTree([1] * 9)
    parted = set()
    while tree.nodes < 64 and pace.next(view_of(tree, pace)) is Action.DRAFT:
        if (tip := tip_of(tree)).parent is not None and tip.rank:
            parted.add(tip.parent.position)
        draw(tree, pace, 2.0, [0.6, 0.3])
    assert parted, "it went back to a second guess"
    assert len(tree.line) > 5, "after the first ones were drawn far enough to count"


def test_it_asks_for_patience_only_where_guesses_land_soon() -> None:
    assert settled(rtt_ms=0.5, draft_ms=2.0, forward_ms=100.0).patience_ms > 0
    assert settled(rtt_ms=100.0, draft_ms=2.0, forward_ms=100.0).patience_ms == 0
    assert settled(rtt_ms=0.5, draft_ms=80.0, forward_ms=100.0).patience_ms == 0


def test_it_rests_when_nothing_is_ever_used_and_wakes_up_again() -> None:
    pace = Adaptive()
    actions = []
    for _ in range(400):
        if pace.next(view()) is Action.DRAFT:
            pace.drafted(40.0, 0.9)
            actions.append(True)
        else:
            actions.append(False)
        pace.heard(news(used=0, outcomes=(Outcome(0, 0.9, True),), new_tokens=2))
    resting = actions.index(False)
    assert pace.patience_ms == 0
    assert True in actions[resting:]
    assert sum(actions) < 150


def test_a_lost_drafter_takes_its_wish_for_patience_back() -> None:
    pace = settled(rtt_ms=0.5, forward_ms=100.0)
    pace.reset()
    assert pace.patience_ms == 0


def test_what_a_session_measured_the_next_one_knows() -> None:
    experience = Experience()
    first = Adaptive(experience=experience)
    for _ in range(40):
        first.drafted(2.0, 0.9)
        first.heard(news(outcomes=(Outcome(0, 0.9, False),), rtt_ms=80.0))
    second = Adaptive(experience=experience)
    assert second.known.rtt.median_ms == 80
    assert second.known.calibration.typical < 0.4


def test_the_verifier_waits_longer_the_more_a_forward_is_worth() -> None:
    def patience_ms(objective: Objective) -> int:
        return settled(objective=objective, rtt_ms=60.0, now_ms=1000.0).patience_ms

    assert patience_ms(Objective.LATENCY) <= patience_ms(Objective.BALANCED) <= patience_ms(Objective.CAPACITY)
    assert patience_ms(Objective.CAPACITY) > 60


def test_an_answer_that_fell_behind_streaming_waits_for_nothing() -> None:
    for objective in Objective:
        pace = settled(objective=objective, rtt_ms=0.5, forward_ms=100.0)
        assert pace.patience_ms > 0
        pace.heard(news(now_ms=60_000.0, forward_ms=100.0, rtt_ms=0.5))
        assert pace.patience_ms == 0


def test_nothing_is_asked_of_the_verifier_before_anything_was_measured() -> None:
    pace = Adaptive(Objective.CAPACITY)
    pace.heard(news(rtt_ms=None))
    assert pace.patience_ms == 0


def test_a_slow_uplink_makes_guesses_dearer() -> None:
    pace = settled(draft_ms=2.0)
    for size in range(40, 140, 4):
        pace.heard(news(rtt_ms=50 + size * 0.8, echoed_bytes=size))  # 10 kbps
    assert pace.known.guess_ms > 2.0 + 2.0


def test_the_rest_of_a_step_that_guesses_waited_for_is_no_part_of_streamings_time() -> None:
    patient = settled(objective=Objective.CAPACITY, rtt_ms=60.0, queue_ms=20.0)
    assert patient.patience_ms > 0
    assert patient.known.step.median_ms == 30
    full = settled(objective=Objective.CAPACITY, rtt_ms=60.0, queue_ms=45.0)
    assert full.patience_ms > 0
    assert full.known.step.median_ms == 45
    unwaiting = settled(draft_ms=100.0, rtt_ms=400.0, queue_ms=20.0)
    assert unwaiting.patience_ms == 0
    assert unwaiting.known.step.median_ms == 50


def test_a_verifier_that_guesses_by_itself_is_further_ahead() -> None:
    plain = settled(rtt_ms=90.0)
    quick = settled(rtt_ms=90.0)
    for _ in range(40):
        plain.heard(news(rtt_ms=90.0, used=0, new_tokens=1))
        quick.heard(news(rtt_ms=90.0, used=0, new_tokens=3, own=2))
    assert quick.known.fill_tokens > 2.9 > plain.known.fill_tokens == 1.0
    plain.patience_ms = quick.patience_ms = 0
    assert quick.lead_tokens > 2.9 * plain.lead_tokens


def test_a_device_does_not_have_a_verifier_wait_that_is_quicker_alone() -> None:
    link = {"draft_ms": 5.0, "rtt_ms": 10.0}
    assert settled(**link).patience_ms > 0  # type: ignore[arg-type]
    pace = settled(**link)  # type: ignore[arg-type]
    for _ in range(60):
        pace.drafted(5.0, 0.9)
        pace.heard(news(rtt_ms=10.0, used=0, new_tokens=6, own=5, outcomes=(Outcome(0, 0.9, True),)))
    assert pace.patience_ms == 0


def test_a_step_that_the_device_was_right_in_says_nothing_of_what_the_verifier_does_without_it() -> None:
    pace = settled(rtt_ms=20.0)
    for _ in range(60):
        pace.heard(news(rtt_ms=20.0, used=0, new_tokens=6, own=5))
    right = tuple(Outcome(depth, 0.9, True) for depth in range(5))
    for _ in range(200):
        pace.heard(news(rtt_ms=20.0, used=5, new_tokens=6, own=0, outcomes=right))
    assert pace.known.fill_tokens > 5


def test_it_draws_at_as_many_tips_at_once_as_are_worth_their_time() -> None:
    """A guess takes 2 ms, one more tip .5 ms: it must be worth a quarter of the mean before it."""
    pace = settled(draft_ms=2.0)
    for _ in range(40):
        pace.drafted(3.0, 0.9, 3)
    assert pace.known.tip_ms == 0.5
    assert pace.tips([0.8]) == 1
    assert pace.tips([0.8, 0.25, 0.22, 0.2]) == 3  # .4 per ms, so more than .2; then .42, .423
    assert pace.tips([0.8, 0.19]) == 1
    assert pace.tips([0.04, 0.021, 0.019]) == 2  # nothing is drawn that is worth less than 2 %


def test_a_device_whose_tips_take_as_long_as_guesses_draws_at_one() -> None:
    pace = settled(draft_ms=2.0)
    for _ in range(40):
        pace.drafted(4.0, 0.9, 2)
    assert pace.tips([0.8, 0.7]) == 1
    assert pace.known.draft.median_ms == 2.0  # which only evaluations of one tip tell
