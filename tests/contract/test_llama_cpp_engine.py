"""What is `LlamaCppEngine`'s own: row rules, cells that are shared, kept and laid anew, and the files it opens.

The contract that it shares with the other engines is tested in `test_engine`.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from cloud_verifier.engines.base import Block, EngineFull, ModelError, SequenceId
from cloud_verifier.engines.branches import path_to
from cloud_verifier.engines.llama_cpp import cells
from cloud_verifier.engines.llama_cpp import engine as engine_module
from cloud_verifier.engines.llama_cpp import load as load_module
from cloud_verifier.engines.llama_cpp.cells import Cells
from cloud_verifier.engines.llama_cpp.engine import DecodeError, LlamaCppEngine
from cloud_verifier.engines.llama_cpp.load import LlamaCppSettings, load
from cloud_verifier.engines.llama_cpp.row_rules import PLAIN_ROWS, RowRule
from cloud_verifier.engines.llama_cpp.self_test import strictness
from cloud_verifier.engines.pages import PAGE_TOKENS
from cloud_verifier.engines.self_test import branches_agree
from cloud_verifier.serving.codec import Codec
from cloud_verifier.serving.gguf_codec import GgufCodec
from cloud_verifier.serving.text_codec import TextError
from edge_client.drafters.llama_cpp.drafter import LlamaCppDrafter
from edge_client.export.gguf_file import export_gguf
from outrider_models.gguf_header import read_header
from tests.contract.test_engine import GREEDY, WARM, all_logits, build, ids, random_tree
from tests.contract.tiny_models import save_gguf, save_hybrid_gguf, save_recurrent_gguf
from tests.losslessness.conftest import DEMO

QUANTIZATIONS = ("f32", "f16", "q8_0", "q4_0", "q4_k_m")
WIDE: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 512}  # K-quants have blocks of 256


@pytest.fixture(scope="session")
def file(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The tiny model in a quantization, made when first asked for."""
    folder = tmp_path_factory.mktemp("gguf")

    def make(quantization: str) -> Path:
        path = folder / f"{quantization}.gguf"
        if not path.exists():
            save_gguf(build("llama", **WIDE), path, quantization)
        return path

    return make


@pytest.fixture(scope="module")
def loaded(file: Callable[[str], Path]) -> LlamaCppEngine:
    return load(file("q8_0"), LlamaCppSettings(threads=1, max_sequences=6, kv_cache_gib=_gib(file("q8_0"), 12)))


@pytest.fixture
def engine(loaded: LlamaCppEngine) -> Iterator[LlamaCppEngine]:
    """With room for 12 pages, and no open sequences."""
    yield loaded
    for sequence in list(loaded._sequences):
        loaded.close(sequence)
    loaded.forget()
    assert loaded.cells.used == 0
    assert loaded.memory.free == 12


def _gib(path: Path, pages: int) -> float:
    """Memory for so many pages, and the cells that go with them."""
    bytes_per_token = read_header(path).cache_bytes(1, 2.0)
    return engine_module.cells_for(pages) * bytes_per_token / 2**30


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_any_cut_in_any_company_gives_the_same_bits(
    file: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, quantization: str, threads: int
) -> None:
    """Guesses are taken back in between, and cells laid anew."""
    monkeypatch.setattr(cells, "_SLACK", 64)
    engine = load(file(quantization), LlamaCppSettings(threads=threads, max_sequences=5))
    assert engine.info.strict, engine.info.strict_report
    text = ids(700)
    whole = all_logits(engine, engine.open(scope="alone"), text)
    chance = random.Random(threads)
    rides = [engine.open(scope=str(ride)) for ride in range(4)]
    while min(engine.length(ride) for ride in rides) < len(text):
        going = [ride for ride in rides if engine.length(ride) < len(text) and chance.random() < 0.8]
        starts = {ride: engine.length(ride) for ride in going}
        parts = {ride: text[at : at + chance.choice((1, 1, 2, 5, 8, 9, 40, 130))] for ride, at in starts.items()}
        wrong = {ride: ids(min(chance.choice((0, 0, 1, 3)), len(text) - at), at) for ride, at in starts.items()}
        blocks = [Block(ride, part + wrong[ride], len(part + wrong[ride]), GREEDY) for ride, part in parts.items()]
        for ride, logits in zip(going, engine.logits(blocks), strict=True):
            at, count = starts[ride], len(parts[ride])
            assert torch.equal(logits[:count], whole[at : at + count])
            engine.truncate(ride, at + count)


