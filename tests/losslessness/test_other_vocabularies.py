"""Promise 1 for drafters whose tokenizer is not the target's: real ones in both formats, over real sockets.

They are the demo drafter with tokens renamed: a special one; some rare ones; two in five, so that the words that those
spell have to be put together of shorter tokens.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import platformdirs
import pytest

from edge_client.client import EdgeClient
from edge_client.export.gguf_file import export_gguf
from edge_client.riding.vocabulary_cache import VocabularyCache
from netlab.verifier_process import VerifierProcess
from speculation.pace.base import Synchronous
from speculation.sampling import SamplingParams
from speculation.vocabulary.correspondence import Way
from tests.losslessness.conftest import DEMO, start_verifier

SEED = 20
TOKENS = 32
PROMPT = [{"role": "user", "content": "I'd like to book a table for two at an Italian restaurant in San Jose."}]
SAMPLING = {
    "greedy": SamplingParams(temperature=0.0, max_tokens=TOKENS, ignore_eos=True),
    "t0.8": SamplingParams(temperature=0.8, max_tokens=TOKENS, ignore_eos=True),
}
RENAMED: dict[Way, Callable[[int], bool]] = {
    Way.RENUMBERED: lambda token: token == 4,
    Way.INTERSECTION: lambda token: token > 300 and token % 50 == 0,
    Way.TRANSLATED: lambda token: token >= 2500,
}


def rename_tokens(file: Path, renamed: Callable[[int], bool]) -> None:
    """In a tokenizer.json, with the merges that made them."""
    parsed: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    model = parsed["model"]
    new = {text: f"<|another {token}|>" if renamed(token) else text for text, token in model["vocab"].items()}
    model["merges"] = [pair for pair in model["merges"] if all(new[t] == t for t in (*pair, "".join(pair)))]
    model["vocab"] = {new[text]: token for text, token in model["vocab"].items()}
    for added in parsed["added_tokens"]:
        added["content"] = new.get(added["content"], added["content"])
    file.write_text(json.dumps(parsed), encoding="utf-8")


@pytest.fixture(scope="module")
def verifier() -> Iterator[VerifierProcess]:
    process = start_verifier()
    yield process
    process.stop()


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Not the user's."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(platformdirs, "user_cache_path", lambda *_: folder)
        yield folder


@pytest.fixture(scope="module")
def reference(verifier: VerifierProcess) -> dict[str, tuple[int, ...]]:
    """Plain streaming."""
    with EdgeClient(verifier.address) as client:
        return {name: client.generate(PROMPT, params, seed=SEED).token_ids for name, params in SAMPLING.items()}


def folder_with(source: str, way: Way, tmp_path: Path) -> Path:
    folder = tmp_path / "renamed"
    shutil.copytree(DEMO / source, folder)
    rename_tokens(folder / "tokenizer.json", RENAMED[way])
    return folder


@pytest.mark.parametrize("kind", ["onnx", "gguf"])
@pytest.mark.parametrize("way", RENAMED)
def test_same_words(
    verifier: VerifierProcess,
    cache: Path,
    reference: dict[str, tuple[int, ...]],
    tmp_path: Path,
    way: Way,
    kind: str,
) -> None:
    if kind == "onnx":
        drafter = folder_with("drafter-onnx", way, tmp_path)
    else:
        drafter = tmp_path / "renamed.gguf"
        export_gguf(folder_with("drafter", way, tmp_path), drafter, "q8_0")
    with EdgeClient(verifier.address, drafter, pace=lambda: Synchronous(4)) as client:
        for _ in range(2):  # the first answer may be complete before the drafter is matched
            for name, params in SAMPLING.items():
                output = client.generate(PROMPT, params, seed=SEED)
                assert output.token_ids == reference[name]
                assert not output.metrics.notices
        assert output.metrics.accepted_tokens > TOKENS // 8
        assert len(client.notices) == 1
        assert way.value in client.notices[0]
    assert VocabularyCache().folder.is_relative_to(cache)
    assert len(list(VocabularyCache().folder.iterdir())) == 1
