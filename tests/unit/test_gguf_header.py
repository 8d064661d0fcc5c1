"""What a GGUF file says before it is loaded, and whether it would fit."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from edge_client.drafters.base import DrafterError
from outrider_models import memory_check
from outrider_models.gguf_header import read_header


@pytest.fixture
def file(tmp_path: Path) -> Path:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_context_length(512)
    writer.add_embedding_length(64)
    writer.add_block_count(3)
    writer.add_head_count(4)
    writer.add_head_count_kv([2, 1, 2])
    writer.add_float32("a.float", 0.5)
    writer.add_bool("a.bool", True)
    writer.add_token_list([f"token {i}" for i in range(5000)])
    writer.add_token_scores([0.0] * 5000)
    writer.add_tensor("one", np.zeros((4, 32), np.float32))
    writer.add_tensor("two", np.zeros((4, 32), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tmp_path / "m.gguf"


def test_what_it_says(file: Path) -> None:
    header = read_header(file)
    assert header.architecture == "llama"
    assert header.number("context_length") == 512
    assert header.number("attention.head_count_kv") == 2
    assert header.number("attention.key_length") is None
    assert (header.metadata["a.float"], header.metadata["a.bool"]) == (0.5, True)
    assert "tokenizer.ggml.tokens" not in header.metadata
    assert header.tensor_types == {gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16}


def test_the_cache_is_estimated_from_it(file: Path) -> None:
    header = read_header(file)
    assert header.cache_bytes(100, 2.0) == 3 * 2 * (16 + 16) * 100 * 2


def test_every_cut_is_noticed(file: Path, tmp_path: Path) -> None:
    whole = file.read_bytes()
    end = whole.index(b"two") + 20
    for length in [*range(4, 400, 7), end]:
        (tmp_path / "cut.gguf").write_bytes(whole[:length])
        with pytest.raises(DrafterError, match="damaged or incomplete"):
            read_header(tmp_path / "cut.gguf")


def test_absurd_counts_are_no_allocation(tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + b"\x03\0\0\0" + b"\xff" * 64)
    with pytest.raises(DrafterError, match="damaged or incomplete"):
        read_header(tmp_path / "bad.gguf")


def test_memory_that_is_not_there_is_refused_with_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_check, "available_bytes", lambda: 2_000_000_000)
    memory_check.check_memory("m", 1_500_000_000, 400_000_000)
    with pytest.raises(
        DrafterError, match=r"about 1\.5 GB for its weights and a .*cache of 600 MB, and 2\.0 GB are free"
    ):
        memory_check.check_memory("m", 1_500_000_000, 600_000_000)
    monkeypatch.setattr(memory_check, "available_bytes", lambda: None)
    memory_check.check_memory("m", 1 << 60, 0)


def test_a_containers_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_check, "_CGROUP", tmp_path)
    monkeypatch.setattr(memory_check, "_MEMINFO", tmp_path / "meminfo")
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    5000 kB\n")
    assert memory_check.available_bytes() == 5000 * 1024
    (tmp_path / "memory.max").write_text("3000000\n")
    (tmp_path / "memory.current").write_text("1000000\n")
    assert memory_check.available_bytes() == 2_000_000
    (tmp_path / "memory.max").write_text("max\n")
    assert memory_check.available_bytes() == 5000 * 1024
    (tmp_path / "meminfo").unlink()
    assert (memory_check.available_bytes() or 1) > 0
