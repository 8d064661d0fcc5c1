import random

import pytest

from speculation.acceptance import shared_noise
from speculation.line import MAX_LOOKAHEAD, UNSAID_CONFIDENCE, DeviceLine, LineError, Outcome, VerifierLine


def line(*log: int) -> VerifierLine:
    return VerifierLine(list(log))


def test_acceptance_is_the_common_prefix() -> None:
    assert shared_noise([], [7]) == 0
    assert shared_noise([1, 2, 3], [1, 2, 3, 4]) == 3
    assert shared_noise([1, 9, 3], [1, 2, 3, 4]) == 1
    with pytest.raises(ValueError, match="need 3 choices"):
        shared_noise([1, 2], [1, 2])


def test_a_draft_at_the_end_of_the_log_is_on_the_path() -> None:
    subject = line(1, 2)
    subject.draft(2, [3, 4], known_length=2, limit=8)
    assert subject.guesses == [3, 4]
    assert subject.commit([3]) == 1
    assert subject.guesses == [4]


def test_the_part_the_log_agrees_with_is_spent_and_the_rest_counts() -> None:
    subject = line(1, 2, 3)
    subject.draft(2, [3, 4, 5], known_length=2, limit=8)
    assert subject.guesses == [4, 5]


def test_a_draft_the_log_contradicts_is_dead_until_overwritten() -> None:
    subject = line(1, 2, 3)
    subject.draft(2, [9, 4, 5], known_length=2, limit=8)
    assert subject.guesses == []
    subject.draft(5, [6], known_length=2, limit=8)  # goes on with the dead line
    assert subject.guesses == []
    subject.draft(2, [3, 7], known_length=2, limit=8)  # overwrites the disagreement
    assert subject.guesses == [7]


def test_a_draft_that_knows_the_correction_revives_the_line() -> None:
    subject = line(1)
    subject.draft(1, [5, 6], known_length=1, limit=8)
    subject.commit([2])
    assert subject.guesses == []
    subject.draft(3, [7], known_length=1, limit=8)
    assert subject.guesses == []
    subject.draft(2, [8], known_length=2, limit=8)
    assert subject.guesses == [8]


def test_a_later_draft_goes_on_with_the_line_and_overwrites_from_its_start() -> None:
    subject = line(1)
    subject.draft(1, [2, 3], known_length=1, limit=8)
    subject.draft(3, [4, 5], known_length=1, limit=8)
    assert subject.guesses == [2, 3, 4, 5]
    subject.draft(2, [9], known_length=1, limit=8)
    assert subject.guesses == [2, 9]


def test_a_gap_is_dropped_and_counted() -> None:
    subject = line(1)
    subject.draft(3, [4, 5], known_length=1, limit=8)
    assert subject.guesses == []
    assert subject.dropped == 2


def test_the_limit_bounds_the_line() -> None:
    subject = line(1)
    subject.draft(1, [2, 3, 4], known_length=1, limit=2)
    assert subject.guesses == [2, 3]
    assert subject.dropped == 1


def test_a_draft_of_any_length_is_cut_to_what_the_line_may_hold_and_counted() -> None:
    subject = line(1, 2, 3)
    subject.draft(1, [2, 3, 4, 5, 6, 7], known_length=1, limit=2, confidences=[0.5] * 6)
    assert subject.guesses == [4, 5]
    assert len(subject.confidences) == len(subject.depths) == 2
    assert (subject.drafted, subject.dropped) == (6, 4)
    assert subject.ends_before(7)
    subject.draft(5, [8], known_length=1, limit=2)  # goes on past the end of what is held
    assert subject.guesses == [4, 5]
    assert (subject.drafted, subject.dropped) == (7, 5)
    subject.draft(2**32 - 1, [8], known_length=1, limit=2)
    assert subject.guesses == [4, 5]
    subject.draft(3, [4] * 10_000_000, known_length=3, limit=MAX_LOOKAHEAD * 2)
    assert len(subject.guesses) == MAX_LOOKAHEAD
    assert subject.dropped == 6 + 10_000_000 - MAX_LOOKAHEAD


def test_a_line_that_the_log_contradicts_is_not_cut_short() -> None:
    subject = line(1)
    subject.draft(1, [2, 3, 4], known_length=1, limit=2)
    assert subject.ends_before(4)
    subject.commit([9])
    assert not subject.ends_before(4), "the device hears so by the commit"


def test_a_device_trims_its_line_to_what_another_verifier_takes() -> None:
    subject = DeviceLine([1])
    for token in (2, 3, 4):
        subject.extend(token, 0.5)
    subject.flush()
    subject.trim(2)
    assert (subject.guesses, subject.sent, subject.end) == ([2, 3], 2, 3)
    subject.unsend()
    assert subject.flush() == (1, [2, 3], [0.5, 0.5])
    subject.extend(5, 0.5)
    assert subject.depths == [0, 1, 2]
    subject.trim(8)
    assert subject.guesses == [2, 3, 5]


def test_a_device_cannot_know_more_than_there_is() -> None:
    with pytest.raises(LineError, match="has 1"):
        line(1).draft(1, [2], known_length=2, limit=8)


