"""The contract of `TargetEngine`, with tiny random models: the same weights on every engine, and on TorchEngine those
of several families."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AttentionInterface, PreTrainedModel

from cloud_verifier.engines import self_test as self_test_module
from cloud_verifier.engines.base import Block, EngineFull, ModelError, Sampler, SequenceId
from cloud_verifier.engines.branches import Branches, path_to
from cloud_verifier.engines.llama_cpp.engine import DecodeError
from cloud_verifier.engines.llama_cpp.load import LlamaCppSettings
from cloud_verifier.engines.llama_cpp.load import load as load_gguf
from cloud_verifier.engines.paged import PagedEngine
from cloud_verifier.engines.self_test import branches_agree, self_test
from cloud_verifier.engines.torch_engine import load
from cloud_verifier.engines.torch_engine.attention import STRICT
from cloud_verifier.engines.torch_engine.load import wrap
from cloud_verifier.engines.torch_engine.pool import layer_shapes, page_bytes
from cloud_verifier.engines.torch_engine.row_rules import RowRule
from speculation.sampling import SamplingParams
from tests.contract.tiny_models import save_gguf

VOCABULARY, CONTEXT = 211, 1100
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
DECODER = SHAPE | {"intermediate_size": 80, "num_key_value_heads": 2}
GPT2 = {"vocab_size": VOCABULARY, "n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT, "eos_token_id": 1}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", DECODER),
    "qwen2": ("Qwen2", DECODER),
    "qwen3": ("Qwen3", DECODER | {"head_dim": 16}),
    "gemma": ("Gemma", DECODER | {"head_dim": 16, "num_key_value_heads": 1}),
    "gpt2": ("GPT2", GPT2),
    "gpt_neox": ("GPTNeoX", SHAPE | {"intermediate_size": 81}),  # no grouping; an odd width
}
GREEDY = Sampler(SamplingParams(temperature=0.0), seed=0, prompt_length=0)
PENALISED = Sampler(
    SamplingParams(temperature=0.9, frequency_penalty=0.6, repetition_penalty=1.4, logprobs=2), seed=4, prompt_length=20
)
WARM = Sampler(SamplingParams(temperature=0.8), seed=2**63 + 5, prompt_length=4)


def build(family: str, dtype: torch.dtype = torch.float32, **changes: Any) -> PreTrainedModel:
    name, settings = FAMILIES[family]
    torch.manual_seed(3)
    config = getattr(transformers, f"{name}Config")(**(settings | changes))
    head = "LMHeadModel" if name == "GPT2" else "ForCausalLM"
    model: PreTrainedModel = getattr(transformers, f"{name}{head}")(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4.0)  # so that logits differ between positions
    torch.nn.Module.to(model, dtype)
    model.eval()
    return model


def ids(count: int, seed: int = 1) -> list[int]:
    return random.Random(seed).choices(range(VOCABULARY), k=count)


@dataclass(frozen=True)
class Subject:
    """An engine, and the transformers model that it evaluates in its own way.

    tolerance: share of the largest logit by which these may differ. fail_at: makes an evaluation of the engine fail,
    the n-th from now on, with "out of memory".
    """

    engine: PagedEngine
    model: PreTrainedModel
    tolerance: float
    fail_at: Callable[[int], AbstractContextManager[None]]

    def assert_close(self, logits: torch.Tensor, expected: torch.Tensor) -> None:
        torch.testing.assert_close(logits, expected, atol=self.tolerance * float(expected.abs().max()), rtol=0)


def torch_subject(_folder: Path) -> Subject:
    engine = wrap(build("llama"), name="tiny", max_sequences=6)

    @contextmanager
    def fail_at(number: int) -> Iterator[None]:
        calls, forward = count(1), engine._forward

        def fail(cut: Any) -> torch.Tensor:
            if next(calls) == number:
                raise RuntimeError("out of memory")
            return forward(cut)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(engine, "_forward", fail)
            yield

    return Subject(engine, build("llama"), 2e-4, fail_at)


def llama_cpp_subject(folder: Path) -> Subject:
    """Keys and values are float16 there, and so are the attention's sums."""
    model = build("llama")
    save_gguf(model, folder / "tiny.gguf", "f32")
    engine = load_gguf(folder / "tiny.gguf", LlamaCppSettings(threads=1, max_sequences=6))

    @contextmanager
    def fail_at(number: int) -> Iterator[None]:
        calls, decode = count(1), engine._decode

        def fail(*arguments: Any, **named: Any) -> torch.Tensor:
            logits = decode(*arguments, **named)
            if next(calls) == number:  # by when keys and values have been written
                raise DecodeError("out of memory")
            return logits

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(engine, "_decode", fail)
            yield

    return Subject(engine, model, 2e-2, fail_at)


