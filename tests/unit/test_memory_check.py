"""How much context fits beside a model's weights, and what is said when it does not."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from edge_client.cli import main
from edge_client.drafters import load_drafter
from edge_client.drafters.base import DrafterError
from edge_client.drafters.settings import DeviceSettings
from outrider_models import memory_check
from outrider_models.memory_check import fitting_context, parse_bytes

DEMO = Path(__file__).resolve().parents[2] / "models" / "demo"
MODELS = {"gguf": DEMO / "drafter.gguf", "onnx": DEMO / "drafter-onnx"}
MB = 1_000_000


def cache_bytes(tokens: int) -> int:
    return 100_000 * tokens


@pytest.fixture(autouse=True)
def device_of_1_gb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_check, "available_bytes", lambda: 1000 * MB)


def test_what_fits_is_taken_as_it_is() -> None:
    assert fitting_context("m", 500 * MB, cache_bytes, 4096) == 4096
    assert fitting_context("m", 500 * MB, cache_bytes, 4096, fixed=True) == 4096


def test_the_context_shrinks_to_what_fits() -> None:
    assert fitting_context("m", 800 * MB, cache_bytes, 4096) == 1984  # 2000, in steps of 64
    assert fitting_context("m", 500 * MB, cache_bytes, 4096, limit_bytes=600 * MB) == 960
    assert fitting_context("m", 500 * MB, cache_bytes, 4096, limit_bytes=600_000 * MB) == 4096


def test_what_cannot_fit_is_refused_with_numbers() -> None:
    with pytest.raises(DrafterError, match=r"800 MB for its weights and 410 MB for 4096 .* 1\.0 GB are free; 1984 tok"):
        fitting_context("m", 800 * MB, cache_bytes, 4096, fixed=True)
    with pytest.raises(DrafterError, match="500 MB are allowed; take a smaller one"):
        fitting_context("m", 499 * MB, cache_bytes, 4096, limit_bytes=500 * MB)
    with pytest.raises(DrafterError, match="smaller"):
        fitting_context("m", 1001 * MB, lambda _tokens: 0, 4096)


def test_where_nothing_is_known_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_check, "available_bytes", lambda: None)
    assert fitting_context("m", 1 << 60, cache_bytes, 4096) == 4096
    assert fitting_context("m", 500 * MB, cache_bytes, 4096, limit_bytes=600 * MB) == 960


@pytest.mark.parametrize("kind", MODELS)
def test_drafters_keep_to_the_limit_or_say_why_not(kind: str) -> None:
    roomy = load_drafter(MODELS[kind], settings=DeviceSettings(memory_limit_bytes=100 * MB))
    tight = load_drafter(MODELS[kind], settings=DeviceSettings(memory_limit_bytes=3_800_000))
    assert roomy is not None
    assert tight is not None
    assert 256 <= tight.info.context_tokens < roomy.info.context_tokens
    for drafter in (roomy, tight):
        drafter.close()
    with pytest.raises(DrafterError, match="allowed"):
        load_drafter(MODELS[kind], settings=DeviceSettings(memory_limit_bytes=MB))


def test_sizes_are_written_as_people_do() -> None:
    assert parse_bytes("800MB") == 800 * MB
    assert parse_bytes("1.5 gb") == 1500 * MB
    assert parse_bytes("512MiB") == 512 << 20
    assert parse_bytes("4096") == 4096
    for nonsense in ("", "much", "-1MB", "1TBx"):
        with pytest.raises(ValueError, match="no size"):
            parse_bytes(nonsense)
    refused = CliRunner().invoke(main, ["bench", "--drafter", "ngram", "--memory-limit", "much"])
    assert "no size" in refused.output
