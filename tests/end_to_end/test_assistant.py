"""The assistant as users run it: OpenAI's package, curl and a chat application against real processes."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from openai import OpenAI

from edge_client.client import EdgeClient
from netlab.assistant_process import AssistantProcess
from netlab.verifier_process import VerifierProcess
from speculation.sampling import SamplingParams

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "models" / "demo"
QUESTION = "Find me a hotel"
SEED, TOKENS, TEMPERATURE = 5, 32, 0.8
ASKED: dict[str, Any] = {
    "model": "target",
    "messages": [{"role": "user", "content": QUESTION}],
    "seed": SEED,
    "max_tokens": TOKENS,
    "temperature": TEMPERATURE,
}


@pytest.fixture(scope="module")
def verifier() -> Iterator[VerifierProcess]:
    with VerifierProcess(DEMO / "target", options=["--threads", "1"]) as running:
        yield running


@pytest.fixture(scope="module")
def assistant(verifier: VerifierProcess) -> Iterator[AssistantProcess]:
    with AssistantProcess(verifier.address, drafter=str(DEMO / "drafter.gguf")) as running:
        yield running


@pytest.fixture(scope="module")
def words(verifier: VerifierProcess) -> str:
    """What `edge-client generate` says."""
    done = run(
        *(sys.executable, "-m", "edge_client", "generate", "--verifier", verifier.address, "--message", QUESTION),
        *("--seed", str(SEED), "--max-tokens", str(TOKENS), "--temperature", str(TEMPERATURE)),
    )
    assert len(done) > 20
    return done


def run(*command: str, **more: str) -> str:
    """What a command prints, without the last line's end."""
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, cwd=ROOT, env=os.environ | more, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.removesuffix("\n")


def streamed(assistant: AssistantProcess, **more: Any) -> Iterator[str]:
    client = OpenAI(base_url=assistant.url, api_key="none", max_retries=0)
    for chunk in client.chat.completions.create(stream=True, **ASKED | more):
        yield chunk.choices[0].delta.content or ""


def test_openais_package_gets_the_words_of_generate(assistant: AssistantProcess, words: str) -> None:
    said = OpenAI(base_url=assistant.url, api_key="none").chat.completions.create(**ASKED)
    assert said.choices[0].message.content == words
    assert said.usage.completion_tokens_details.accepted_prediction_tokens > 0
    assert "".join(streamed(assistant)) == words


def test_alternatives_are_spelled(assistant: AssistantProcess, words: str) -> None:
    client = OpenAI(base_url=assistant.url, api_key="none")
    said = client.chat.completions.create(**ASKED, logprobs=True, top_logprobs=3)
    entries = said.choices[0].logprobs.content
    spelled = b"".join(bytes(entry.bytes) for entry in entries if entry.bytes)
    assert spelled.decode().startswith(words)
    assert all(len(entry.top_logprobs) == 3 for entry in entries)
    likeliest = [entry.top_logprobs[0] for entry in entries]
    assert all(top.logprob >= entry.logprob for top, entry in zip(likeliest, entries, strict=True))


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here")
def test_curl_gets_them(assistant: AssistantProcess, words: str) -> None:
    ask = ("curl", "--silent", "--no-buffer", f"{assistant.url}/chat/completions", "--data")
    assert json.loads(run(*ask, json.dumps(ASKED)))["choices"][0]["message"]["content"] == words
    lines = run(*ask, json.dumps(ASKED | {"stream": True})).splitlines()
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == words
    assert lines[-1 if lines[-1] else -2] == "data: [DONE]"