SUBJECTS = {"torch": torch_subject, "llama.cpp": llama_cpp_subject}


def own_logits(model: PreTrainedModel, tokens: list[int]) -> torch.Tensor:
    """By the model's own forward, without any of the engine's parts. Shape [tokens, V]."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    with torch.inference_mode():
        logits: torch.Tensor = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]
    model.set_attn_implementation(before)
    return logits


def all_logits(engine: PagedEngine, sequence: SequenceId, tokens: list[int]) -> torch.Tensor:
    return engine.logits([Block(sequence, tokens, len(tokens), GREEDY)])[0]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=list(SUBJECTS))
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return SUBJECTS[request.param](tmp_path_factory.mktemp("engine"))


def emptied(subject: Subject) -> Iterator[Subject]:
    yield subject
    for sequence in list(subject.engine._sequences):
        subject.engine.close(sequence)
    subject.engine.forget()


@pytest.fixture
def subject(made: Subject) -> Iterator[Subject]:
    """Every engine, with no open sequences."""
    yield from emptied(made)


@pytest.fixture
def engine(subject: Subject) -> PagedEngine:
    return subject.engine


# ---------------------------------------------------------------------------------------------------------------------
# What a step computes
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strict", [True, False], ids=["strict", "plain"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_the_models_own_forward(family: str, strict: bool) -> None:
    engine = wrap(build(family), name=family, strict=strict, max_sequences=3)
    texts = [ids(150, 1), ids(37, 2), ids(9, 3)]
    opened = [engine.open() for _ in texts]
    got: list[list[torch.Tensor]] = [[] for _ in texts]
    cuts = [[0, 100, 101, 109, 150], [0, 5, 20, 21, 37], [0, 1, 3, 8, 9]]
    for turn in range(4):
        parts = [text[cut[turn] : cut[turn + 1]] for text, cut in zip(texts, cuts, strict=True)]
        blocks = [Block(s, part, len(part), GREEDY) for s, part in zip(opened, parts, strict=True)]
        for collected, logits in zip(got, engine.logits(blocks), strict=True):
            collected.append(logits)
    for text, collected in zip(texts, got, strict=True):
        expected = own_logits(build(family), text)
        assert expected.std() > 0.1
        torch.testing.assert_close(torch.cat(collected), expected, atol=2e-4 * float(expected.abs().max()), rtol=0)


def test_choices_are_of_the_last_tokens_in_order(subject: Subject) -> None:
    engine, text = subject.engine, ids(40)
    best = own_logits(subject.model, text).argmax(-1).tolist()
    one, other = engine.open(), engine.open()
    results = engine.step([Block(one, text[:30], 3, GREEDY), Block(other, text[:20], 0, GREEDY)])
    assert [list(r.tokens) for r in results] == [best[27:30], []]
    assert results[0].logprobs == ()
    results = engine.step([Block(other, text[20:22], 2, GREEDY), Block(one, text[30:], 1, GREEDY)])
    assert [list(r.tokens) for r in results] == [best[20:22], best[39:]]
    assert (engine.length(one), engine.length(other)) == (40, 22)


def test_a_step_may_want_nothing_and_may_be_empty(engine: PagedEngine) -> None:
    sequence = engine.open()
    assert [list(r.tokens) for r in engine.step([Block(sequence, ids(5), 0, GREEDY)])] == [[]]
    assert engine.step([]) == []
    assert engine.length(sequence) == 5


def test_penalties_see_the_tokens_of_the_block_up_to_each_position(subject: Subject) -> None:
    engine, text = subject.engine, ids(20)
    forbidden = Sampler(
        SamplingParams(temperature=0.0, presence_penalty=2.0, frequency_penalty=2.0), 0, prompt_length=6
    )
    whole, singly = engine.open(), engine.open()
    engine.step([Block(s, text[:12], 0, forbidden) for s in (whole, singly)])
    for i, wrong in ((14, 3), (17, 1)):  # a guess is counted while it is checked, and forgotten when it was wrong
        for length in range(engine.length(singly), i):
            engine.step([Block(singly, [text[length]], 1, forbidden)])
        engine.step([Block(singly, ids(wrong, 99), wrong, forbidden)])
        engine.truncate(singly, i)
    engine.truncate(singly, 12)
    block = engine.step([Block(whole, text[12:], 8, forbidden)])[0].tokens
    single = [engine.step([Block(singly, [text[i]], 1, forbidden)])[0].tokens[0] for i in range(12, 20)]
    assert list(block) == single
    logits = own_logits(subject.model, text)
    for choice, position in zip(block, range(12, 20), strict=True):
        expected = logits[position].double()
        for token in text[6 : position + 1]:
            expected[token] -= 2.0
        for token in set(text[6 : position + 1]):
            expected[token] -= 2.0
        assert choice == int(expected.argmax())


def test_logprobs_are_the_models_whatever_the_temperature(subject: Subject) -> None:
    engine, text = subject.engine, ids(10)
    sampler = Sampler(SamplingParams(temperature=1.7, top_k=2, logprobs=4), seed=4, prompt_length=0)
    choices = engine.step([Block(engine.open(), text, 3, sampler)])[0]
    own = own_logits(subject.model, text)[-3:].double()
    table, near = torch.log_softmax(own, -1), subject.tolerance * float(own.abs().max())
    assert len(choices.logprobs) == 3
    for token, found, row in zip(choices.tokens, choices.logprobs, table, strict=True):
        best = row.topk(4)
        assert token in found.top_ids[:2]
        assert found.top_ids == tuple(best.indices.tolist())
        assert found.logprob == pytest.approx(float(row[token]), abs=near)
        assert found.top_logprobs == pytest.approx(best.values.tolist(), abs=near)


def test_sampling_depends_on_seed_and_position(engine: PagedEngine) -> None:
    text = ids(60)
    sequence = engine.open()

    def choices(seed: int) -> list[int]:
        engine.truncate(sequence, 0)
        return list(engine.step([Block(sequence, text, 50, Sampler(WARM.params, seed, 0))])[0].tokens)

    assert choices(1) == choices(1)
    assert choices(1) != choices(2)


# ---------------------------------------------------------------------------------------------------------------------
# Strict mode: bitwise the same in any company and in any cut
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_any_cut_in_any_company_gives_the_same_bits(family: str, dtype: torch.dtype, threads: int) -> None:
    torch.set_num_threads(threads)
    try:
        engine = wrap(build(family, dtype), name=family, max_sequences=5)
        assert engine.info.strict, engine.info.strict_report
        text = ids(330)
        whole = all_logits(engine, engine.open(), text)
        chance = random.Random(threads)
        rides = [engine.open(scope=str(ride)) for ride in range(4)]  # so that each keeps what it computed itself
        done = [0] * 4
        while min(done) < len(text):
            going = [i for i in range(4) if done[i] < len(text) and chance.random() < 0.8]
            parts = {i: text[done[i] : done[i] + chance.choice((1, 1, 2, 5, 6, 8, 9, 40, 130))] for i in going}
            blocks = [Block(rides[i], part, len(part), GREEDY) for i, part in parts.items()]
            for i, logits in zip(going, engine.logits(blocks), strict=True):
                assert torch.equal(logits, whole[done[i] : done[i] + len(parts[i])])
                done[i] += len(parts[i])
    finally:
        torch.set_num_threads(1)


def test_a_prefill_longer_than_one_forward_equals_short_chunks(subject: Subject) -> None:
    engine, text = subject.engine, ids(CONTEXT)
    whole = all_logits(engine, engine.open(), text)
    sequence = engine.open()
    for first in range(0, CONTEXT, 55):
        logits = all_logits(engine, sequence, text[first : first + 55])
        assert torch.equal(logits, whole[first : first + 55])
    subject.assert_close(whole, own_logits(subject.model, text))


def test_a_resumed_session_goes_on_with_the_same_words(engine: PagedEngine) -> None:
    prompt, sequence = ids(70), engine.open()
    log = list(prompt)
    for i in range(30):
        log += engine.step([Block(sequence, prompt if i == 0 else log[-1:], 1, WARM)])[0].tokens
    resumed = engine.open()
    again = engine.step([Block(resumed, log[:-1], 30, WARM)])[0].tokens
    assert list(again) == log[70:]


def test_truncated_equals_fresh(engine: PagedEngine) -> None:
    text, other = ids(100, 1), ids(100, 2)
    used, fresh = engine.open(), engine.open()
    all_logits(engine, used, text[:60] + other)
    engine.truncate(used, 60)
    assert engine.length(used) == 60
    all_logits(engine, fresh, text[:60])
    assert torch.equal(all_logits(engine, used, text[60:]), all_logits(engine, fresh, text[60:]))


def test_what_lies_beyond_a_sequence_is_never_seen() -> None:
    engine, text = wrap(build("llama"), name="tiny"), ids(20)
    clean = all_logits(engine, engine.open(), text)
    sequence = engine.open()
    all_logits(engine, sequence, text[:10])
    (page,) = engine._sequences[sequence].pages
    with torch.inference_mode():
        for layer in engine._pool._paged:
            layer.keys[page, 10:] = 1e4
            layer.values[page, 10:] = 1e4
    assert torch.equal(all_logits(engine, sequence, text[10:]), clean[10:])


def test_a_closed_sequence_leaves_nothing_behind() -> None:
    engine, text = wrap(build("llama"), name="tiny"), ids(20)
    sequence = engine.open()
    clean = all_logits(engine, sequence, text)
    pages = list(engine._sequences[sequence].pages)
    with torch.inference_mode():
        for layer in engine._pool._paged:
            layer.keys[pages] = torch.nan
            layer.values[pages] = torch.nan
    engine.close(sequence)
    again = engine.open()
    assert torch.equal(all_logits(engine, again, text), clean)
    assert engine._sequences[again].pages == pages


def test_the_self_test_notices_what_depends_on_company(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without padding, fp32 rows below four come out otherwise: the reason for all of strict mode."""
    engine = wrap(build("llama", hidden_size=256, intermediate_size=704), name="tiny", products="plain")
    assert self_test(engine).strict
    monkeypatch.setattr(self_test_module, "LONG_TOKENS", 40)
    engine.rows = RowRule(1, 512)
    if torch.backends.mkl.is_available():
        report = self_test(engine)
        assert not report.strict
        assert "token by token" in report.sentence
    assert not engine._sequences


