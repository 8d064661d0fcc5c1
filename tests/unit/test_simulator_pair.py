"""Described and recorded pairs: do they have the figures they were made from?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from netlab.simulator import recording
from netlab.simulator.pair import Answer, DriftingPair, RecordedPair, SurvivalPair, heavy_headed, independent

MEASURED = [0.76, 0.62, 0.52, 0.445, 0.385, 0.336, 0.295, 0.26]


def survival(answers: list[Answer], depth: int) -> float:
    windows = [all(answer.hits[i : i + depth]) for answer in answers for i in range(answer.tokens - depth + 1)]
    return float(np.mean(windows))


@pytest.mark.parametrize("alpha", [0.5, 0.85, 1.0, 0.0])
def test_independent_hits(alpha: float) -> None:
    answers = independent(alpha).answers(4, 5000, 1)
    for depth in (1, 3):
        assert survival(answers, depth) == pytest.approx(alpha**depth, abs=0.015)


def test_a_measured_survival_is_reproduced() -> None:
    answers = SurvivalPair(MEASURED).answers(10, 5000, 1)
    for depth in (1, 2, 4, 8):
        assert survival(answers, depth) == pytest.approx(MEASURED[depth - 1], abs=0.012)


def test_heavy_headed_hits_come_in_runs() -> None:
    answers = heavy_headed(0.8).answers(6, 5000, 1)
    assert survival(answers, 1) == pytest.approx(0.8, abs=0.012)
    assert survival(answers, 8) > 0.8**8 + 0.03


def test_drifting_hits_get_rarer() -> None:
    answers = DriftingPair(0.9, 0.5).answers(20, 1000, 1)
    for begin, share in ((0, 0.88), (900, 0.52)):
        assert np.mean([a.hits[begin : begin + 100] for a in answers]) == pytest.approx(share, abs=0.03)


@pytest.mark.parametrize("pair", [independent(0.8, 0.4), heavy_headed(0.7, 0.2), SurvivalPair(MEASURED, 0.6)])
def test_confidence_means_what_it_says(pair: SurvivalPair) -> None:
    answers = pair.answers(12, 4000, 3)
    hits = np.array([hit for a in answers for hit in a.hits])
    confidences = np.array([c for a in answers for c in a.confidences])
    for low in np.arange(0.0, 1.0, 0.2):
        inside = (confidences >= low) & (confidences < low + 0.2)
        if inside.sum() > 500:
            assert hits[inside].mean() == pytest.approx(confidences[inside].mean(), abs=0.03)


def test_informativeness_is_the_share_of_variance_explained() -> None:
    for informativeness in (0.0, 0.3, 0.7):
        answer = independent(0.8, informativeness).answers(1, 40_000, 3)[0]
        assert np.var(answer.confidences) / (0.8 * 0.2) == pytest.approx(informativeness, abs=0.02)


def test_answers_depend_on_seed_and_number_only() -> None:
    pair = heavy_headed(0.8)
    assert pair.answers(3, 50, 7)[:2] == pair.answers(2, 50, 7)
    assert pair.answers(1, 50, 7) != pair.answers(1, 50, 8)


@pytest.mark.parametrize(
    ("curve", "sentence"),
    [([], "falls from 1"), ([0.5, 0.6], "falls from 1"), ([1.2], "falls from 1"), ([0.9, 0.2], "ever more slowly")],
)
def test_impossible_survivals_are_refused(curve: list[float], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        SurvivalPair(curve)


def test_values_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"alpha is 1\.5; a share"):
        independent(1.5)
    with pytest.raises(ValueError, match="alpha is -1; a share"):
        heavy_headed(-1)
    with pytest.raises(ValueError, match="informativeness is 1; it must be"):
        independent(0.5, 1)
    with pytest.raises(ValueError, match="shares of right guesses"):
        DriftingPair(0.5, 2)
    with pytest.raises(ValueError, match="needs hits for"):
        Answer(10, [True] * 10, [1.0] * 10)


def test_a_recorded_pair_is_replayed_and_cut() -> None:
    pair = RecordedPair([[True, False, True], [False, False]], [[0.9, 0.2, 0.8], [0.1, 0.3]], "two")
    first, second, third = pair.answers(3, 2, seed=0)
    assert (first.tokens, list(first.hits[:2])) == (2, [True, False])
    assert (second.tokens, list(second.hits[:2])) == (2, [False, False])
    assert third == first
    assert pair.answers(1, 99, 0)[0].tokens == 3
    with pytest.raises(ValueError, match="holds no answers"):
        RecordedPair([], [], "none")


def test_recordings_survive_a_file(tmp_path: Path) -> None:
    answers = [recording.RecordedAnswer(31, 7, [True, False], [0.5, 0.25])]
    recording.write(recording.Recording(answers, {"target": "t"}), tmp_path / "pair.jsonl")
    again = recording.read(tmp_path / "pair.jsonl")
    assert (list(again.answers), again.head) == (answers, {"target": "t"})
    assert again.pair("pair").answers(1, 2, 0)[0].alpha == 0.5


HEAD = '{"format": "outrider-recording", "version": 1}\n'


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "line 1: expected a JSON object"),
        ("{}\n", "line 1: expected the head"),
        (HEAD, "line 2: expected at least one answer"),
        (HEAD + "nonsense\n", "line 2: expected a JSON object, found 'nonsense'"),
        (HEAD + '{"hits": "12", "confidences": [1, 2]}', "line 2: expected hits as a string of 1 and 0, found '12'"),
        (HEAD + '\n{"hits": "10", "confidences": [1]}', "line 3: expected 2 confidences"),
        (HEAD + '{"hits": "1", "confidences": [0.5]}', "line 2: expected confidences in thousandths"),
    ],
)
def test_malformed_recordings_name_file_line_and_what_was_expected(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(text)
    with pytest.raises(recording.RecordingError, match="bad.jsonl, " + sentence.replace("+", r"\+")):
        recording.read(path)


def test_a_recording_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(recording.RecordingError, match="cannot be read"):
        recording.read(tmp_path / "none.jsonl")


def test_the_demo_pair_as_recorded() -> None:
    """24 answers of 128 tokens at T = 0.8, `netlab record`; models/demo/README.md has .803 on other prompts."""
    recorded = recording.read(Path(__file__).parents[1] / "data" / "demo_pair.jsonl")
    answers = recorded.pair("demo").answers(24, 128, 0)
    assert np.mean([answer.alpha for answer in answers]) == pytest.approx(0.818, abs=0.001)
    assert survival(answers, 4) == pytest.approx(0.504, abs=0.001)
    assert survival(answers, 4) > 0.818**4  # heavy-headed