def test_a_log_that_overtakes_the_line_keeps_later_drafts_useful() -> None:
    subject = line(1)
    subject.draft(1, [2], known_length=1, limit=8)
    subject.commit([2, 3])
    subject.draft(2, [3, 4], known_length=1, limit=8)  # drawn before the device heard of 2 and 3
    assert subject.guesses == [4]


def test_device_line_spends_what_the_log_confirms() -> None:
    subject = DeviceLine([1])
    subject.extend(2, 0.5)
    subject.extend(3, 0.5)
    assert subject.flush() == (1, [2, 3], [0.5, 0.5])
    subject.extend(4, 0.5)
    assert subject.unsent == 1
    assert subject.survival() == 0.125
    assert subject.commit(1, [2]) == ([2], 1, (Outcome(0, 0.5, True),))
    assert (subject.guesses, subject.unsent, subject.end) == ([3, 4], 1, 4)
    assert subject.flush() == (3, [4], [0.5])


def test_device_line_is_erased_by_a_contradiction_and_by_being_overtaken() -> None:
    subject = DeviceLine([1])
    subject.extend(2, 0.9)
    assert subject.commit(1, [7]) == ([7], 0, (Outcome(0, 0.9, False),))
    assert subject.guesses == []
    subject.extend(8, 0.9)
    assert subject.commit(2, [8, 9]) == ([8, 9], 1, (Outcome(0, 0.9, True),))
    assert subject.guesses == []


def test_device_line_takes_repeats_and_refuses_gaps_and_other_logs() -> None:
    subject = DeviceLine([1, 2])
    assert subject.commit(1, [2, 3]) == ([3], 0, ())
    assert subject.commit(1, [2, 3]) == ([], 0, ())
    with pytest.raises(LineError, match="starts at 5"):
        subject.commit(5, [1])
    with pytest.raises(LineError, match="another log"):
        subject.commit(1, [9])


def test_confidences_and_depths_stay_with_their_guesses() -> None:
    subject = line(9, 9)
    subject.draft(2, [1, 2, 3], 2, 64, [0.1, 0.2, 0.3])
    subject.draft(5, [4], 2, 64)
    assert subject.confidences == [0.1, 0.2, 0.3, UNSAID_CONFIDENCE]
    assert subject.depths == [0, 1, 2, 3]
    subject.commit([1])
    subject.draft(4, [7, 8], 2, 64, [0.7, 0.8])
    assert (subject.guesses, subject.confidences, subject.depths) == ([2, 7, 8], [0.2, 0.7, 0.8], [1, 2, 3])
    subject.draft(2, [1, 2, 5, 6], 2, 2, [0.1, 0.2, 0.5, 0.6])
    assert (subject.guesses, subject.confidences, subject.depths) == ([2, 5], [0.2, 0.5], [1, 2])
    subject.commit([3])
    assert subject.guesses == subject.confidences == subject.depths == []


@pytest.mark.parametrize("seed", range(60))
def test_any_traffic_leaves_the_log_as_the_target_writes_it(seed: int) -> None:
    """Random delays, losses and wrong guesses on the way: words never change, the line never lies."""
    rng = random.Random(seed)
    truth = [rng.randrange(4) for _ in range(120)]
    device, verifier = DeviceLine([0]), VerifierLine([0])
    up: list[tuple[int, list[int], int, list[float]]] = []
    down: list[tuple[int, list[int]]] = []
    told = 1
    while verifier.length <= 100:
        event = rng.random()
        if event < 0.4:
            for _ in range(rng.randrange(1, 4)):
                right = truth[device.end - 1] if device.end <= len(truth) else 0
                device.extend(right if rng.random() < 0.8 else rng.randrange(4), 0.8)
        elif event < 0.55:
            start, tokens, confidences = device.flush()
            up.append((start, tokens, device.length, confidences if seed % 2 else []))
        elif event < 0.7 and up:
            start, tokens, known, confidences = up.pop(0)
            verifier.draft(start, tokens, known, 16, confidences)
        elif event < 0.85:
            guesses = verifier.guesses
            choices = truth[verifier.length - 1 : verifier.length + len(guesses)]
            accepted = shared_noise(guesses, choices)
            assert verifier.commit(choices[: accepted + 1]) >= accepted
        elif event < 0.97:
            down.append((told, verifier.log[told:]))
            told = verifier.length
        elif event < 0.985:  # the link is cut: what is under way is lost, the verifier tells again from what is known
            up.clear()
            down.clear()
            verifier.forget()
            device.unsend()
            told = device.length
        if down and rng.random() < 0.5:
            device.commit(*down.pop(0))
        assert verifier.log[1:] == truth[: verifier.length - 1]
        assert device.log == verifier.log[: device.length]
        assert len(verifier.guesses) == len(verifier.confidences) == len(verifier.depths) <= 16


def test_a_block_of_tokens_is_written_as_one_by_one() -> None:
    rng = random.Random(5)
    for _ in range(300):
        at_once, singly = line(7, 7), line(7, 7)
        guesses = [rng.randint(1, 3) for _ in range(rng.randint(0, 6))]
        tokens = [rng.randint(1, 3) for _ in range(rng.randint(1, 8))]
        for subject in (at_once, singly):
            subject.draft(2, guesses, 2, 64)
        assert at_once.commit(tokens) == sum(singly.commit([token]) for token in tokens)
        assert at_once == singly