# ---------------------------------------------------------------------------------------------------------------------
# Pages
# ---------------------------------------------------------------------------------------------------------------------


def test_a_beginning_that_is_found_gives_the_same_bits(engine: PagedEngine) -> None:
    text, found_before = ids(300), engine.memory.prefix_hit_tokens
    clean = engine.open(scope="alone")
    whole = all_logits(engine, clean, text)
    author = engine.open(text)
    assert engine.length(author) == 0
    for first in range(0, 200, 7):  # in other cuts
        engine.logits([Block(author, text[first : min(first + 7, 200)], 0, GREEDY)])
    engine.close(author)
    found = engine.open(text)
    assert engine.length(found) == 192
    assert torch.equal(all_logits(engine, found, text[192:]), whole[192:])
    other = engine.open([*text[:130], 9])
    assert engine.length(other) == 128
    assert engine.memory.prefix_hit_tokens - found_before == 320
    all_logits(engine, other, [9] * 70)  # in company of the first, whose pages it must not touch
    engine.truncate(found, 150)  # into the middle of a page that others may find
    assert torch.equal(all_logits(engine, found, text[150:]), whole[150:])
    again = engine.open(text[:193])
    assert engine.length(again) == 192
    assert torch.equal(all_logits(engine, again, text[192:193]), whole[192:193])


