"""`edge-client setup`: what it asks, measures, checks and writes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from cloud_verifier.security.authentication import Authentication
from cloud_verifier.security.keys import KeyFile, KeyStore
from cloud_verifier.serving.address import Address
from edge_client.cli import main
from edge_client.export.gguf_file import export_gguf
from edge_client.link.reachability import Refusal, Wanted
from edge_client.link.security import Security
from edge_client.setup import connection, drafter_choice
from edge_client.setup.hub_suggestions import FAMILIES
from netlab.verifier_process import VerifierProcess
from outrider_models import hub
from outrider_models.hub_model import HubModel
from tests.contract.tiny_models import save_transformers
from tests.harness import InProcessVerifier, LetterCodec
from tests.mock_engine import MockEngine
from tests.security.certificates import Authority

DEMO = Path(__file__).resolve().parents[2] / "models" / "demo"


@pytest.fixture(scope="module")
def verifier() -> Iterator[InProcessVerifier]:
    with InProcessVerifier(MockEngine()) as running:
        yield running


@pytest.fixture(scope="module")
def demo() -> Iterator[VerifierProcess]:
    """The demo target, with the steps of a larger one: what drafts gain does not hang on this machine's load."""
    with VerifierProcess(DEMO / "target", options=["--threads", "1", "--step-ms", "20"]) as running:
        yield running


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, empty, of a user who has no models and no configuration anywhere."""
    for name in ("HF_HOME", "HF_HUB_CACHE", "LLAMA_CACHE", "OLLAMA_MODELS", "XDG_CACHE_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def run(*arguments: str, said: str | None = None) -> Result:
    return CliRunner().invoke(main, ["setup", "--output", "edge.yaml", *arguments], input=said)


def written() -> dict[str, Any]:
    settings: dict[str, Any] = yaml.safe_load(Path("edge.yaml").read_text())
    return settings


def test_what_lies_here_is_measured_and_the_fastest_answers_win(demo: VerifierProcess, here: Path) -> None:
    """Among the demo's drafter, one of another vocabulary that knows nothing, and a file cut short."""
    (here / "good.gguf").write_bytes((DEMO / "drafter.gguf").read_bytes())
    (here / "short.gguf").write_bytes((DEMO / "drafter.gguf").read_bytes()[:200_000])
    save_transformers(here / "source")
    export_gguf(here / "source", here / "random.gguf", "f32")
    done = run("--json", "--target", demo.address)
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    by_label = {one["label"]: one for one in report["drafters"]}
    good, random = by_label["good.gguf"], by_label["random.gguf"]
    assert good["acceptance"] > 0.5 > random["acceptance"]
    assert good["vocabulary"] == "the target's"
    assert random["vocabulary"] in ("translated", "nearly the target's")
    assert good["expected_ms"] < random["expected_ms"]
    assert by_label["ngram"]["expected_ms"] <= report["verifier"]["ms_per_token"]
    assert [one["what"] for one in report["left_out"]] == ["short.gguf"]
    assert report["settings"]["drafter"] in (str(here / "good.gguf"), f"ngram+{here / 'good.gguf'}")
    assert report["same_words"] is True
    assert report["guessed"] > 0.2
    race = report["race"]
    assert race["speed_up"] == race["streamed_ms_per_token"] / race["drafted_ms_per_token"]
    low, high = race["speed_up_quartiles"]
    assert 0 < low <= high
    assert race["answers"] >= 4
    assert written() == report["settings"]
    assert Path("edge.yaml").stat().st_mode & 0o777 == 0o600
    arguments = ["generate", "--config", "edge.yaml", "--message", "Hello", "--max-tokens", "8", "--json"]
    asked = CliRunner().invoke(main, arguments)
    assert asked.exit_code == 0, asked.output
    assert json.loads(asked.stdout)["metrics"]["drafted_tokens"] > 0


def test_a_person_sees_a_table_and_presses_enter(demo: VerifierProcess, here: Path) -> None:
    (here / "edge.yaml").write_text("[no settings")
    (here / "models").mkdir()
    (here / "models" / "good.gguf").write_bytes((DEMO / "drafter.gguf").read_bytes())
    done = run(said=f"{demo.address}\n\ny\n")
    assert done.exit_code == 0, done.output
    assert "ms per token without drafts" in done.output
    assert "models/good.gguf" in done.output
    assert "speed-up" in done.output
    assert "times as fast as streaming" in done.output
    assert "Their words are those that came without drafts." in done.output
    assert "Now type: edge-client chat --config edge.yaml" in done.output
    assert written()["drafter"].endswith("good.gguf")


