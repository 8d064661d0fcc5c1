"""A device whose disk is full: answers come all the same, and a person is told once."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from edge_client.chat.line_editor import KeptHistory
from tests.harness import InProcessVerifier, LetterCodec
from tests.mock_engine import MockEngine, answer
from tests.service.raw import DEADLINE_S, SEED

ROOT = Path(__file__).resolve().parents[2]
WORDS = LetterCodec().text(answer(LetterCodec().encode_text("hello"), SEED, 24))


@pytest.fixture(scope="module")
def verifier() -> Iterator[InProcessVerifier]:
    with InProcessVerifier(MockEngine()) as running:
        yield running


def run(
    address: str, folder: Path, *arguments: str, stdout: int = subprocess.PIPE, disk_full: bool = False
) -> subprocess.CompletedProcess[str]:
    """`edge-client generate` of a user whose files lie in a folder. disk_full: and none may have a byte."""
    limited = ["sh", "-c", 'ulimit -f 0 && exec "$@"', "sh"] if disk_full else []
    command = [*limited, sys.executable, "-m", "edge_client", "generate", "--verifier", address, "--prompt", "hello"]
    folders = {f"XDG_{kind}_HOME": str(folder / kind) for kind in ("DATA", "STATE", "CACHE", "CONFIG")}
    paths = {"PYTHONPATH": f"{ROOT}:{ROOT / 'proto'}", "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [*command, "--seed", str(SEED), "--max-tokens", "24", *arguments],
        env=os.environ | folders | paths,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=4 * DEADLINE_S,
        check=False,
    )


def files_below(folder: Path) -> Sequence[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_an_answer_comes_when_nothing_can_be_kept(verifier: InProcessVerifier, tmp_path: Path) -> None:
    done = run(verifier.address, tmp_path, "--drafter", "history", disk_full=True)
    assert (done.returncode, done.stdout) == (0, WORDS + "\n"), done.stderr
    assert done.stderr.count("answers cannot be kept") == 1
    assert "Traceback" not in done.stderr
    assert not files_below(tmp_path), "half a file is worse than none"
    done = run(verifier.address, tmp_path, "--drafter", "history")
    assert (done.returncode, done.stdout) == (0, WORDS + "\n")
    assert "cannot be kept" not in done.stderr
    assert files_below(tmp_path)


def test_an_answer_that_cannot_be_written_ends_with_a_sentence(verifier: InProcessVerifier, tmp_path: Path) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        done = run(verifier.address, tmp_path, stdout=full)
    finally:
        os.close(full)
    assert done.returncode == 1
    assert done.stderr == "Error: the answer cannot be written: No space left on device\n"


def test_questions_are_asked_when_they_cannot_be_kept(tmp_path: Path) -> None:
    file = tmp_path / "state" / "chat-history"
    file.parent.touch()  # a file where a folder should be
    history = KeptHistory(file)
    history.append_string("first")
    assert f"cannot be kept in {file} (File exists)" in history.trouble
    history.trouble = ""
    history.append_string("second")
    assert history.trouble == "", "once is enough"
    assert history.get_strings() == ["first", "second"]
    file.parent.unlink()
    history.append_string("third")
    assert file.stat().st_mode & 0o777 == 0o600
    assert list(KeptHistory(file).load_history_strings()) == ["third"]