def test_pages_out_of_order_give_the_same_bits() -> None:
    model = build("llama")
    scarce = 18 * page_bytes(layer_shapes(model), torch.float32) / 2**30
    engine = wrap(model, name="tiny", max_sequences=4, kv_cache_gib=scarce)
    text = ids(200)
    whole = all_logits(engine, engine.open(scope="alone"), text)
    rides = [engine.open(scope=str(ride)) for ride in range(3)]
    for first in range(0, 200, 20):
        blocks = [Block(ride, text[first : first + 20], 20, GREEDY) for ride in rides]
        for logits in engine.logits(blocks):
            assert torch.equal(logits, whole[first : first + 20])
    tables = [engine._sequences[ride].pages for ride in rides]
    assert any(pages != list(range(pages[0], pages[0] + len(pages))) for pages in tables)


def test_too_little_memory_is_said_before_anything_is_evaluated() -> None:
    model = build("llama")
    one = page_bytes(layer_shapes(model), torch.float32)
    engine = wrap(model, name="tiny", max_sequences=4, context_limit=256, kv_cache_gib=5 * one / 2**30)
    assert engine.memory.free == 5
    text = ids(256)
    first, second = engine.open(), engine.open()
    engine.step([Block(first, text[:200], 0, GREEDY)])
    with pytest.raises(EngineFull, match="2 pages of 64 tokens are needed and 1 of 5"):
        engine.step([Block(first, text[200:201], 1, GREEDY), Block(second, text[:100], 1, GREEDY)])
    assert (engine.length(first), engine.length(second)) == (200, 0)
    engine.close(first)
    assert len(all_logits(engine, second, text)) == 256
    assert engine.memory.used == 4
    with pytest.raises(ModelError, match="--kv-cache-gib"):
        wrap(build("llama"), name="tiny", context_limit=256, kv_cache_gib=3 * one / 2**30)