def test_a_person_may_name_another_or_none(verifier: InProcessVerifier, here: Path) -> None:
    done = run(said=f"{verifier.address}\nnowhere.gguf, ngram\n2\n")
    assert done.exit_code == 0, done.output
    assert "left out: nowhere.gguf: cannot draft with 'nowhere.gguf': it does not exist" in done.output
    assert written()["drafter"] in ("ngram", "history")
    assert run("--target", verifier.address, said="none\ny\n").exit_code == 0
    assert written() == {"verifier": verifier.address, "drafter": "none"}
    assert here == Path.cwd()


def test_flags_alone_write_a_file_that_works(verifier: InProcessVerifier) -> None:
    done = run("--json", "--target", verifier.address, "--drafter", "ngram")
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert all(set(answer) <= set(LetterCodec.LETTERS) for answer in report["answers"])
    assert report["answers"]
    assert [one["spec"] for one in report["drafters"]] == ["ngram"]
    assert report["drafters"][0]["token_ms"] > 0
    assert written() == {"verifier": verifier.address, "drafter": "ngram", "threads": 1}


def test_without_a_race_the_words_are_checked_all_the_same(demo: VerifierProcess, here: Path) -> None:
    done = run("--json", "--no-measure", "--target", demo.address, "--drafter", "ngram")
    report = json.loads(done.stdout)
    assert report["race"] is None
    assert report["same_words"] is True


def test_paths_hold_from_every_folder(demo: VerifierProcess, here: Path) -> None:
    (here / "good.gguf").write_bytes((DEMO / "drafter.gguf").read_bytes())
    done = run("--yes", "--target", demo.address, "--drafter", "ngram+good.gguf")
    assert done.exit_code == 0, done.output
    assert written()["drafter"] == f"ngram+{here / 'good.gguf'}"


def test_an_accelerator_is_measured_with_and_written_down(demo: VerifierProcess) -> None:
    drafter = str(DEMO / "drafter-onnx")
    done = run("--json", "--target", demo.address, "--drafter", drafter, "--provider", "auto", "--threads", "1")
    assert done.exit_code == 0, done.output
    assert written() == {"verifier": demo.address, "drafter": drafter, "threads": 1, "provider": "auto"}
    missing = run("--json", "--target", demo.address, "--drafter", drafter, "--provider", "qnn")
    assert missing.exit_code == 1
    (runs_on,) = [one for one in json.loads(missing.stdout)["findings"] if one["what"] == "runs on"]
    assert "the installed ONNX Runtime has no provider qnn" in runs_on["detail"]


def test_who_does_not_want_to_change_a_file_keeps_it_and_other_settings_stay(
    verifier: InProcessVerifier, here: Path
) -> None:
    old = "temperature: 0.2\nmax_tokens: 9\ngpu-layers: -1\nmodel: other\nthreads: 7\nunheard-of: 1\n"
    (here / "edge.yaml").write_text(old)
    done = run("--target", verifier.address, "--drafter", "ngram", said="n\n")
    assert done.exit_code == 1
    assert (here / "edge.yaml").read_text() == old
    assert run("--target", verifier.address, "--drafter", "ngram", said="y\n").exit_code == 0
    found = {"verifier": verifier.address, "drafter": "ngram", "threads": 1}
    found |= {"gpu-layers": -1, "temperature": 0.2, "max-tokens": 9}  # but no model of another verifier's
    assert written() == found
    with (here / "edge.yaml").open("a") as file:
        file.write("model: mock\n")
    assert run("--drafter", "ngram", "--gpu-layers", "0", said="\ny\n").exit_code == 0
    del found["gpu-layers"]
    assert written() == found | {"model": "mock"}


def test_a_key_that_stands_in_the_file_gets_one_of_its_own(
    guarded: tuple[InProcessVerifier, str], authority: Authority, here: Path
) -> None:
    running, key = guarded
    good = authority.pair("laptop", "laptop.example", common_name="laptop")
    old = {"verifier": running.address, "verifier-api-key": key, "ssl-ca-certs": str(authority.file)}
    old |= {"ssl-client-certfile": str(good.certificate), "ssl-client-keyfile": str(good.key)}
    (here / "edge.yaml").write_text(yaml.safe_dump(old))
    done = run("--json", "--drafter", "ngram")
    assert done.exit_code == 0, done.output
    assert key not in done.output
    assert "verifier-api-key" not in written()
    assert Path(written()["verifier-api-key-file"]).read_text() == key


def test_a_verifier_that_is_not_there_is_said_once_and_sends_to_the_doctor() -> None:
    done = run("--yes", "--target", "127.0.0.1:1")
    assert done.exit_code == 1
    assert done.output.count("cannot be reached (Connection refused)") == 1
    assert "edge-client doctor" in done.output
    assert written()["drafter"] == "ngram"
    said = run(said="127.0.0.1:1\n\n\ny\n")
    assert "Without the verifier nobody knows which guesses would be right" in said.output


