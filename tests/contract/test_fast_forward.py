"""The forward in fixed shapes, held against the simple one; on a CPU, with attention by `gathered`.

What is only on a GPU, Flash Attention and the capture of graphs, is not run here.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from cloud_verifier.engines.base import Block, Sampler
from cloud_verifier.engines.pages import PAGE_TOKENS
from cloud_verifier.engines.sampling.noise import RowNoise
from cloud_verifier.engines.sampling.sampler import choose, draw, rows_of
from cloud_verifier.engines.torch_engine import TorchEngine
from cloud_verifier.engines.torch_engine.engine import OutOfMemory
from cloud_verifier.engines.torch_engine.fast_path import TRIAL_TOLERANCE, Parts, disagreement, find_parts
from cloud_verifier.engines.torch_engine.graphs import MOST_SHAPES, Result, Steps
from cloud_verifier.engines.torch_engine.kernels import FLASH, GATHERED, Kernel, gathered
from cloud_verifier.engines.torch_engine.layout import Segment
from cloud_verifier.engines.torch_engine.load import wrap
from cloud_verifier.engines.torch_engine.pool import LayerShape
from cloud_verifier.engines.torch_engine.row_rules import RowRule
from cloud_verifier.engines.torch_engine.static_inputs import Inputs, Shape, StaticLayout, fill, shape_of
from speculation.sampling import SamplingParams

VOCABULARY, CONTEXT = 211, 260
GREEDY = Sampler(SamplingParams(temperature=0.0), seed=0, prompt_length=0)
WARM = Sampler(SamplingParams(temperature=0.8), seed=2**64 - 3, prompt_length=4)
PICKY = Sampler(SamplingParams(temperature=0.9, top_p=0.8, top_k=30, presence_penalty=0.4), seed=5, prompt_length=4)


def tiny(dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        initializer_range=0.2,
        eos_token_id=1,
        bos_token_id=0,
    )
    model: PreTrainedModel = LlamaForCausalLM(config)
    torch.nn.Module.to(model, dtype)
    return model


def ids(count: int, seed: int = 1) -> list[int]:
    return random.Random(seed).choices(range(VOCABULARY), k=count)


@pytest.fixture(scope="module")
def simple() -> TorchEngine:
    return wrap(tiny(), name="simple", strict=False, max_sequences=6, kv_cache_gib=0.02)


def fast_engine(**settings: Any) -> TorchEngine:
    return wrap(tiny(), name="fast", max_sequences=6, kv_cache_gib=0.02, parts=Parts(GATHERED), **settings)


def conversation(engine: TorchEngine, company: int) -> list[tuple[int, ...]]:
    """What one sequence of each sampler says, in company, with prompts in chunks, guesses and their withdrawal."""
    opened = [engine.open() for _ in range(3 + company)]
    samplers = [GREEDY, WARM, PICKY] + [WARM] * company
    texts = [ids(n, n) for n in (5, 70, 129, 33, 64, 2)[: len(opened)]]
    said: list[list[int]] = [[] for _ in opened]
    for turn in range(5):
        blocks = []
        for number, (sequence, sampler) in enumerate(zip(opened, samplers, strict=True)):
            length = engine.length(sequence)
            new = texts[number][length:] or [7]
            guesses = ids(turn * number % 4, turn)
            blocks.append(Block(sequence, new + guesses, len(guesses) + 1, sampler))
        for number, choices in enumerate(engine.step(blocks)):
            engine.truncate(opened[number], len(texts[number]))
            texts[number].append(choices.tokens[0])
            said[number] += choices.tokens
    for sequence in opened:
        engine.close(sequence)
    engine.forget()
    return [tuple(words) for words in said[:3]]


@pytest.fixture(scope="module")
def strict() -> TorchEngine:
    return fast_engine()


def test_the_words_are_those_of_the_simple_forward(simple: TorchEngine) -> None:
    engine = fast_engine(strict=False)
    assert engine.fast is not None
    expected = conversation(simple, 3)
    assert conversation(engine, 3) == expected
    assert conversation(engine, 0) == expected


def test_strict_mode_is_exact_and_runs_one_shape_whatever_the_company(simple: TorchEngine, strict: TorchEngine) -> None:
    assert strict.info.strict
    assert strict.fast is not None
    strict.rows = RowRule(64, 64)  # as on a GPU
    strict.fast.steps = Steps(strict.fast._run, torch.device("cpu"), graphs=True)
    expected = conversation(simple, 3)
    assert conversation(strict, 3) == expected
    assert conversation(strict, 0) == expected
    assert {shape._replace(sampled=False) for shape in strict.fast.steps.shapes} == {Shape(64, 64, 64, 5, 64, False)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_agree_with_the_simple_forward(dtype: torch.dtype) -> None:
    engines = [
        wrap(tiny(dtype), name="tiny", strict=False, max_sequences=3, kv_cache_gib=0.02, parts=parts)
        for parts in (None, Parts(GATHERED))
    ]
    found = []
    for engine in engines:
        opened = [engine.open() for _ in range(3)]
        blocks = [Block(sequence, ids(n), min(n, 9), GREEDY) for sequence, n in zip(opened, (1, 64, 150), strict=True)]
        first = torch.cat(engine.logits(blocks)).float()
        more = [Block(sequence, ids(n, 5), n, GREEDY) for sequence, n in zip(opened, (4, 1, 6), strict=True)]
        found.append(torch.cat([first, *engine.logits(more)]).float())
    assert (found[0] - found[1]).abs().max() < (1e-4 if dtype == torch.float32 else 0.1) * found[0].std()


def test_nothing_of_another_session_comes_near_not_even_a_nan() -> None:
    engine = fast_engine(strict=False)
    mine, other = engine.open(), engine.open()
    block = Block(mine, ids(10), 10, GREEDY)
    clean = engine.logits([block])[0]
    engine.truncate(mine, 0)
    engine.logits([Block(other, ids(130), 1, GREEDY)])
    with torch.inference_mode():
        for layer in engine._pool._paged:
            for page in engine._sequences[other].pages:
                layer.keys[page] = torch.nan
                layer.values[page] = torch.nan
    beside = engine.logits([block, Block(other, ids(3), 3, GREEDY)])
    torch.testing.assert_close(beside[0], clean)
    assert beside[1].isnan().all()
    spare = [layer.keys[engine._pool.spare_page] for layer in engine._pool._paged]
    engine.truncate(mine, 0)
    assert not engine.logits([block])[0].isnan().any()
    assert all(states.isfinite().all() for states in spare)


class Overwriting(Steps):
    """Does to earlier results what a shared pool of graph memory may do: they are gone with the next step."""

    earlier: Result | None = None

    def __call__(self, shape: Shape, packed: torch.Tensor) -> Result:
        if self.earlier is not None:
            self.earlier.logits.fill_(torch.nan)
            self.earlier.drawn.fill_(-1)
        self.earlier = super().__call__(shape, packed)
        return self.earlier


def test_no_result_is_read_after_the_next_step(simple: TorchEngine) -> None:
    engine = fast_engine(strict=False)
    assert engine.fast is not None
    engine.rows = RowRule(1, 16)  # several forwards in a step
    engine.fast.steps = Overwriting(engine.fast._run, torch.device("cpu"), graphs=True)
    assert conversation(engine, 2) == conversation(simple, 2)
    logits = engine.logits([Block(engine.open(), ids(40), 40, GREEDY)])[0]
    engine.logits([Block(engine.open(), ids(40, 2), 40, GREEDY)])
    assert logits.isfinite().all()


def test_a_shape_keeps_its_buffer_and_the_oldest_shape_goes() -> None:
    seen: list[int] = []

    def note(inputs: Inputs) -> Result:
        seen.append(inputs.buffer.data_ptr())
        return Result(inputs.ids.double(), inputs.ids.clone())

    steps = Steps(note, torch.device("cpu"), graphs=True)

    def run(pages: int) -> Result:
        shape = Shape(8, 1, 8, pages, 8, False)
        return steps(shape, fill(shape, [Segment([2], 3, 2)], [pages, 9], [1], [], 4, False))

    assert run(1).drawn.tolist() == [1, 9, 0, 0, 0, 0, 0, 0]
    assert run(5).drawn.tolist()[0] == 5
    run(1)
    assert seen[0] == seen[2] != seen[1]
    for pages in range(6, 5 + MOST_SHAPES):
        run(pages)
    assert len(steps.shapes) == MOST_SHAPES
    assert {shape.pages for shape in steps.shapes} == {1, *range(6, 5 + MOST_SHAPES)}


def test_the_buffer_says_where_everything_lies() -> None:
    segments = [Segment([5, 3], 62, 4), Segment([1], 0, 1)]
    rows = [*rows_of(WARM, [66]), *rows_of(PICKY, [1])]
    shape = shape_of(segments, 2, True, RowRule(1, 2048), 3, strict=False, steady=False)
    assert shape == Shape(8, 2, 4, 2, 8, True)
    inputs = Inputs(shape, fill(shape, segments, [11, 12, 13, 14, 15], [3, 4], rows, 9, False))
    spare = 9 * PAGE_TOKENS
    assert inputs.ids.tolist() == [11, 12, 13, 14, 15, 0, 0, 0]
    assert inputs.positions.tolist() == [62, 63, 64, 65, 0, 0, 0, 0]
    assert inputs.places.tolist() == [5 * 64 + 62, 5 * 64 + 63, 3 * 64, 3 * 64 + 1, 64, spare, spare, spare]
    assert inputs.slots.tolist()[:5] == [0, 1, 2, 3, 4]
    assert inputs.row_of.tolist() == [0, 1, 2, 3, 4, 4, 4, 4]
    assert inputs.ends.tolist() == [0, 4, 5]
    assert inputs.seen.tolist() == [66, 1]
    assert inputs.table.tolist() == [[5, 3], [1, 1]]
    assert inputs.keep.tolist()[:2] == [3, 4]
    assert inputs.seeds.tolist()[:2] == [-3, 0]
    assert inputs.at.tolist()[:2] == [66, 0]
    assert inputs.temperatures.tolist()[:2] == [0.8, 0.0]  # what filters is not drawn in the graph


def test_few_shapes_hold_all_steps() -> None:
    rule = RowRule(1, 2048)

    def shapes(rows: Sequence[int], context: int) -> Shape:
        segments = [Segment(list(range(40)), context, count) for count in rows]
        return shape_of(segments, sum(rows), True, rule, 32, strict=False, steady=False)

    assert shapes([1] * 9, 70) == shapes([1] * 16, 100) == Shape(16, 16, 1, 2, 16, True)
    assert shapes([5] * 25, 1000) == Shape(128, 32, 8, 16, 128, True)
    assert shapes([3], 2040).pages == 32
    strict = shape_of([Segment([0], 0, 3)], 1, False, RowRule(64, 64), 32, strict=True, steady=False)
    assert strict == Shape(64, 64, 64, 32, 64, False)


def test_drawing_without_the_host_chooses_the_same_tokens() -> None:
    torch.manual_seed(0)
    logits = torch.randn(7, 4099).to(torch.bfloat16) * 3
    samplers = [
        Sampler(SamplingParams(temperature=t), seed=s, prompt_length=0)
        for t, s in zip(
            (0.0, 0.3, 0.8, 1.0, 2.5, 0.0, 1.3), (0, 2**64 - 1, 2**63, 17, 2**32, 3, 12345678901234567890), strict=True
        )
    ]
    rows = [row for number, sampler in enumerate(samplers) for row in rows_of(sampler, [3 + 1000 * number])]
    shape = Shape(8, 1, 8, 1, 8, True)
    inputs = Inputs(shape, fill(shape, [Segment([0], 0, 1)], [0], [0], rows, 1, False))
    drawn = draw(logits, inputs.seeds[:7], inputs.at[:7], inputs.temperatures[:7])
    assert drawn.tolist() == choose(logits, rows)


def test_noise_of_seeds_on_the_device_is_the_same() -> None:
    seeds, positions = [0, 1, 2**63, 2**64 - 1, 0xDEADBEEF12345678], [0, 5, 2**31, 77, 3]
    words = torch.tensor([seed - 2**64 if seed >= 2**63 else seed for seed in seeds])
    expected = RowNoise(seeds, positions, torch.device("cpu")).all_integers(61)
    assert torch.equal(RowNoise.on_device(words, torch.tensor(positions)).all_integers(61), expected)


def test_drawn_tokens_are_kept_and_the_others_are_chosen() -> None:
    logits = torch.randn(3, VOCABULARY)
    rows = [*rows_of(GREEDY, [9]), *rows_of(WARM, [9]), *rows_of(PICKY, [9], ids(9))]
    drawn = torch.tensor([41, 42, 43])  # as if the device had said so
    assert choose(logits, rows, drawn)[:2] == [41, 42]
    assert choose(logits, rows, torch.tensor([0, 0, 0]))[2] == choose(logits, rows)[2]


def test_a_kernel_that_is_wrong_is_noticed() -> None:
    shape, cpu = LayerShape(2, 16, 16), torch.device("cpu")
    assert disagreement(GATHERED, shape, 4, torch.float32, cpu) == 0.0
    wide = LayerShape(8, 128, 128)  # as many values as a real model's: rounding alone must not look like a fault
    assert 0.001 < disagreement(GATHERED, wide, 32, torch.bfloat16, cpu) < 0.7 * TRIAL_TOLERANCE

    def wrong(*arguments: Any) -> torch.Tensor:
        out = gathered(*arguments)
        out[4] += 0.1
        return out

    def lost(*arguments: Any) -> torch.Tensor:
        out = gathered(*arguments)
        out[4] = torch.nan
        return out

    assert disagreement(Kernel("wrong", wrong, steady=False), shape, 4, torch.bfloat16, cpu) > TRIAL_TOLERANCE
    assert disagreement(Kernel("lost", lost, steady=False), shape, 4, torch.bfloat16, cpu) > TRIAL_TOLERANCE


def test_without_a_gpu_there_is_no_kernel_and_the_simple_forward_runs(simple: TorchEngine) -> None:
    assert find_parts(simple.model, [LayerShape(2, 12, 12)], strict=True) is None
    assert simple.fast is None
    with pytest.raises(NotImplementedError):
        disagreement(FLASH, LayerShape(2, 16, 16), 4, torch.bfloat16, torch.device("cpu"))


@pytest.mark.parametrize("split_pages", [None, 8])
def test_flash_attention_is_called_as_torch_declares_it(split_pages: int | None) -> None:
    """On tensors that only pretend to be on a GPU: names, types and shapes of arguments are checked, nothing is run."""
    segments = [Segment([3, 1], 60, 9), Segment([0], 12, 1)]
    shape = shape_of(segments, 0, False, RowRule(1, 64), 4, strict=split_pages is not None, steady=False)
    with FakeTensorMode(), torch.inference_mode():
        buffer = torch.empty(sum(shape.sections.values()), dtype=torch.int64, device="cuda")
        query = torch.empty(shape.rows, 8, 64, dtype=torch.bfloat16, device="cuda")
        keys, values = (torch.empty(10, PAGE_TOKENS, 2, 64, dtype=torch.bfloat16, device="cuda") for _ in range(2))
        out = FLASH.attend(query, keys, values, StaticLayout(Inputs(shape, buffer)), None, split_pages)
    assert (out.shape, out.dtype, out.device.type) == (query.shape, torch.bfloat16, "cuda")


def test_a_step_that_does_not_fit_says_what_to_lower(simple: TorchEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    sequence = simple.open()
    block = Block(sequence, ids(3), 1, GREEDY)
    monkeypatch.setattr(simple, "_forward", full)
    with pytest.raises(OutOfMemory, match=r"a step of 3 tokens .* lower --gpu-memory-share or --kv-cache-gib"):
        simple.step([block])
    assert simple.length(sequence) == 0
    monkeypatch.undo()
    simple.step([block])
    simple.close(sequence)