# ---------------------------------------------------------------------------------------------------------------------
# Sequences and errors
# ---------------------------------------------------------------------------------------------------------------------


def test_a_full_engine_says_so_and_has_room_again_after_close(engine: PagedEngine) -> None:
    opened = [engine.open() for _ in range(6)]
    assert len(set(opened)) == 6
    with pytest.raises(EngineFull, match="max_sequences"):
        engine.open()
    engine.close(opened[2])
    again = engine.open()
    assert again not in opened
    assert engine.length(again) == 0
    with pytest.raises(ValueError, match="not open"):
        engine.length(opened[2])


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        (lambda a, b: [Block(a, [1], 1, GREEDY), Block(b, [], 0, GREEDY)], "empty"),
        (lambda a, b: [Block(a, [1], 1, GREEDY), Block(b, [VOCABULARY], 1, GREEDY)], "outside"),
        (lambda a, b: [Block(a, [1], 1, GREEDY), Block(b, [-1], 1, GREEDY)], "outside"),
        (lambda a, b: [Block(a, [1], 1, GREEDY), Block(a, [2], 1, GREEDY)], "twice"),
        (lambda a, b: [Block(a, [1], 1, GREEDY), Block(b, [2], 2, GREEDY)], "choices"),
        (lambda a, b: [Block(a, [1], 1, GREEDY), Block(b, [2] * (CONTEXT - 2), 1, GREEDY)], "context limit"),
        (lambda a, b: [Block(a, [1], 1, GREEDY), Block(SequenceId(10**9), [2], 1, GREEDY)], "not open"),
    ],
)
def test_a_refused_step_changes_nothing(
    engine: PagedEngine, blocks: Callable[[SequenceId, SequenceId], list[Block]], message: str
) -> None:
    a, b = engine.open(), engine.open()
    text = ids(8)
    engine.step([Block(a, text[:4], 0, GREEDY), Block(b, text[:3], 0, GREEDY)])
    with pytest.raises(ValueError, match=message):
        engine.step(blocks(a, b))
    assert (engine.length(a), engine.length(b)) == (4, 3)
    logits = all_logits(engine, a, text[4:])
    assert torch.equal(logits, all_logits(engine, engine.open(), text)[4:])


def test_a_step_that_fails_midway_changes_no_length(subject: Subject) -> None:
    engine, text = subject.engine, ids(900)
    sequence = engine.open()
    all_logits(engine, sequence, text[:100])
    with subject.fail_at(2), pytest.raises(RuntimeError, match="out of memory"):
        engine.step([Block(sequence, text[100:], 1, GREEDY)])
    assert engine.length(sequence) == 100
    fresh = engine.open()
    assert torch.equal(all_logits(engine, sequence, text[100:120]), all_logits(engine, fresh, text[:120])[100:])


@pytest.mark.parametrize("length", [-1, 6])
def test_truncate_refuses_what_is_not_there(engine: PagedEngine, length: int) -> None:
    sequence = engine.open()
    engine.step([Block(sequence, ids(5), 0, GREEDY)])
    with pytest.raises(ValueError, match="cannot be truncated"):
        engine.truncate(sequence, length)
    assert engine.length(sequence) == 5


# ---------------------------------------------------------------------------------------------------------------------
# Opening models
# ---------------------------------------------------------------------------------------------------------------------


def test_load_opens_a_folder(tmp_path: Path) -> None:
    model = build("llama")
    model.save_pretrained(tmp_path / "tiny")
    engine = load(str(tmp_path / "tiny"), device="cpu", context_limit=100, max_sequences=2)
    info = engine.info
    assert (info.name, info.vocabulary_size, info.eos_ids) == ("tiny", VOCABULARY, (1,))
    assert (info.context_limit, info.max_sequences, info.strict) == (100, 2, True)
    text = ids(100)
    expected = own_logits(model, text)
    got = all_logits(engine, engine.open(), text)
    torch.testing.assert_close(got, expected, atol=2e-4 * float(expected.abs().max()), rtol=0)


def test_an_answer_ends_by_whichever_configuration(tmp_path: Path) -> None:
    """config.json and generation_config.json are often at odds."""
    model = build("llama")
    model.config.eos_token_id, model.generation_config.eos_token_id = 0, [7, 5]
    model.save_pretrained(tmp_path)
    assert load(str(tmp_path), device="cpu", context_limit=100, max_sequences=2).info.eos_ids == (0, 5, 7)