def test_another_address_may_be_tried(verifier: InProcessVerifier) -> None:
    done = run("--drafter", "ngram", said=f"127.0.0.1:1\n{verifier.address}\n")
    assert done.exit_code == 0, done.output
    assert written()["verifier"] == verifier.address


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def guarded(tmp_path: Path, authority: Authority) -> Iterator[tuple[InProcessVerifier, str]]:
    """A verifier that wants TLS, a certificate and a key; with the key."""
    served = authority.pair("server", "localhost", "127.0.0.1")
    address = Address(port=0, certificate=served.certificate, key=served.key, client_authorities=authority.file)
    keys = KeyFile(tmp_path / "keys.toml")
    key = keys.add("laptop", {})
    with InProcessVerifier(
        MockEngine(), address=address, authentication=Authentication(KeyStore(keys.path))
    ) as running:
        yield running, key


def test_what_a_verifier_demands_is_asked_for_and_nothing_else(
    guarded: tuple[InProcessVerifier, str], authority: Authority, tmp_path: Path
) -> None:
    running, key = guarded
    forged = Authority(tmp_path, "other").pair("forged", "laptop.example")
    good = authority.pair("laptop", "laptop.example", common_name="laptop")
    said = [tmp_path / "missing.pem", authority.file, forged.certificate, forged.key, good.certificate, good.key]
    done = run("--target", running.address, "--drafter", "ngram", said="\n".join([*map(str, said), "wrong", key, ""]))
    assert done.exit_code == 0, done.output
    for sentence in (
        "serves TLS only",
        "missing.pem is no file that can be read",
        "the verifier asks devices for a certificate",
        "most likely another authority signed it",
        "this API key is not known here",
    ):
        assert done.output.count(sentence) == 1, sentence
    assert key not in done.output
    kept = Path.cwd() / "edge.api-key"
    assert kept.read_text() == key
    assert kept.stat().st_mode & 0o777 == 0o600
    assert written() == {
        "verifier": running.address,
        "ssl-ca-certs": str(authority.file),
        "ssl-client-certfile": str(good.certificate),
        "ssl-client-keyfile": str(good.key),
        "verifier-api-key-file": str(kept),
        "drafter": "ngram",
        "threads": 1,
    }
    asked = CliRunner().invoke(main, ["generate", "--config", "edge.yaml", "--prompt", "abc", "--max-tokens", "3"])
    assert asked.exit_code == 0, asked.output
    first = written()
    again = run("--drafter", "ngram", said="\ny\n")  # the same verifier: nothing is asked twice
    assert again.exit_code == 0, again.output
    assert written() == first
    keys = KeyFile(tmp_path / "keys.toml")
    keys.remove("laptop")
    another = keys.add("laptop", {})
    anew = run("--output", str(Path.cwd() / "edge.yaml"), "--drafter", "ngram", said=f"\n{another}\ny\n")
    assert f"The key was written to {kept}" in anew.output
    assert kept.read_text() == another
    good.key.unlink()
    assert "This device's certificate" in run("--drafter", "ngram", said="\n\n").output


def test_a_typed_key_that_is_refused_to_the_end_is_not_written(tmp_path: Path) -> None:
    keys = KeyFile(tmp_path / "keys.toml")
    right = keys.add("laptop", {})
    authentication = Authentication(KeyStore(keys.path))
    with InProcessVerifier(MockEngine(), authentication=authentication) as verifier:
        done = run("--target", verifier.address, "--drafter", "ngram", said="wrong\nworse\n\n")
        assert done.exit_code == 1
        assert "was written to" not in done.output
        assert "verifier-api-key-file" not in written()
        kept = Path("edge.api-key")
        assert not kept.exists()
        run("--target", verifier.address, "--drafter", "ngram", said=f"wrong\n{right}\ny\n")
        assert kept.read_text() == right
        keys.remove("laptop")
        run("--target", verifier.address, "--drafter", "ngram", said="wrong\n\ny\n")
        assert kept.read_text() == right, "the verifier may take it again"
        assert written()["verifier-api-key-file"] == str(kept.absolute())


