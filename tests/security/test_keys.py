"""The file of API keys, and the commands that edit it."""

from __future__ import annotations

import logging
import stat
from pathlib import Path

import pytest
from click.testing import CliRunner

from cloud_verifier.cli import main
from cloud_verifier.security.keys import KeyFile, KeyFileError, KeyStore, hash_of, parse
from cloud_verifier.security.principals import Principal, Quota


def keys(file: Path, *arguments: str) -> str:
    done = CliRunner().invoke(main, ["keys", *arguments, "--api-keys", str(file)])
    assert done.exit_code == 0, done.output
    return done.stdout.strip()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.toml"


def test_a_key_is_made_once_and_only_its_hash_is_kept(file: Path) -> None:
    key = keys(file, "add", "laptop", "--max-sessions", "4")
    assert key.startswith("outr_")
    assert len(key) >= 48
    assert key not in file.read_text()
    assert hash_of(key) in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    entry = KeyStore(file).of_key(key)
    assert entry is not None
    assert entry.principal == Principal("laptop", Quota(max_sessions=4))


def test_keys_are_listed_rotated_and_removed(file: Path) -> None:
    old = keys(file, "add", "laptop")
    new = keys(file, "add", "laptop", "--tokens-per-minute", "6000")
    keys(file, "add", "robot", "--certificate", "robot.example")
    store = KeyStore(file)
    assert store.of_key(old) == store.of_key(new) is not None
    listed = keys(file, "list").splitlines()
    assert listed[0] == f"laptop: key {hash_of(old)[:8]}, key {hash_of(new)[:8]}, tokens_per_minute 6000"
    assert listed[1] == "robot: certificate robot.example"
    keys(file, "remove", "laptop", "--key", hash_of(old)[:8])
    assert store.of_key(old) is None
    assert store.of_key(new) is not None
    keys(file, "remove", "laptop")
    assert store.of_key(new) is None
    assert [entry.principal.name for entry in KeyFile(file).entries()] == ["robot"]


def test_comments_and_permissions_outlive_the_commands(file: Path) -> None:
    file.write_text("# ours\n[principals.laptop] # Ann's\nmax_sessions = 2\n")
    file.chmod(0o640)
    keys(file, "add", "laptop")
    assert "# ours" in file.read_text()
    assert "# Ann's" in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o640


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("remove", "nobody"), "no principal 'nobody'"),
        (("remove", "laptop", "--key", "12345678"), "no key '12345678'"),
        (("add", ""), "cannot name a principal"),
    ],
)
def test_a_command_that_cannot_be_done_says_why(file: Path, arguments: tuple[str, ...], sentence: str) -> None:
    keys(file, "add", "laptop")
    before = file.read_text()
    done = CliRunner().invoke(main, ["keys", *arguments, "--api-keys", str(file)])
    assert done.exit_code == 1
    assert sentence in done.stderr
    assert file.read_text() == before


def test_a_command_does_not_touch_a_file_that_is_wrong(file: Path) -> None:
    file.write_text("[principals.laptop]\nmax_session = 2\n")
    done = CliRunner().invoke(main, ["keys", "add", "robot", "--api-keys", str(file)])
    assert "'max_session' in [principals.laptop]" in done.stderr
    assert "robot" not in file.read_text()


HASH = "0" * 64


@pytest.mark.parametrize(
    ("text", "naming"),
    [
        ("[principals", "no TOML"),
        ("[keys.laptop]", "'keys'"),
        ("principals = 3", "no tables"),
        ("[principals]\nlaptop = 3", "no table"),
        ("[principals.laptop]\ntoken = 'x'", "'token' in"),
        ("[principals.laptop]\nsha256 = 'abc'", "64 hex digits"),
        ("[principals.laptop]\nsha256 = ['abc']", "64 hex digits"),
        ("[principals.laptop]\nsha256 = [3]", "64 hex digits"),
        ("[principals.laptop]\ncertificate = 3", "certificate"),
        ("[principals.laptop]\ndisabled = 'no'", "disabled"),
        ("[principals.laptop]\nmax_sessions = -1", "max_sessions = -1"),
        ("[principals.laptop]\nmax_sessions = true", "max_sessions = True"),
        ("[principals.laptop]\nmax_sessions = 1.5", "max_sessions = 1.5"),
        (f"[principals.a]\nsha256 = ['{HASH}']\n[principals.b]\nsha256 = ['{HASH}']", "one key to two"),
        ("[principals.a]\ncertificate = 'c'\n[principals.b]\ncertificate = 'c'", "one certificate to two"),
    ],
)
def test_a_file_that_is_wrong_is_named(text: str, naming: str) -> None:
    with pytest.raises(KeyFileError) as caught:
        parse(text)
    assert naming in str(caught.value)


def test_a_principal_has_the_default_limits_but_for_its_own() -> None:
    default = Quota(max_sessions=8, tokens_per_minute=600)
    (entry,) = parse("[principals.laptop]\nmax_sessions = 2", default)
    assert entry.principal.quota == Quota(max_sessions=2, tokens_per_minute=600)


def test_a_file_that_becomes_wrong_leaves_the_keys_read_before(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    key = keys(file, "add", "laptop")
    store = KeyStore(file)
    good = file.read_text()
    with caplog.at_level(logging.WARNING):
        file.write_text("[principals.laptop")
        assert store.of_key(key) is not None
        file.unlink()
        assert store.of_key(key) is not None
    assert caplog.text.count("stay in use") == 2
    file.write_text(good.replace("laptop", "tower"))
    entry = store.of_key(key)
    assert entry is not None
    assert entry.principal.name == "tower"


def test_a_store_does_not_begin_with_a_file_that_is_wrong(file: Path) -> None:
    with pytest.raises(KeyFileError, match="cannot read the API keys"):
        KeyStore(file)