def test_random_use_gives_what_a_fresh_sequence_gives(engine: LlamaCppEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sequences begin alike, are cut back into their beginnings, closed, found again and pushed out of memory."""
    monkeypatch.setattr(cells, "_SLACK", 100)
    monkeypatch.setattr(engine_module, "KEPT_PAGES", 4)
    chance, compacted, full = random.Random(5), [0], [0]
    beginnings = [ids(200, seed) for seed in range(3)]
    compact = engine.compact

    def counted() -> None:
        compacted[0] += 1
        compact()

    monkeypatch.setattr(engine, "compact", counted)
    texts: dict[SequenceId, list[int]] = {}
    asked: list[tuple[list[int], torch.Tensor]] = []
    for turn in range(400):
        if len(texts) < 5 and chance.random() < 0.3:
            text = [*chance.choice(beginnings)[: chance.randrange(200)], *ids(chance.randrange(1, 20), turn)]
            sequence = engine.open(text)
            assert engine.length(sequence) < len(text)
            texts[sequence] = text[: engine.length(sequence)]
            more = text[engine.length(sequence) :]
        elif texts:
            sequence = chance.choice(list(texts))
            if chance.random() < 0.2:
                engine.close(sequence)
                del texts[sequence]
                continue
            if chance.random() < 0.3:
                length = chance.randrange(len(texts[sequence]) + 1)
                engine.truncate(sequence, length)
                del texts[sequence][length:]
            more = ids(chance.randrange(1, 50), turn)
        else:
            continue
        try:
            logits = engine.logits([Block(sequence, more, 1, GREEDY)])[0]
        except EngineFull:
            full[0] += 1
            engine.close(sequence)
            del texts[sequence]
            continue
        texts[sequence] += more
        asked.append((list(texts[sequence]), logits))
        assert engine.memory.cached <= 4 + 12 - engine.memory.free
    for sequence in texts:
        engine.close(sequence)
    assert min(compacted[0], full[0], engine.memory.prefix_hit_tokens) > 3
    for text, logits in chance.sample(asked, 60):
        fresh = engine.open(scope="fresh")
        assert torch.equal(engine.logits([Block(fresh, text, 1, GREEDY)])[0], logits)
        engine.close(fresh)
        engine.forget()


def test_a_lone_sequence_wastes_no_cells(engine: LlamaCppEngine) -> None:
    sequence = engine.open()
    engine.step([Block(sequence, ids(20), 0, GREEDY)])
    for turn in range(20):
        engine.step([Block(sequence, ids(8, turn), 8, GREEDY)])
        engine.truncate(sequence, 20 + turn)
        assert engine.cells.used == 20 + turn
        engine.step([Block(sequence, [turn], 1, GREEDY)])


def test_dead_cells_are_never_many(engine: LlamaCppEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells, "_SLACK", 32)
    one, other = engine.open(), engine.open()
    for turn in range(60):
        engine.step([Block(one, ids(7, turn), 7, GREEDY), Block(other, ids(7, turn), 7, GREEDY)])
        engine.truncate(one, turn)
        engine.truncate(other, turn)
        assert engine.cells.used <= 2 * 2 * turn + 32 + 14


def test_what_is_kept_of_closed_sequences_is_limited(engine: LlamaCppEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "KEPT_PAGES", 3)
    for seed in range(8):
        sequence = engine.open()
        engine.step([Block(sequence, ids(2 * PAGE_TOKENS, seed), 0, GREEDY)])
        engine.close(sequence)
        assert engine.memory.cached <= 3
    found = engine.open(ids(2 * PAGE_TOKENS + 1, 7))
    assert engine.length(found) == 2 * PAGE_TOKENS


@pytest.mark.parametrize("laid_anew", [False, True])
def test_what_an_open_sequence_gives_up_is_found_by_others(engine: LlamaCppEngine, laid_anew: bool) -> None:
    text = ids(230)
    whole = all_logits(engine, alone := engine.open(scope="alone"), text)
    engine.close(alone)
    engine.forget()
    sequence = engine.open()
    engine.step([Block(sequence, text[:200], 0, GREEDY)])
    engine.reserve(sequence, 1)  # by which its full pages become known
    engine.truncate(sequence, 10)
    assert engine.cells.used == 200  # those of the pages are not free, and those behind them are dead
    if laid_anew:
        engine.compact()
        assert engine.cells.used == 192 + 10
    found = engine.open(text)
    assert engine.length(found) == 192
    assert torch.equal(all_logits(engine, found, text[192:]), whole[192:])
    assert torch.equal(all_logits(engine, sequence, text[10:70]), whole[10:70])


def test_a_page_that_gets_other_contents_is_not_found_by_its_old_ones(file: Callable[[str], Path]) -> None:
    path = file("q8_0")
    engine = load(path, LlamaCppSettings(threads=1, max_sequences=4, context_limit=256, kv_cache_gib=_gib(path, 6)))
    first, second, text = ids(PAGE_TOKENS + 1, 1), ids(PAGE_TOKENS + 1, 2), ids(PAGE_TOKENS + 9, 3)
    for beginning in (first, second):
        engine.step([Block(sequence := engine.open(), beginning, 0, GREEDY)])
        engine.close(sequence)
    sequence, other = engine.open(second), engine.open()
    engine.reserve(other, 4 * PAGE_TOKENS)
    assert (engine.length(sequence), engine.memory.free, engine.memory.cached) == (PAGE_TOKENS, 0, 1)
    engine.truncate(sequence, 10)  # into the middle of a page that is kept, so that it gets another: that of `first`
    own = second[:10] + text[10:PAGE_TOKENS]
    engine.step([Block(sequence, own[10:], 0, GREEDY)])
    assert engine.memory.cached == 1
    engine.close(other)
    engine.close(sequence)
    engine.close(engine.open(first))
    assert engine.memory.prefix_hit_tokens == PAGE_TOKENS
    found = engine.open([*own, *text[PAGE_TOKENS:]])
    assert engine.length(found) == PAGE_TOKENS
    logits = all_logits(engine, found, text[PAGE_TOKENS:])
    fresh = engine.open(scope="fresh")
    assert torch.equal(all_logits(engine, fresh, [*own, *text[PAGE_TOKENS:]])[PAGE_TOKENS:], logits)


@pytest.mark.parametrize("status", [1, -3])
def test_a_decode_that_fails_changes_nothing(
    engine: LlamaCppEngine, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    text, sequence = ids(60), engine.open()
    clean = all_logits(engine, sequence, text)
    engine.truncate(sequence, 20)
    other = engine.open()
    decode, calls = engine._api.llama_decode, []

    def failing(*arguments: Any) -> int:
        calls.append(arguments)
        return int(decode(*arguments)) or (status if len(calls) == 2 else 0)

    monkeypatch.setattr(engine, "rows", RowRule(1, 32))  # so that a step takes several decodes
    monkeypatch.setattr(engine._api, "llama_decode", failing)
    with pytest.raises(DecodeError, match=f"could not evaluate .* status {status}"):
        engine.step([Block(other, ids(30, 2), 0, GREEDY), Block(sequence, text[20:], 1, GREEDY)])
    monkeypatch.undo()
    assert (engine.length(sequence), engine.length(other)) == (20, 0)
    assert torch.equal(all_logits(engine, sequence, text[20:]), clean[20:])


@pytest.mark.parametrize("seed", range(2))
def test_trees_in_company_give_what_their_paths_give_alone(
    file: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Cells are laid anew between a step and the choice of a path, decodes fail, sequences begin alike."""
    engine, alone = (load(file("f32"), LlamaCppSettings(threads=1, max_sequences=4)) for _ in "ab")
    assert engine.info.trees
    chance, decode, beginning = random.Random(seed), engine._decode, ids(130)

    def failing(*arguments: Any, **named: Any) -> torch.Tensor:
        logits = decode(*arguments, **named)
        if chance.random() < 0.1:
            raise DecodeError("as if")
        return logits

    def fresh(text: list[int], rows: int) -> torch.Tensor:
        sequence = alone.open(scope=str(chance.random()))
        logits = alone.logits([Block(sequence, text, rows, GREEDY)])[0]
        alone.close(sequence)
        return logits

    monkeypatch.setattr(engine, "_decode", failing)
    texts: dict[SequenceId, list[int]] = {}  # all but the last token are in the engine
    unkept: dict[SequenceId, tuple[list[int], list[int]]] = {}
    twigs_kept = 0
    for turn in range(80):
        if len(texts) < 4:
            text = [*beginning[: chance.choice((0, 50, 129))], *ids(chance.randrange(2, 9), turn)]
            texts[engine.open(text)] = text
        blocks = []
        for sequence, text in texts.items():
            if sequence in unkept or chance.random() < 0.4:
                continue
            parents = random_tree(chance, chance.randrange(2, 9)) if chance.random() < 0.8 else []
            guesses = chance.choices(range(211), k=len(parents))
            pending = text[engine.length(sequence) :]
            blocks.append(Block(sequence, [*pending, *guesses], 1 + len(guesses), GREEDY, parents))
        lengths = [engine.length(sequence) for sequence in texts]
        try:
            results = engine.logits(blocks)
        except DecodeError:
            assert lengths == [engine.length(sequence) for sequence in texts]
            continue
        for block, logits in zip(blocks, results, strict=True):
            count = len(block.parents)
            guesses = list(block.tokens[len(block.tokens) - count :])
            unkept[block.sequence] = guesses, list(block.parents)
            path = path_to(block.parents, chance.randrange(-1, count))
            line = [*texts[block.sequence], *(guesses[guess] for guess in path)]
            assert torch.equal(logits[[0, *(guess + 1 for guess in path)]], fresh(line, 1 + len(path)))
        if chance.random() < 0.3:
            engine.compact()
        for sequence in list(unkept):
            if chance.random() < 0.3:
                continue
            guesses, parents = unkept.pop(sequence)
            path = path_to(parents, chance.randrange(-1, len(parents)))
            twigs_kept += path != list(range(len(path)))
            engine.keep(sequence, len(texts[sequence]), path)
            texts[sequence] += [*(guesses[guess] for guess in path), chance.randrange(211)]
            if chance.random() < 0.1:
                engine.close(sequence)
                del texts[sequence]
    assert twigs_kept > 5
    for sequence in texts:
        engine.close(sequence)
    engine.forget()
    assert (engine.cells.used, engine.memory.used) == (0, 0)


def test_branches_that_find_no_sequence_of_llama_cpp_are_refused(
    engine: LlamaCppEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing is lost: another step has them."""
    monkeypatch.setattr(engine, "_most_twigs", 5)
    one, other = engine.open(), engine.open()
    engine.step([Block(one, ids(20), 0, GREEDY), Block(other, ids(20), 0, GREEDY)])
    free = engine.memory.free
    engine.reserve(one, 5, [-1] * 4)
    with pytest.raises(EngineFull, match="sequences for 5 branches"):
        engine.reserve(other, 5, [-1] * 4)
    engine.truncate(one, 20)
    assert engine.memory.free == free
    engine.step([Block(other, ids(5), 5, GREEDY, [-1] * 4)])
    engine.keep(other, 21, [3])
    assert engine.memory.free == free
    crowded = LlamaCppSettings(threads=1, max_sequences=engine_module.MOST_SEQUENCES)
    assert not load(engine.model.path, crowded).info.trees  # all of llama.cpp's sequences are taken


def test_the_self_test_notices_twigs_that_read_what_is_not_on_their_path(
    file: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = load(file("f32"), LlamaCppSettings(threads=1, max_sequences=2))
    assert branches_agree(engine)
    lines = LlamaCppEngine._lines
    # Every guess before a twig is taken for one that it hangs on.
    monkeypatch.setattr(
        LlamaCppEngine,
        "_lines",
        lambda engine, block: [line._replace(shared=range(len(line.shared))) for line in lines(engine, block)],
    )
    assert not branches_agree(engine)


def test_too_little_memory_is_said_before_anything_is_evaluated(file: Callable[[str], Path]) -> None:
    path = file("q8_0")
    engine = load(path, LlamaCppSettings(threads=1, max_sequences=4, context_limit=256, kv_cache_gib=_gib(path, 6)))
    assert engine.memory.free == 6
    text, first, second = ids(256), engine.open(), engine.open()
    engine.step([Block(first, text[:200], 0, GREEDY)])
    with pytest.raises(EngineFull, match="3 pages of 64 tokens are needed and 2 of 6"):
        engine.step([Block(first, text[200:201], 1, GREEDY), Block(second, text[:130], 1, GREEDY)])
    assert (engine.length(first), engine.length(second)) == (200, 0)
    engine.close(first)
    assert len(all_logits(engine, second, text)) == 256
    with pytest.raises(ModelError, match="--kv-cache-gib"):
        load(path, LlamaCppSettings(threads=1, context_limit=256, kv_cache_gib=_gib(path, 3)))
    short = load(path, LlamaCppSettings(threads=1, max_sequences=1, kv_cache_gib=_gib(path, 6)))
    assert short.info.context_limit == 6 * PAGE_TOKENS  # what there is memory for, where nobody asked for more


# ---------------------------------------------------------------------------------------------------------------------
# Opening files
# ---------------------------------------------------------------------------------------------------------------------


def test_what_an_engine_says_of_itself(file: Callable[[str], Path]) -> None:
    info = load(file("q8_0"), LlamaCppSettings(threads=1, max_sequences=2, context_limit=100)).info
    assert (info.name, info.vocabulary_size, info.eos_ids) == ("q8_0", 211, (1,))
    assert (info.context_limit, info.max_sequences, info.strict) == (100, 2, True)
    plain = load(file("q8_0"), LlamaCppSettings(threads=1, max_sequences=2, strict=False)).info
    assert not plain.strict
    assert "off" in plain.strict_report


def test_equal_fingerprints_mean_equal_words(file: Callable[[str], Path], tmp_path: Path) -> None:
    def fingerprint(path: Path | None = None, **settings: Any) -> str:
        return load(
            path or file("q8_0"), LlamaCppSettings(**{"threads": 1, "max_sequences": 2} | settings)
        ).info.fingerprint

    first = fingerprint()
    assert fingerprint(context_limit=64, max_sequences=3) == first
    assert fingerprint(strict=False) != first
    assert fingerprint(threads=2) != first
    assert fingerprint(file("q4_0")) != first
    changed = bytearray(file("q8_0").read_bytes())
    changed[-1] ^= 1
    (tmp_path / "changed.gguf").write_bytes(changed)
    assert fingerprint(tmp_path / "changed.gguf") != first


def test_the_self_test_notices_where_keys_and_values_lie(
    file: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where attention adds up in the order of cells that are not laid as a sequence's positions are.

    With float32 weights: others have products of rounded numbers, in which the last bits of a sum rarely count.
    """
    engine = load(file("f32"), LlamaCppSettings(threads=1, max_sequences=6))
    assert strictness(engine).strict
    monkeypatch.setattr(Cells, "drop", lambda cells, holder, length, **_: cells.undo(holder, length))
    report = strictness(engine)
    assert not report.strict
    assert "where keys and values lie" in report.sentence


def test_where_no_rule_holds_the_engine_says_so(file: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_module, "CPU_RULES", ((True, (PLAIN_ROWS,)), (False, (PLAIN_ROWS,))))
    engine = load(file("f32"), LlamaCppSettings(threads=1, max_sequences=2))
    assert not engine.info.strict
    assert "not exact" in engine.info.strict_report
    assert engine.rows == PLAIN_ROWS
    assert len(engine.step([Block(engine.open(), ids(100), 3, WARM)])[0].tokens) == 3


def test_files_that_cannot_be_served_are_refused_in_sentences(file: Callable[[str], Path], tmp_path: Path) -> None:
    save_recurrent_gguf(tmp_path / "mamba.gguf")
    save_hybrid_gguf(tmp_path / "lfm2.gguf")
    (tmp_path / "text.gguf").write_text("no model")
    (tmp_path / "cut.gguf").write_bytes(file("q8_0").read_bytes()[:-5000])
    refusals: list[tuple[str | Path, dict[str, Any], str]] = [
        ("mamba.gguf", {}, '"mamba" model .* keeps a state'),
        ("lfm2.gguf", {}, '"lfm2" model .* keeps a state'),
        ("text.gguf", {}, "not a GGUF file"),
        ("cut.gguf", {}, "llama.cpp cannot load"),
        ("missing.gguf", {}, "cannot open"),
        (file("q8_0"), {"max_sequences": 0}, "max_sequences"),
        (file("q8_0"), {"max_sequences": 1000}, "--max-sessions"),
        (file("q8_0"), {"threads": 0}, "threads"),
        (file("q8_0"), {"context_limit": 4}, "--max-model-len is 4"),
        (file("q8_0"), {"context_limit": 5000}, "--max-model-len is 5000, and the model takes at most 1100"),
        (file("q8_0"), {"gpu_layers": 3}, "--gpu-layers asks for a GPU"),
    ]
    for name, settings, message in refusals:
        with pytest.raises(ModelError, match=message):
            load(tmp_path / name, LlamaCppSettings(**{"threads": 1} | settings))


def test_a_window_that_forgets_is_refused_unless_nothing_leaves_it(tmp_path: Path) -> None:
    import transformers

    config = transformers.Gemma3TextConfig(
        vocab_size=211,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=16,
        query_pre_attn_scalar=16,
        max_position_embeddings=1100,
        sliding_window=128,
    )
    save_gguf(transformers.Gemma3ForCausalLM(config), tmp_path / "gemma.gguf", "f16")
    with pytest.raises(ModelError, match=r"sliding window of 128 .* --max-model-len 128 or less"):
        load(tmp_path / "gemma.gguf", LlamaCppSettings(threads=1))
    engine = load(tmp_path / "gemma.gguf", LlamaCppSettings(threads=1, context_limit=128, max_sequences=2))
    assert engine.info.context_limit == 128
    assert len(engine.step([Block(engine.open(), ids(128), 1, WARM)])[0].tokens) == 1


# ---------------------------------------------------------------------------------------------------------------------
# Text
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> tuple[GgufCodec, Codec]:
    """The demo target's, read from a GGUF file and from the folder that this was made of."""
    path = tmp_path_factory.mktemp("demo") / "target.gguf"
    export_gguf(DEMO / "target", path, "q8_0")
    engine = load(path, LlamaCppSettings(threads=1, max_sequences=1, strict=False, context_limit=64))
    return GgufCodec(engine.model.text), Codec(str(DEMO / "target"))


def test_the_files_text_is_that_of_the_transformers_folder(texts: tuple[GgufCodec, Codec]) -> None:
    ours, theirs = texts
    assert ours.fingerprint == theirs.fingerprint
    assert ours.end_ids >= theirs.end_ids
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Naïve café? <|im_end|> 二つ ..."},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "  And then?\n"},
    ]
    assert ours.encode_chat(messages) == theirs.encode_chat(messages)
    for text in ("", " a", "Hello, wörld 🙂", "<|endoftext|>"):
        assert ours.encode_text(text) == theirs.encode_text(text)
    tokens = theirs.encode_text("A café 🙂 for two, please.")
    for before in (0, 3):
        told, expected = ours.stream(tokens[:before]), theirs.stream(tokens[:before])
        pieces = [(told.push(token), expected.push(token)) for token in tokens[before:]]
        assert [ours for ours, _ in pieces] == [theirs for _, theirs in pieces]
        assert told.rest() == expected.rest() == ""


def test_drafters_of_the_same_vocabulary_speak_it(texts: tuple[GgufCodec, Codec]) -> None:
    ours, _ = texts
    drafter = LlamaCppDrafter(DEMO / "drafter.gguf")
    assert drafter.info.vocabulary_fingerprint == ours.fingerprint
    drafter.close()


def test_messages_that_cannot_be_rendered_are_refused(
    texts: tuple[GgufCodec, Codec], file: Callable[[str], Path]
) -> None:
    untemplated = load(file("q8_0"), LlamaCppSettings(threads=1, max_sequences=1, strict=False))
    with pytest.raises(TextError, match="no chat template; send text or token ids"):
        GgufCodec(untemplated.model.text).encode_chat([{"role": "user", "content": "a"}])
    codec = GgufCodec(untemplated.model.text)
    assert re.fullmatch("[0-9a-f]{64}", codec.words_fingerprint)
    assert codec.words_fingerprint != texts[0].words_fingerprint