def test_equal_fingerprints_mean_equal_words(tmp_path: Path) -> None:
    model = build("llama")
    model.save_pretrained(tmp_path)

    def fingerprint(**settings: Any) -> str:
        return load(str(tmp_path), device="cpu", **settings).info.fingerprint

    first = fingerprint()
    assert fingerprint(context_limit=64, max_sequences=3) == first
    assert fingerprint(strict=False) != first
    assert fingerprint(threads=2) != first
    assert fingerprint(threads=1) == first
    assert fingerprint(dtype="bfloat16") != first
    with torch.no_grad():
        next(model.parameters())[0, 0] += 1e-3
    model.save_pretrained(tmp_path)
    assert fingerprint() != first


def test_plain_mode_says_that_it_is_not_strict() -> None:
    info = wrap(build("llama"), name="tiny", strict=False).info
    assert not info.strict
    assert "off" in info.strict_report


def test_models_that_cannot_be_served_are_refused_in_sentences(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"no config\.json"):
        load(str(tmp_path / "empty"))
    with pytest.raises(ModelError, match="no folder"):
        load(str(tmp_path / "missing"))
    transformers.ViTConfig().save_pretrained(tmp_path / "picture")
    with pytest.raises(ModelError, match="not a causal language model"):
        load(str(tmp_path / "picture"))
    build("llama").config.save_pretrained(tmp_path / "weightless")
    with pytest.raises(ModelError, match="weights"):
        load(str(tmp_path / "weightless"))
    for settings, message in (
        ({"dtype": "int3"}, "dtype"),
        ({"device": "abacus"}, "device"),
        ({"max_sequences": 0}, "max_sequences"),
        ({"threads": 0}, "threads"),
    ):
        with pytest.raises(ModelError, match=message):
            load(str(tmp_path / "weightless"), **settings)


def test_models_that_a_packed_forward_would_get_wrong_are_refused() -> None:
    small: dict[str, Any] = {"vocab_size": VOCABULARY, "hidden_size": 48, "num_hidden_layers": 2}
    sliding = transformers.MistralConfig(**DECODER, sliding_window=64)
    softcap = transformers.Gemma2Config(**DECODER, head_dim=16, sliding_window=CONTEXT)
    encoder = small | {"num_attention_heads": 4, "intermediate_size": 64}
    doge = transformers.DogeConfig(
        **DECODER, keep_window_size=CONTEXT // 2
    )  # in short sequences there is no difference
    dynamic = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    alibi = transformers.BloomConfig(vocab_size=VOCABULARY, hidden_size=48, n_layer=2, n_head=4)
    for model, message in (
        (transformers.MistralForCausalLM(sliding), "sliding window of 64"),
        (transformers.Gemma2ForCausalLM(softcap), "softcap"),
        (build("llama", rope_parameters=dynamic), "longest sequence"),
        (transformers.BloomForCausalLM(alibi), "attention interface"),
        (transformers.MambaForCausalLM(transformers.MambaConfig(**small)), "attention interface"),
        (transformers.BertLMHeadModel(transformers.BertConfig(**encoder)), "keeps no keys and values"),
        (transformers.DogeForCausalLM(doge), "masks attention by a rule of its own"),
    ):
        with pytest.raises(ModelError, match=message):
            wrap(model, name="refused")
    short = wrap(transformers.MistralForCausalLM(sliding), name="short", context_limit=64)
    assert short.info.context_limit == 64


@pytest.mark.parametrize(
    ("handed", "message"),
    [
        ({"attention_mask": torch.zeros(1)}, "masks attention by a rule of its own"),
        ({"sliding_window": 100}, "window of 100 tokens"),
        ({"position_bias": torch.zeros(1)}, "uses position_bias"),
        ({"softcap": 50.0}, "uses softcap"),
    ],
    ids=str,
)
def test_what_attention_is_handed_and_does_not_compute_is_refused(
    monkeypatch: pytest.MonkeyPatch, handed: dict[str, Any], message: str
) -> None:
    """However late it would begin to matter: a trial of some tokens does not find a window of thousands."""
    attend = AttentionInterface._global_mapping[STRICT]

    def handing(module: Any, query: Any, key: Any, value: Any, mask: Any, **rest: Any) -> Any:
        return attend(module, query, key, value, **{"attention_mask": mask, **rest, **handed})

    monkeypatch.setitem(AttentionInterface._global_mapping, STRICT, handing)
    model = build("gemma")  # its layers run as transformers has them
    with pytest.raises(ModelError, match=message):
        wrap(model, name="refused")


