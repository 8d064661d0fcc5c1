"""`edge-client setup` as a person meets it: in a terminal, with bars, a hidden key, and Enter."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest
import yaml

from cloud_verifier.security.keys import KeyFile
from netlab.verifier_process import VerifierProcess

DEMO = Path(__file__).resolve().parents[2] / "models" / "demo"
PATIENCE_S = 120
BAR = "━"


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[tuple[VerifierProcess, str]]:
    """The demo's verifier, which wants a key; with the key."""
    file = tmp_path / "keys.toml"
    key = KeyFile(file).add("laptop", {})
    with VerifierProcess(DEMO / "target", options=["--threads", "1", "--api-keys", str(file)]) as running:
        yield running, key


def test_a_person_answers_two_questions_and_presses_enter(guarded: tuple[VerifierProcess, str], tmp_path: Path) -> None:
    running, key = guarded
    (tmp_path / "here" / "models").mkdir(parents=True)
    (tmp_path / "here" / "models" / "small.gguf").write_bytes((DEMO / "drafter.gguf").read_bytes())
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("HF_", "XDG_", "OUTRIDER_"))
    }
    environment |= {
        "HOME": str(tmp_path / "home"),
        "PYTHONPATH": os.pathsep.join(part for part in sys.path if part),
        "TERM": "xterm-256color",
    }
    terminal = pexpect.spawn(
        sys.executable,
        ["-m", "edge_client", "setup"],
        cwd=str(tmp_path / "here"),
        env=environment,
        encoding="utf-8",
        timeout=PATIENCE_S,
        dimensions=(40, 100),
    )
    with (tmp_path / "screen").open("w") as screen:
        terminal.logfile_read = screen
        terminal.expect("Address of the verifier")
        terminal.sendline(running.address)
        terminal.expect("not shown")
        terminal.sendline(key)
        terminal.expect(BAR)
        terminal.expect("Which one.*1]:")
        terminal.sendline("")
        terminal.expect(pexpect.EOF)
    terminal.close()
    shown = (tmp_path / "screen").read_text()
    assert terminal.exitstatus == 0, shown
    assert key not in shown
    assert "Their words are those that came without drafts." in shown
    (written,) = re.findall(r"Written to (\S+)\. Now type: edge-client chat; ", shown.replace("\r\n", "\n"))
    settings = yaml.safe_load(Path(written).read_text())
    assert settings["verifier"] == running.address
    # What is fastest is measured, so how busy the machine is decides, too: it is the first of the table, whichever.
    listed = dict(re.findall(r"(?m)^([1-9]) +(\S+) ", re.sub(r"\x1b\[[0-9;]*m", "", shown)))
    assert any(name.endswith("small.gguf") for name in listed.values()), shown
    assert (
        settings["drafter"].replace(f"{tmp_path / 'here'}/", "").endswith(listed["1"])
    )  # ngram+models/small.gguf, too
    assert Path(settings["verifier-api-key-file"]).read_text() == key
    asked = pexpect.run(
        f"{sys.executable} -m edge_client generate --message Hello --max-tokens 4",
        cwd=str(tmp_path / "here"),
        env=environment,
        timeout=PATIENCE_S,
        withexitstatus=True,
    )
    assert asked[1] == 0, asked[0]
