from speculation.draft_tree import Outcome
from speculation.pace.rest import MAX_REST_TOKENS, Rest

WRONG, RIGHT = Outcome(0, 0.9, False), Outcome(0, 0.9, True)


def tokens_until_rest(rest: Rest, acceptance: float, lead_tokens: float) -> int:
    tokens = 0
    while not rest.resting:
        rest.drafted()
        rest.heard(1, 0, acceptance, lead_tokens)
        tokens += 1
    return tokens


def test_a_useless_drafter_rests_longer_each_time() -> None:
    rest, rests = Rest(48), []
    for _ in range(8):
        tokens_until_rest(rest, 0.0, 3.0)
        rests.append(rest.left_tokens)
        while rest.resting:
            rest.heard(4, 0, 0.0, 3.0)
    assert rests[:4] == [48, 96, 192, 384]
    assert rests[-1] == MAX_REST_TOKENS


def test_one_used_guess_makes_hope() -> None:
    rest = Rest(48)
    for _ in range(20):
        for _ in range(40):
            rest.drafted()
            rest.heard(1, 0, 0.5, 1.0)
        rest.heard(1, 1, 0.5, 1.0)
    assert not rest.resting


def test_far_away_it_takes_longer_to_lose_hope_unless_there_is_none() -> None:
    assert tokens_until_rest(Rest(48), 0.85, 1.0) == 48
    assert tokens_until_rest(Rest(48), 0.85, 10.0) > 100
    assert tokens_until_rest(Rest(48), 0.2, 10.0) == 48


def test_who_does_not_draft_is_not_tired() -> None:
    rest = Rest(48)
    rest.heard(500, 0, 0.0, 3.0)
    assert not rest.resting


def test_guesses_that_are_wrong_one_after_the_other_are_given_up_early_and_earlier_the_next_time() -> None:
    rest, lines = Rest(48), []
    for _ in range(2):
        lines.append(0)
        while not rest.resting:
            rest.drafted()
            rest.heard(1, 0, 0.85, 10.0, [WRONG])
            lines[-1] += 1
        while rest.resting:
            rest.heard(4, 0, 0.85, 10.0)
    assert lines == [16, 8]


def test_guesses_that_are_right_but_late_are_not_wrong() -> None:
    rest = Rest(48)
    for i in range(47):
        rest.drafted()
        rest.heard(1, 0, 0.85, 1.0, [RIGHT] if i % 12 == 0 else [WRONG] if i % 2 else [])
    assert not rest.resting