@pytest.mark.parametrize("way", ["--stream", "--no-stream"])
def test_a_chat_application_gets_them(assistant: AssistantProcess, words: str, tmp_path: Path, way: str) -> None:
    """Simon Willison's `llm`, with nothing but the entry of its documentation for such servers."""
    models = f"- model_id: outrider\n  model_name: target\n  api_base: {assistant.url}\n"
    (tmp_path / "extra-openai-models.yaml").write_text(models)
    options = [("seed", SEED), ("max_tokens", TOKENS), ("temperature", TEMPERATURE)]
    said = run(
        *(sys.executable, "-m", "llm", "prompt", "-m", "outrider", "--key", "none", "--no-log", QUESTION),
        *(word for name, value in options for word in ("-o", name, str(value))),
        *([way] if way == "--no-stream" else []),
        LLM_USER_PATH=str(tmp_path),
    )
    assert said == words


@pytest.mark.parametrize("example", ["assistant.py", "with_openai.py"])
def test_an_example_talks(
    verifier: VerifierProcess, assistant: AssistantProcess, example: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two turns, with the words of the Python API."""
    where = ("--verifier", verifier.address) if example == "assistant.py" else ("--base-url", assistant.url)
    command = [sys.executable, str(ROOT / "examples" / example), *where, "--seed", "3"]
    given = f"{QUESTION}\nIn Oakland, please\n\n"
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "proto")]))
    done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    messages: list[dict[str, str]] = []
    with EdgeClient(verifier.address) as client:
        for asked in given.split("\n")[:2]:
            messages.append({"role": "user", "content": asked})
            said = client.generate(messages, SamplingParams(temperature=0.8, max_tokens=256), seed=3).text
            messages.append({"role": "assistant", "content": said})
    assert done.stdout.splitlines() == [message["content"] for message in messages[1::2]]
    assert done.stderr.count("guessed here") == 2
    assert len((ROOT / "examples" / example).read_text().splitlines()) < 60


def test_a_verifier_that_is_killed_and_started_again_changes_no_word(verifier: VerifierProcess) -> None:
    long = {"max_tokens": 120, "extra_body": {"ignore_eos": True}}
    with (
        VerifierProcess(DEMO / "target", options=["--threads", "1"]) as first,
        AssistantProcess(first.address, drafter=str(DEMO / "drafter.gguf")) as assistant,
    ):
        told = streamed(assistant, **long)
        said = [next(told) for _ in range(4)]
        first.kill()
        with VerifierProcess(DEMO / "target", port=first.port, options=["--threads", "1"]):
            said += told
    with AssistantProcess(verifier.address) as undisturbed:
        assert "".join(said) == "".join(streamed(undisturbed, **long))


def test_no_prompt_and_no_answer_is_logged(verifier: VerifierProcess, words: str) -> None:
    with AssistantProcess(verifier.address, options=["--log-level", "debug"]) as assistant:
        assert "".join(streamed(assistant)) == words
        assert assistant.stop() == 0
        log = assistant.log()
    assert "POST /v1/chat/completions 200" in log
    assert QUESTION not in log
    assert words[:12] not in log


def test_another_name_is_refused_off_the_loopback_interface_too() -> None:
    options = ["--host", "0.0.0.0", "--without-api-key", "--allowed-host", "mine.example"]
    with AssistantProcess("127.0.0.1:1", options=options) as assistant:
        for host, status in (("mine.example", 200), ("192.168.1.5:8080", 200), ("rebound.example", 403)):
            connection = http.client.HTTPConnection("127.0.0.1", urlsplit(assistant.url).port)
            connection.request("GET", "/health", headers={"Host": host})
            assert connection.getresponse().status == status, host
            connection.close()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--host", "0.0.0.0"), "--without-api-key"),
        (("--api-key", " "), "empty"),
        (("--host", "nowhere.invalid", "--api-key", "k"), "cannot listen"),
        (("--verifier", "nowhere"), "HOST:PORT"),
    ],
)
def test_a_bad_start_is_told(options: tuple[str, ...], sentence: str) -> None:
    command = [sys.executable, "-m", "edge_client", "serve", "--port", "0", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT, check=False)
    assert done.returncode == 1
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