@pytest.mark.parametrize("any_address", [True, False])
def test_a_typed_key_is_shown_to_no_other_address(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, any_address: bool
) -> None:
    shown: list[tuple[str, str]] = []
    wants = iter([Wanted.KEY, Wanted.ADDRESS, Wanted.KEY, Wanted.NOTHING_FROM_HERE])

    def reach(verifier: str, _model: str, security: Security) -> Refusal:
        shown.append((verifier, security.api_key))
        return Refusal(next(wants), "no")

    monkeypatch.setattr(connection, "reach", reach)
    said = iter(["typed", "two:2", "of two"])
    monkeypatch.setattr("click.prompt", lambda *_, **__: next(said))
    given = connection.Way("one:1", "", Security(api_key="given"), tmp_path / "given")
    way, _ = connection.connect(given, tmp_path / "kept", asking=True, any_address=any_address)
    assert shown == [
        ("one:1", "given"),
        ("one:1", "typed"),
        ("two:2", "given" if any_address else ""),
        ("two:2", "of two"),
    ]
    assert (way.security.api_key, way.key_file) == ("of two", tmp_path / "kept")


def test_certificates_and_key_may_be_flags(
    guarded: tuple[InProcessVerifier, str], authority: Authority, tmp_path: Path
) -> None:
    running, key = guarded
    good = authority.pair("laptop", "laptop.example", common_name="laptop")
    (tmp_path / "key").write_text(f"{key}\n")
    flags = ["--yes", "--target", running.address, "--drafter", "ngram", "--ssl-ca-certs", str(authority.file)]
    alone = run(*flags)
    assert alone.exit_code == 1
    assert alone.output.count("the verifier asks devices for a certificate") == 1
    flags += ["--ssl-client-certfile", str(good.certificate), "--ssl-client-keyfile", str(good.key)]
    assert "send an API key" in run(*flags).output
    done = run(*flags, "--verifier-api-key-file", str(tmp_path / "key"))
    assert done.exit_code == 0, done.output
    assert written()["verifier-api-key-file"] == str(tmp_path / "key")


def test_a_key_from_the_environment_is_used_and_not_written_down(
    guarded: tuple[InProcessVerifier, str], authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    running, key = guarded
    good = authority.pair("laptop", "laptop.example", common_name="laptop")
    monkeypatch.setenv("OUTRIDER_VERIFIER_API_KEY", key)
    files = ["--ssl-client-certfile", str(good.certificate), "--ssl-client-keyfile", str(good.key)]
    done = run(
        *files, *("--yes", "--target", running.address, "--drafter", "ngram"), *("--ssl-ca-certs", str(authority.file))
    )
    assert done.exit_code == 0, done.output
    assert key not in Path("edge.yaml").read_text()
    assert "verifier-api-key-file" not in written()


def test_plaintext_to_another_machine_needs_a_word() -> None:
    done = run("--drafter", "ngram", said="gpu.invalid\n-\n\n")
    assert "prompts and answers would travel in the clear" in done.output
    assert written() == {"verifier": "gpu.invalid:50051", "insecure": True, "drafter": "ngram", "threads": 1}
    done = run("--drafter", "ngram", said="gpu.invalid\nother.invalid\n-\n\ny\n")
    assert done.output.count("prompts and answers would travel in the clear") == 1  # of the other
    assert written()["verifier"] == "other.invalid:50051"


@pytest.fixture
def on_hub(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A hub with the demo's drafter under every name; what was downloaded from it."""
    downloaded: list[str] = []

    def fetch(model: HubModel, **_: object) -> Path:
        downloaded.append(str(model))
        return DEMO / "drafter.gguf"

    monkeypatch.setattr(hub, "fetch", fetch)
    monkeypatch.setattr("edge_client.setup.hub_suggestions.download_bytes", lambda _model: 398_000_000)
    monkeypatch.setattr(drafter_choice, "family_of", lambda _model, _tokens: FAMILIES[1])
    return downloaded


@pytest.mark.parametrize("answer", ["y", "n"])
def test_nothing_is_downloaded_unless_somebody_says_so(demo: VerifierProcess, on_hub: list[str], answer: str) -> None:
    done = run("--target", demo.address, said=f"{answer}\n\n")
    assert done.exit_code == 0, done.output
    assert "download 398 MB and measure it?" in done.output
    assert on_hub == (["hf:bartowski/Qwen2.5-0.5B-Instruct-GGUF"] if answer == "y" else [])
    assert written()["drafter"].endswith("drafter.gguf") is (answer == "y")


def test_without_anybody_to_ask_the_hub_is_only_mentioned(demo: VerifierProcess, on_hub: list[str]) -> None:
    done = run("--json", "--target", demo.address)
    assert json.loads(done.stdout)["on_hub"] == ["hf:bartowski/Qwen2.5-0.5B-Instruct-GGUF"]
    assert on_hub == []


def test_a_named_drafter_that_cannot_be_used_is_an_error_and_writes_nothing(verifier: InProcessVerifier) -> None:
    done = run("--yes", "--target", verifier.address, "--drafter", "nofile.gguf")
    assert done.exit_code == 1
    assert "no drafter that was named can be used" in done.output
    assert "nofile.gguf" in done.output
    assert not Path("edge.yaml").exists()
