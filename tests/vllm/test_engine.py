"""`VllmEngine` keeps the contract of engines that schedule by themselves, on the demo's target.

vLLM serves one model in a process, so all tests share an engine: one with room for a few hundred tokens only, so that
vLLM's own preemption has to be right, too.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cloud_verifier.engines.base import Block, EngineFull, Logprobs, ModelError, Sampler, SequenceId
from cloud_verifier.engines.self_scheduling import SelfSchedulingEngine, Turn
from cloud_verifier.engines.vllm.options import MOST_GUESSES, VllmSettings, missing
from speculation.sampling import SamplingParams

if TYPE_CHECKING:
    from cloud_verifier.engines.vllm.engine import VllmEngine

if why := missing():
    pytest.skip(why, allow_module_level=True)
pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]
DEMO = Path(__file__).resolve().parents[2] / "models" / "demo" / "target"
CONTEXT, PAGES, PAGE_TOKENS, PLACES = 256, 17, 32, 5
TOKENS = 40
PARAMS = {
    "greedy": SamplingParams(temperature=0.0),
    "warm": SamplingParams(temperature=0.8),
    "filters": SamplingParams(temperature=0.9, top_k=50, top_p=0.9, min_p=0.02),
    "penalties": SamplingParams(
        temperature=0.9, repetition_penalty=1.2, presence_penalty=0.5, frequency_penalty=0.3, logit_bias={70: 3.0}
    ),
    "logprobs": SamplingParams(temperature=0.7, logprobs=3),
}
Said = list[tuple[int, Logprobs | None]]


@pytest.fixture(scope="module")
def engine() -> SelfSchedulingEngine:
    from cloud_verifier.engines.vllm.load import load

    extra = {"num-gpu-blocks-override": str(PAGES), "block-size": str(PAGE_TOKENS), "max-num-batched-tokens": "96"}
    settings = VllmSettings(threads=1, max_sequences=PLACES, context_limit=CONTEXT, kv_cache_gib=0.25, extra=extra)
    return load(str(DEMO), settings)


@pytest.fixture(autouse=True)
def _nothing_stays_open(engine: VllmEngine) -> Iterator[None]:
    yield
    left = list(engine._samplers)
    for sequence in left:  # or else the tests that follow fail, too
        engine.close(sequence)
    assert not left
    assert engine.memory.used == 0


def prompt(number: int, length: int = 20) -> list[int]:
    ids = random.Random(number)
    return [ids.randrange(5, 4096) for _ in range(length)]


def written(
    engine: SelfSchedulingEngine,
    prompts: Mapping[int, Sequence[int]],
    params: SamplingParams,
    tokens: int = TOKENS,
    known: Mapping[int, Said] | None = None,
    accuracy: float = 1.0,
    idle: float = 0.0,
) -> dict[int, Said]:
    """What the engine says after these prompts, all at once; each has the seed of its number.

    known: answers to guess from. idle: share of the steps that a sequence sits out.
    """
    rng = random.Random(4)
    opened = {
        engine.open(one, Sampler(params, 1000 + number, len(one)), f"owner {number}"): number
        for number, one in prompts.items()
    }
    said: dict[SequenceId, Said] = {sequence: [] for sequence in opened}
    try:
        while left := [sequence for sequence in opened if len(said[sequence]) < tokens]:
            turns = []
            for sequence in left:
                if rng.random() < idle:
                    continue
                done = len(said[sequence])
                right = [t for t, _ in (known or {}).get(opened[sequence], [])[done : done + rng.randrange(9)]]
                guesses = [t if rng.random() < accuracy else rng.randrange(5, 4096) for t in right]
                turns.append(Turn(sequence, guesses[: tokens - done - 1]))
            for turn, result in zip(turns, engine.step(turns), strict=True):
                logprobs: Sequence[Logprobs | None] = result.logprobs or [None] * len(result.tokens)
                said[turn.sequence] += zip(result.tokens, logprobs, strict=True)
        return {opened[sequence]: one for sequence, one in said.items()}
    finally:
        for sequence in opened:
            engine.close(sequence)


def alone(engine: SelfSchedulingEngine, prompts: Mapping[int, Sequence[int]], *args: Any) -> dict[int, Said]:
    """The same, one after the other."""
    return {number: written(engine, {number: one}, *args)[number] for number, one in prompts.items()}


@pytest.fixture(scope="module")
def own() -> dict[str, dict[int, Said]]:
    """What the torch engine says, which is compared with transformers by its own tests."""
    from cloud_verifier.engines.torch_engine.load import load as load_torch

    torch_engine = load_torch(str(DEMO), dtype="float32", strict=False, kv_cache_gib=0.25, max_sequences=2)
    answers: dict[str, dict[int, Said]] = {}
    for name, params in PARAMS.items():
        answers[name] = {}
        for number in range(2):
            log = prompt(number)
            sampler, sequence = Sampler(params, 1000 + number, len(log)), torch_engine.open()
            fresh = list(log)
            said: Said = []
            for _ in range(TOKENS):
                (choices,) = torch_engine.step([Block(sequence, fresh, 1, sampler)])
                fresh = list(choices.tokens)
                said.append((fresh[0], choices.logprobs[0] if choices.logprobs else None))
            torch_engine.close(sequence)
            answers[name][number] = said
    return answers


def test_the_self_test_finds_it_exact(engine: SelfSchedulingEngine) -> None:
    assert engine.info.strict, engine.info.strict_report
    assert not engine.info.trees
    assert (engine.info.context_limit, engine.info.vocabulary_size, engine.info.eos_ids) == (CONTEXT, 4096, (3,))


@pytest.mark.parametrize("kind", PARAMS)
def test_parameters_mean_what_they_mean_on_the_torch_engine(
    engine: SelfSchedulingEngine, own: dict[str, dict[int, Said]], kind: str
) -> None:
    said = written(engine, {0: prompt(0), 1: prompt(1)}, PARAMS[kind])
    assert tokens_of(said) == tokens_of(own[kind])
    for number, answer in said.items():
        for (_, mine), (_, theirs) in zip(answer, own[kind][number], strict=True):
            assert (mine is not None) == (theirs is not None) == (kind == "logprobs")
            if mine is not None and theirs is not None:
                assert mine.top_ids == theirs.top_ids
                assert mine.logprob == pytest.approx(theirs.logprob, abs=1e-3)
                assert mine.top_logprobs == pytest.approx(theirs.top_logprobs, abs=1e-3)


def tokens_of(said: Mapping[int, Said]) -> dict[int, list[int]]:
    return {number: [token for token, _ in answer] for number, answer in said.items()}


@pytest.mark.parametrize("kind", PARAMS)
def test_guesses_and_company_and_pauses_change_nothing(engine: SelfSchedulingEngine, kind: str) -> None:
    """Log-probabilities bit by bit."""
    prompts = {number: prompt(number, 5 + 9 * number) for number in range(4)}
    expected = alone(engine, prompts, PARAMS[kind])
    assert written(engine, prompts, PARAMS[kind]) == expected
    for accuracy in (1.0, 0.8, 0.0):
        assert written(engine, prompts, PARAMS[kind], TOKENS, expected, accuracy, idle=0.3) == expected


@pytest.mark.parametrize("idle", [0.0, 0.6])
def test_with_too_little_memory_all_words_come(engine: SelfSchedulingEngine, idle: float) -> None:
    """Five sequences of 150 tokens, and room for 512 tokens."""
    prompts = {number: prompt(number, 60 + number) for number in range(PLACES)}
    expected = alone(engine, prompts, PARAMS["penalties"], 90)
    before = engine.preemptions
    assert written(engine, prompts, PARAMS["penalties"], 90, idle=idle) == expected
    assert engine.preemptions > before
    assert written(engine, prompts, PARAMS["penalties"], 90, expected, 0.8, idle=idle) == expected


def test_whoever_rests_makes_room_for_who_has_a_turn(engine: SelfSchedulingEngine) -> None:
    """Two sequences have all pages and wait for their devices; a third comes, and then the first goes on."""
    expected = alone(engine, {0: prompt(0, 240)}, PARAMS["warm"], 10)[0]
    resting = [engine.open(prompt(number, 240), Sampler(PARAMS["warm"], 1000 + number, 240)) for number in range(2)]
    said: list[int] = []
    while len(said) < 2:
        said += engine.step([Turn(sequence) for sequence in resting])[0].tokens
    late = engine.open(prompt(2, 100), Sampler(PARAMS["warm"], 1002, 100))
    steps = 0
    while not engine.step([Turn(late)])[0].tokens:
        steps += 1
        assert steps < 20, "it never gets its turn"
    while len(said) < 10:
        (result,) = engine.step([Turn(resting[0])])
        said += result.tokens
        steps += 1
        assert steps < 50, "it never gets its turn again"
    assert said == [token for token, _ in expected]
    for sequence in (*resting, late):
        engine.close(sequence)


def test_a_log_that_is_read_again_goes_on_in_the_same_way(engine: SelfSchedulingEngine) -> None:
    whole = written(engine, {0: prompt(0)}, PARAMS["penalties"])[0]
    sampler = Sampler(PARAMS["penalties"], 1000, len(prompt(0)))
    sequence = engine.open([*prompt(0), *(t for t, _ in whole[:15])], sampler)
    tokens: list[int] = []
    while len(tokens) < TOKENS - 15:
        tokens += engine.step([Turn(sequence)])[0].tokens
    engine.close(sequence)
    assert tokens == [t for t, _ in whole[15:]]


def test_who_has_no_turn_does_not_go_on(engine: SelfSchedulingEngine) -> None:
    expected = tokens_of(alone(engine, {0: prompt(0), 1: prompt(1)}, PARAMS["warm"], 7))
    one, other = (engine.open(prompt(number), Sampler(PARAMS["warm"], 1000 + number, 20)) for number in range(2))
    late = engine.open(prompt(502), Sampler(PARAMS["warm"], 0, 20))
    said: dict[SequenceId, list[int]] = {one: [], other: [], late: []}

    def step(*sequences: SequenceId) -> None:
        for sequence, result in zip(sequences, engine.step([Turn(each) for each in sequences]), strict=True):
            assert len(result.tokens) == 1
            assert result.positions == (1 if said[sequence] else 20)
            said[sequence] += result.tokens

    step(one, other)
    for _ in range(6):
        step(one)
    step(other, late)
    assert said[one] == expected[0]
    assert said[other] == expected[1][:2]
    for sequence in said:
        engine.close(sequence)


def test_a_long_prompt_is_read_in_several_steps_beside_one_that_writes(engine: SelfSchedulingEngine) -> None:
    writer = engine.open(prompt(0), Sampler(PARAMS["greedy"], 0, 20))
    engine.step([Turn(writer)])
    reader = engine.open(prompt(501, 200), Sampler(PARAMS["greedy"], 0, 200))
    steps = 0
    while True:
        writes, reads = engine.step([Turn(writer), Turn(reader)])
        steps += 1
        assert len(writes.tokens) == 1
        if reads.tokens:
            break
        assert reads.positions == 95
    assert steps == 3
    engine.close(writer)
    engine.close(reader)


def test_as_many_guesses_as_may_be_are_checked_at_once(engine: SelfSchedulingEngine) -> None:
    whole = written(engine, {0: prompt(0)}, PARAMS["greedy"], 140)[0]
    sequence = engine.open(prompt(0), Sampler(PARAMS["greedy"], 0, 20))
    engine.step([Turn(sequence)])
    guesses = [t for t, _ in whole[1 : 1 + MOST_GUESSES]]
    (result,) = engine.step([Turn(sequence, guesses)])  # a step of this engine has room for 96 positions
    assert (result.positions, result.checked) == (96, 95)
    assert list(result.tokens) == [t for t, _ in whole[1:97]]
    with pytest.raises(ValueError, match="129 guesses"):
        engine.step([Turn(sequence, [5] * (MOST_GUESSES + 1))])
    engine.close(sequence)


def test_an_answer_may_fill_the_context(engine: SelfSchedulingEngine) -> None:
    sequence = engine.open(prompt(0, CONTEXT - 3), Sampler(PARAMS["greedy"], 0, CONTEXT - 3))
    tokens: list[int] = []
    while len(tokens) < 3:
        tokens += engine.step([Turn(sequence)])[0].tokens
    assert len(tokens) == 3
    engine.close(sequence)


def test_beginnings_are_found_within_a_scope_only(engine: SelfSchedulingEngine) -> None:
    sampler, tokens = Sampler(PARAMS["greedy"], 0, 80), prompt(77, 80)
    found = []
    for scope in ("mine", "mine", "yours"):
        sequence = engine.open(tokens, sampler, scope)
        found.append(engine.step([Turn(sequence)])[0].found)
        engine.close(sequence)
    assert found == [0, 64, 0]


def test_what_cannot_be_is_refused_before_anything_is_evaluated(engine: SelfSchedulingEngine) -> None:
    sampler = Sampler(PARAMS["greedy"], 0, 20)
    opened = [engine.open(prompt(number), sampler) for number in range(PLACES)]
    with pytest.raises(EngineFull, match=f"all {PLACES} sequences"):
        engine.open(prompt(9), sampler)
    with pytest.raises(ValueError, match="twice"):
        engine.step([Turn(opened[0]), Turn(opened[0])])
    with pytest.raises(ValueError, match=r"outside 0\.\.4095"):
        engine.step([Turn(opened[0], [4096])])
    engine.close(opened[4])
    with pytest.raises(ValueError, match="not open"):
        engine.step([Turn(opened[4])])
    with pytest.raises(ValueError, match="not open"):
        engine.close(opened[4])
    for sequence in opened[:4]:
        engine.close(sequence)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"extra": {"no-such-option": "3"}}, "no-such-option"),
        ({"extra": {"block-size": "many"}}, "block-size"),
        ({"context_limit": 10**6}, "max_model_len"),
        ({"context_limit": 8}, "at least 32 tokens"),
        ({"quantization": "no-such"}, "no-such"),
    ],
)
def test_what_vllm_refuses_is_told_in_a_sentence(changes: dict[str, Any], told: str) -> None:
    from cloud_verifier.engines.vllm.load import load

    with pytest.raises(ModelError, match=told) as raised:
        load(str(DEMO), VllmSettings(kv_cache_gib=0.25, **changes))
    assert "\n" not in str(raised.value)
