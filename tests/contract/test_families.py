"""Every family in both formats: exported, loaded as a device does, and held against transformers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from cloud_verifier.engines.torch_engine import load as load_target
from cloud_verifier.serving.codec import Codec
from edge_client.client import EdgeClient
from edge_client.drafters import load_drafter
from edge_client.drafters.base import Drafter
from edge_client.export.exporting import check, export
from speculation.sampling import SamplingParams
from speculation.vocabulary.vocabulary import fingerprint
from tests.contract.families import CONTEXT_TOKENS, FAMILIES, TEXTS, save_family
from tests.harness import InProcessVerifier

UNBUILT = {"gemma3"}  # onnxruntime-genai's builder does not read transformers' two rotary embeddings
UNSERVED = {"gemma3"}  # the verifier refuses sliding windows
BUILT = [name for name in FAMILIES if name not in UNBUILT]
PAIRS = [(name, kind) for name in FAMILIES for kind in ("onnx", "gguf") if kind == "gguf" or name in BUILT]
FORMATS = {"onnx": 2e-4, "gguf": 3e-2}  # tolerance of a log-probability; llama.cpp keeps its cache in float16


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The transformers folder of a family, made when first asked for."""
    root = tmp_path_factory.mktemp("families")
    torch.set_num_threads(1)

    def make(name: str) -> Path:
        if not (root / name).is_dir():
            save_family(name, root / name)
        return root / name

    return make


@pytest.fixture(scope="session")
def exported(family: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """A family in a format, unquantized, made when first asked for."""
    root = tmp_path_factory.mktemp("exported")
    made: dict[tuple[str, str], Path] = {}

    def make(name: str, kind: str) -> Path:
        if (name, kind) not in made:
            made[name, kind] = export(kind, family(name), root / f"{name}-{kind}", "none")
        return made[name, kind]

    return make


def opened(path: Path) -> Drafter:
    drafter = load_drafter(path)
    assert drafter is not None
    return drafter


def logits(source: Path, tokens: list[int]) -> np.ndarray:
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    with torch.inference_mode():
        rows: np.ndarray = model(input_ids=torch.tensor([tokens])).logits[0].double().log_softmax(-1).numpy()
    return rows


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_a_drafter_of_every_family(
    family: Callable[[str], Path], exported: Callable[[str, str], Path], name: str, kind: str
) -> None:
    """Same logits as transformers, one by one and in chunks; a rollback is a fresh start; garbage is refused."""
    source, drafter = family(name), opened(exported(name, kind))
    tokenizer = AutoTokenizer.from_pretrained(source)
    assert drafter.info.context_tokens == CONTEXT_TOKENS
    assert drafter.info.vocabulary_fingerprint == fingerprint(
        tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    )
    tokens = [int(token) for token in np.random.default_rng(3).integers(0, len(tokenizer), CONTEXT_TOKENS)]
    rows = logits(source, tokens)

    def assert_like(position: int) -> None:
        found = drafter.candidates()
        np.testing.assert_allclose(found.log_probs, rows[position][found.ids], atol=FORMATS[kind], rtol=0)

    for position, token in enumerate(tokens[:40]):
        drafter.feed([token])
        assert_like(position)
    drafter.rollback(0)
    drafter.feed(tokens[:-20])  # two chunks
    assert_like(len(tokens) - 21)
    drafter.feed(tokens[:20])
    drafter.rollback(len(tokens) - 20)  # past the window of those that have one
    fresh = opened(exported(name, kind))
    fresh.feed(tokens[:-20])
    for each in (drafter, fresh):
        each.feed(tokens[-20:-19])
    assert_like(len(tokens) - 20)
    np.testing.assert_array_equal(drafter.candidates().log_probs, fresh.candidates().log_probs)
    for bad in (-1, drafter.info.vocabulary_size):
        with pytest.raises(ValueError, match="outside"):
            drafter.feed([1, bad])
    assert drafter.length == len(tokens) - 19
    drafter.close()
    fresh.close()


@pytest.mark.parametrize("name", FAMILIES)
def test_llama_cpp_reads_text_as_the_tokenizer_does(
    exported: Callable[[str, str], Path], family: Callable[[str], Path], name: str
) -> None:
    from llama_cpp import llama_cpp

    tokenizer = Tokenizer.from_file(str(family(name) / "tokenizer.json"))
    params = llama_cpp.llama_model_default_params()
    params.vocab_only = True
    model = llama_cpp.llama_model_load_from_file(str(exported(name, "gguf")).encode(), params)
    vocabulary = llama_cpp.llama_model_get_vocab(model)
    for text in [*TEXTS, "It's 12:30, über naïve 😀!"]:
        if name == "mistral" and "😀" in text:
            continue  # a Unigram without bytes has no tokens for this
        encoded = text.encode()
        room = (llama_cpp.llama_token * 2048)()
        count = llama_cpp.llama_tokenize(vocabulary, encoded, len(encoded), room, len(room), False, True)
        assert room[:count] == tokenizer.encode(text, add_special_tokens=False).ids
    assert llama_cpp.llama_vocab_eos(vocabulary) == AutoTokenizer.from_pretrained(family(name)).eos_token_id
    llama_cpp.llama_model_free(model)


@pytest.mark.parametrize(
    ("kind", "quantize", "least_argmax", "least_overlap"),
    [
        ("onnx", "int8", 0.85, 0.95),
        ("onnx", "int4", 0.4, 0.7),
        ("gguf", "q8_0", 0.85, 0.95),
        ("gguf", "q4_k_m", 0.4, 0.7),
    ],
)
@pytest.mark.parametrize("name", FAMILIES)
def test_quantization_costs_what_it_says(
    family: Callable[[str], Path],
    tmp_path: Path,
    name: str,
    kind: str,
    quantize: str,
    least_argmax: float,
    least_overlap: float,
) -> None:
    if kind == "onnx" and name in UNBUILT:
        with pytest.raises(ValueError, match="model builder cannot build"):
            export(kind, family(name), tmp_path / "out", quantize)
        return
    source = family(name)
    path = export(kind, source, tmp_path / "out", quantize)
    tokens = [[int(token) for token in np.random.default_rng(4).integers(0, 150, 100)]]
    found = check(source, path, tokens)
    assert found.tokens == 100
    assert least_argmax <= found.argmax
    assert least_overlap <= found.overlap <= 1.0
    assert found.sampled > 0.5
    assert found.max_difference > 0


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in UNSERVED])
def test_the_same_words_with_a_drafter_of_every_family(
    family: Callable[[str], Path], exported: Callable[[str, str], Path], name: str
) -> None:
    """The family's own model as the target: words are streaming's, and the drafters' guesses are taken."""
    source = str(family(name))
    engine, prompt = load_target(source, threads=1), list(range(3, 40))
    with InProcessVerifier(engine, Codec(source)) as verifier:
        for temperature in (0.0, 0.8):
            params = SamplingParams(temperature=temperature, max_tokens=24, ignore_eos=True)
            with EdgeClient(verifier.address) as client:
                words = client.generate(prompt, params, seed=11).token_ids
            assert len(set(words)) > 1
            for kind in FORMATS:
                with EdgeClient(verifier.address, exported(name, kind), pace="sync") as client:
                    assert not client.notices
                    output = client.generate(prompt, params, seed=11)
                assert output.token_ids == words
                assert not output.metrics.notices
                # Random weights make flat distributions: at T > 0 the winner is often past a drafter's 64 candidates.
                assert (output.metrics.acceptance or 0) > (0.9 if temperature == 0 else 0.0)