def test_a_model_that_comes_out_otherwise_in_packed_form_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that ignores the positions it is given, as one with its own idea of them might."""
    model = build("llama")
    rotary = model.model.rotary_emb.forward

    def from_zero(x: torch.Tensor, position_ids: torch.Tensor) -> Any:
        return rotary(x, position_ids=torch.arange(position_ids.shape[1])[None])

    monkeypatch.setattr(model.model.rotary_emb, "forward", from_zero)
    with pytest.raises(ModelError, match="differently in packed form"):
        wrap(model, name="stubborn")


# ----------------------------------------------------------------------------------------------------------------------
# Guesses that branch


def random_tree(rng: random.Random, count: int) -> list[int]:
    """Parents of guesses, laid out as `VerifierTree.pick` does: a path to its end before the next one begins."""
    children: dict[int, list[int]] = {-1: []}
    for node in range(count):
        children[node] = []
        children[rng.randrange(max(-1, node - 4), node)].append(node)
    order: list[int] = []
    parents: list[int] = []
    stack = [(node, -1) for node in reversed(children[-1])]
    while stack:
        node, parent = stack.pop()
        order.append(node)
        parents.append(parent)
        stack += [(child, len(order) - 1) for child in reversed(children[node])]
    return parents


@pytest.fixture(scope="module", params=["llama", "gpt2", "gemma", "llama.cpp"])
def branching(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> PagedEngine:
    """Every engine that takes trees, and on torch models of several kinds."""
    if request.param == "llama.cpp":
        return llama_cpp_subject(tmp_path_factory.mktemp("engine")).engine
    return wrap(build(request.param), name="tiny")


@pytest.mark.parametrize("sampler", [GREEDY, WARM, PENALISED], ids=["greedy", "warm", "penalised"])
@pytest.mark.parametrize("seed", range(3))
def test_every_path_of_a_tree_says_what_it_says_alone(branching: PagedEngine, seed: int, sampler: Sampler) -> None:
    """In company, over the ends of pages; and a kept path goes on as if nothing else had been guessed."""
    rng, engine = random.Random(seed), branching
    assert engine.info.trees
    prompt, other = ids(rng.randrange(50, 64), seed), ids(30, seed + 100)
    forked, straight, beside = engine.open(), engine.open(), engine.open()
    engine.step([Block(forked, prompt[:-1], 0, sampler)])
    for _ in range(5):
        parents = random_tree(rng, rng.randrange(2, 14))
        guesses = rng.choices(range(VOCABULARY), k=len(parents))
        before = engine.length(forked)
        pending = prompt[before:]
        tree = Block(forked, [*pending, *guesses], len(guesses) + 1, sampler, parents)
        chosen = engine.step([tree, Block(beside, [rng.choice(other)], 1, sampler)])[0]
        for leaf in range(len(guesses)):
            path = path_to(parents, leaf)
            engine.truncate(straight, 0)
            engine.forget()
            line = [*prompt, *(guesses[guess] for guess in path)]
            alone = engine.step([Block(straight, line, len(path) + 1, sampler)])[0]
            assert list(alone.tokens) == [chosen.tokens[row] for row in (0, *(guess + 1 for guess in path))]
            assert list(alone.logprobs) == [
                chosen.logprobs[row] for row in (0, *(guess + 1 for guess in path)) if chosen.logprobs
            ]
        path = path_to(parents, rng.randrange(-1, len(guesses)))
        engine.keep(forked, before + len(pending), path)
        prompt += [guesses[guess] for guess in path]
        assert engine.length(forked) == len(prompt)
        prompt.append(rng.randrange(VOCABULARY))
    for sequence in (forked, straight, beside):
        engine.close(sequence)
    assert engine.memory.used == 0


def test_a_branch_may_reach_the_context_limit_and_no_farther(branching: PagedEngine) -> None:
    """However many guesses there are in all, and however short the trunk is."""
    limit = branching.info.context_limit
    sequence, text = branching.open(scope="limit"), ids(limit - 4)
    branching.step([Block(sequence, text[:-1], 0, GREEDY)])
    parents = [-1, -1, 1, 2, -1, 4, 5, 6]  # a trunk of one, a twig of three, one of four
    block = Block(sequence, [text[-1], *ids(8, 2)], 9, GREEDY, parents)
    assert len(branching.step([block])[0].tokens) == 9
    branching.keep(sequence, limit - 4, [4, 5, 6, 7])
    assert branching.length(sequence) == limit
    branching.truncate(sequence, limit - 5)
    with pytest.raises(ValueError, match=f"would grow to {limit + 1} tokens"):
        branching.step([Block(sequence, [*block.tokens, 3], 10, GREEDY, [*parents, 7])])
    assert branching.length(sequence) == limit - 5
    alone = branching.open(scope="alone")
    kept = branching.step([Block(alone, [*text, *block.tokens[5:]], 5, GREEDY)])[0]
    again = branching.step([block])[0]
    assert list(kept.tokens) == [again.tokens[row] for row in (0, 5, 6, 7, 8)]
    for each in (sequence, alone):
        branching.close(each)


def test_keys_of_a_twig_that_are_not_written_where_it_reads_them_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = wrap(build("llama"), name="tiny")
    assert branches_agree(engine)
    monkeypatch.setattr(
        Branches, "copies", lambda self, start, _: [[] for _ in range(self.base - start + len(self.parents))]
    )
    assert not branches_agree(engine)


def test_branches_that_cannot_be_are_refused() -> None:
    engine = wrap(build("llama"), name="tiny")
    sequence = engine.open()
    with pytest.raises(ValueError, match="2 parents are given for 1 guesses"):
        engine.step([Block(sequence, [3, 4], 2, GREEDY, [-1, 0])])
    with pytest.raises(ValueError, match="guess 1 cannot hang on guess 1"):
        engine.step([Block(sequence, [3, 4, 5], 3, GREEDY, [-1, 1])])
    assert engine.length(sequence) == 0
    engine.describe(trees=False)
    with pytest.raises(ValueError, match="takes no guesses that branch"):
        engine.step([Block(sequence, [3, 4, 5], 3, GREEDY, [-1, -1])])


def test_no_page_is_lost_to_branches_that_find_no_room() -> None:
    model = build("llama")
    engine = wrap(model, name="tiny", kv_cache_gib=20 * page_bytes(layer_shapes(model), torch.float32) / 2**30)
    assert engine.info.trees
    sequence = engine.open()
    engine.step([Block(sequence, ids(60), 0, GREEDY)])
    free = engine.memory.free
    with pytest.raises(EngineFull):
        engine.reserve(sequence, 40, [-1] * 40)
    engine.truncate(sequence, 60)
    assert engine.memory.free == free
    engine.reserve(sequence, 8, [-1] * 8)
    assert engine.memory.free == free - 7
    engine.close(sequence)
    engine.forget()
    assert engine.memory.used == 0


def test_room_reserved_for_another_number_of_tokens_before_the_branches_is_made_anew() -> None:
    engine = wrap(build("llama"), name="tiny")
    subject, fresh = engine.open(), engine.open()
    engine.step([Block(sequence, ids(62), 0, WARM) for sequence in (subject, fresh)])
    parents = [-1, 0, 0, -1]
    engine.reserve(subject, 3 + 4, parents)
    blocks = [Block(sequence, ids(5, 7), 5, WARM, parents) for sequence in (subject, fresh)]
    assert engine.step(blocks[:1]) == engine.step(blocks[1:])
    engine.keep(subject, 63, [0, 2])
    engine.keep(fresh, 63, [0, 2])
    ahead = [Block(sequence, ids(3, 8), 3, WARM) for sequence in (subject, fresh)]
    assert engine.step(ahead[:1]) == engine.step(ahead[1:])


def test_penalties_see_the_path_of_a_twig_and_no_other() -> None:
    """A token that is always said unless it was said before."""
    engine = wrap(build("llama"), name="tiny")
    once = Sampler(
        SamplingParams(temperature=0.0, presence_penalty=2.0, frequency_penalty=2.0, logit_bias={7: 3.5}),
        seed=1,
        prompt_length=20,
    )
    sequence = engine.open()
    prompt = [token for token in ids(60) if token != 7][:40]
    #  log - 3,  log - 7 - 4,  log - 5 - 7 - 6
    block = Block(sequence, [*prompt, 3, 7, 4, 5, 7, 6], 7, once, [-1, -1, 1, -1, 3, 4])
    chosen = engine.step([block])[0].tokens
    assert [token == 7 for token in chosen] == [True, True, False, False, True, False, False]
    engine.keep(sequence, 40, [3, 4])
    assert engine.step([Block(sequence, [8], 1, once)])[0].tokens[0] != 7
    engine.truncate(sequence, 41)  # which ends with 5
    assert engine.step([Block(sequence, [8], 1, once)])[0].tokens[0] == 7