def test_bytes_that_make_no_character_end_no_answer(family: Callable[[str], Path]) -> None:
    """With byte fallback a letter's byte may be taken back by what follows; random models write such things."""
    codec = Codec(str(family("gemma")))
    rng = np.random.default_rng(1)
    for _ in range(50):
        stream = codec.stream()
        tokens = [int(token) for token in rng.integers(3, 3 + 256, 30)]
        assert "".join([*map(stream.push, tokens), stream.rest()])


@pytest.mark.parametrize("odd", ["a hole", "an added token"])
def test_odd_vocabularies_are_alike_in_gguf_and_transformers(
    family: Callable[[str], Path], tmp_path: Path, odd: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(family("gpt2"), folder)
    file = folder / "tokenizer.json"
    state = json.loads(file.read_text(encoding="utf-8"))
    model = state["model"]
    if odd == "a hole":
        parts = {part for merge in model["merges"] for part in merge}
        merge = next(merge for merge in model["merges"] if "".join(merge) not in parts)
        model["merges"].remove(merge)
        token = model["vocab"].pop("".join(merge))
    else:
        token = 1 + max(model["vocab"].values())
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
        state["added_tokens"].append({"id": token, "content": "đem", **flags})
    file.write_text(json.dumps(state), encoding="utf-8")
    drafter = opened(export("gguf", folder, tmp_path / "out", "none"))
    theirs, ours = Codec(str(folder)), drafter.model_text()
    assert ours.vocabulary.fingerprint == theirs.fingerprint == drafter.info.vocabulary_fingerprint
    assert ours.vocabulary.spellings == theirs.vocabulary.spellings
    assert ours.vocabulary.spellings[token] == (b"" if odd == "a hole" else "đem".encode())
    tokens = theirs.encode_text("I đem like")
    assert tokens == ours.encode_text("I đem like")
    assert "".join(map(ours.stream().push, tokens)) == "I đem like"
    drafter.close()
