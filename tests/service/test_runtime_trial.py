"""A runtime that ends the process it runs in costs the drafter, never the answer."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_client import child_process, doctor
from edge_client.child_process import IN_CHILD, Ended
from edge_client.client import EdgeClient
from edge_client.drafters import load_drafter, runtime_trial
from edge_client.drafters.base import DrafterError
from edge_client.drafters.onnx.providers import available_providers
from edge_client.drafters.runtime_trial import Trial, check_runtime
from edge_client.drafters.settings import DeviceSettings
from outrider_models import runtime_build
from outrider_models.runtime_build import LLAMA_CPP, ONNX_RUNTIME, runtime_install
from speculation.sampling import SamplingParams
from tests.harness import InProcessVerifier, LetterCodec
from tests.mock_engine import MockEngine, answer

ROOT = Path(__file__).resolve().parents[2]
GGUF = ROOT / "models" / "demo" / "drafter.gguf"
ONNX = ROOT / "models" / "demo" / "drafter-onnx"
DEATHS = {
    "SIGILL": "library['raise'](4)",
    "SIGSEGV": "ctypes.string_at(0)",
    "SIGABRT": "os.write(2, b'ggml.c:1: GGML_ASSERT(rows > 0) failed\\n'); library.abort()",
    "hang": "library.pause()",
    "exit status 7": "library._exit(7)",
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Trials take place here, and what comes of them is kept in a folder of the test's own."""
    monkeypatch.delenv(IN_CHILD)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "outrider" / "runtime-trials.json"


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One entry for each process that was started to try something."""
    started: list[str] = []
    real = child_process.run_module

    def counting(module: str, task: str, deadline_s: float) -> Ended:
        started.append(task)
        return real(module, task, deadline_s)

    monkeypatch.setattr(runtime_trial, "run_module", counting)
    return started


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Path]:
    """Puts a package before the real one that dies when it is imported, and writes down whom it killed."""

    def make(package: str, death: str) -> Path:
        folder = tmp_path / "stand-ins"
        home = folder / package
        home.mkdir(parents=True)
        (home / "__init__.py").write_text(_dying(death, folder / "victims"))
        (home / "llama_cpp.py").touch()
        monkeypatch.syspath_prepend(str(folder))
        monkeypatch.delitem(sys.modules, package, raising=False)
        return folder

    return make


def _dying(death: str, victims: Path) -> str:
    return (
        "import ctypes, os\n"
        f"with open({str(victims)!r}, 'a') as file: print(os.getpid(), file=file)\n"
        f"library = ctypes.CDLL(None)\n{DEATHS[death]}\n"
    )


def _generate(verifier: str, drafter: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            *(sys.executable, "-m", "edge_client", "generate", "--verifier", verifier, "--drafter", str(drafter)),
            *("--prompt", "hello", "--max-tokens", "12", "--temperature", "0", "--seed", "0"),
        ],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(part for part in sys.path if part)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(
    ("death", "drafter"),
    [("SIGILL", GGUF), ("SIGSEGV", GGUF), ("SIGABRT", GGUF), ("exit status 7", GGUF), ("SIGILL", ONNX)],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_an_answer_streams_past_a_runtime_that_would_kill(
    stand_in: Callable[[str, str], Path], death: str, drafter: Path
) -> None:
    victims = stand_in("llama_cpp" if drafter == GGUF else "onnxruntime", death) / "victims"
    prompt = LetterCodec().encode_text("hello")
    with InProcessVerifier(MockEngine()) as verifier:
        for _ in range(2):
            done = _generate(verifier.address, drafter)
            assert done.returncode == 0
            assert done.stdout == LetterCodec().text(answer(prompt, 0, 12)) + "\n"
            assert f"in a process of its own ended with {death}" in done.stderr
            assert "answers stream from the verifier alone" in done.stderr
    assert len(victims.read_text().split()) == 1  # the second start remembers
    if death == "SIGABRT":
        assert "GGML_ASSERT(rows > 0) failed" in done.stderr


def test_a_runtime_that_dies_of_the_model_only_is_refused_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trials: list[str]
) -> None:
    """It can be imported and loads the model, but evaluating a batch is illegal, as AMX's tiles were."""
    (tmp_path / "sitecustomize.py").write_text(
        "import ctypes\nfrom llama_cpp import llama_cpp as api\nreal = api.llama_decode\n"
        "def dying(context, batch):\n"
        "    return ctypes.CDLL(None)['raise'](4) if batch.n_tokens > 4 else real(context, batch)\n"
        "api.llama_decode = dying\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with InProcessVerifier(MockEngine()) as verifier, EdgeClient(verifier.address, GGUF) as client:
        assert "ended with SIGILL (illegal instruction)" in client.notices[0]
        output = client.generate([2, 3], SamplingParams(temperature=0.0, max_tokens=8), seed=0)
        assert output.token_ids == tuple(answer([2, 3], 0, 8))
    assert len(trials) == 1


def test_a_provider_that_dies_leaves_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trials: list[str]
) -> None:
    import onnxruntime

    both = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    (tmp_path / "sitecustomize.py").write_text(
        f"import ctypes, onnxruntime\nonnxruntime.get_available_providers = lambda: {both}\n"
        "real = onnxruntime.InferenceSession\n"
        "def dying(file, options, providers):\n"
        "    return real(file, options, providers) if len(providers) == 1 else ctypes.string_at(0)\n"
        "onnxruntime.InferenceSession = dying\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: both)
    drafter = load_drafter(ONNX, settings=DeviceSettings(provider="auto"))
    assert drafter is not None
    assert "nodes on CPUExecutionProvider" in drafter.info.runs_on
    assert "the provider cuda cannot draft" in drafter.info.notices[0]
    assert "SIGSEGV (segmentation fault); try --provider cpu" in drafter.info.notices[0]
    drafter.close()
    assert len(trials) == 3  # the import, and the model on each provider


def test_a_runtime_that_hangs_is_given_up_after_its_deadline(
    stand_in: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in("llama_cpp", "hang")
    monkeypatch.setattr(runtime_trial, "LEAST_DEADLINE_S", 1.0)
    with InProcessVerifier(MockEngine()) as verifier, EdgeClient(verifier.address, GGUF) as client:
        assert "was not done after 1 s" in client.notices[0]
        assert client.generate([2, 3], SamplingParams(temperature=0.0, max_tokens=8), seed=0).token_ids == tuple(
            answer([2, 3], 0, 8)
        )


def test_a_runtime_that_dies_when_it_is_imported_is_a_finding_of_the_doctor(
    stand_in: Callable[[str, str], Path],
) -> None:
    stand_in("onnxruntime", "SIGILL")
    with pytest.raises(DrafterError, match="importing it in a process of its own ended with SIGILL"):
        available_providers()
    finding = doctor._providers("cpu")
    assert not finding.ok
    assert "ended with SIGILL" in finding.detail


@pytest.mark.parametrize("drafter", [GGUF, ONNX], ids=["gguf", "onnx"])
def test_a_runtime_that_lives_is_tried_once(drafter: Path, trials: list[str]) -> None:
    for _ in range(2):
        loaded = load_drafter(drafter)
        assert loaded is not None
        loaded.close()
    assert len(trials) == 1


def test_another_build_model_or_setting_is_tried_again(tmp_path: Path, trials: list[str]) -> None:
    model = tmp_path / "drafter.gguf"
    model.write_bytes(GGUF.read_bytes())
    trial = Trial(LLAMA_CPP, (model,))
    for same in (trial, Trial(LLAMA_CPP, (model,), threads=2, settings=DeviceSettings(memory_limit_bytes=1 << 30))):
        check_runtime(same)
    assert len(trials) == 1
    check_runtime(Trial(LLAMA_CPP, (model,), settings=DeviceSettings(context_tokens=512)))
    assert len(trials) == 2
    os.utime(model, ns=(1, 1))
    check_runtime(trial)
    assert len(trials) == 3


def test_the_key_holds_build_cpu_and_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = tmp_path / "libggml-cpu.so"
    library.write_bytes(b"1")
    driver = tmp_path / "version"
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(tmp_path))
    monkeypatch.setattr(runtime_build, "_DRIVER", driver)
    trial, keys = Trial(LLAMA_CPP, (GGUF,)), set[str]()
    keys.add(trial.key)
    library.write_bytes(b"22")
    keys.add(trial.key)
    monkeypatch.setattr(runtime_trial, "cpu_facts", lambda: {"model name": "another"})
    keys.add(trial.key)
    driver.write_text("550")
    keys.add(trial.key)
    assert len(keys) == 4


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"a": 1}', b'{"a": ["", "b"]}', b"\xff" * 9, b"[" * 9999])
def test_a_damaged_cache_costs_another_trial(cache: Path, trials: list[str], content: bytes) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_bytes(content)
    check_runtime(Trial(ONNX_RUNTIME))
    check_runtime(Trial(ONNX_RUNTIME))
    assert len(trials) == 1
    assert json.loads(cache.read_bytes())


def test_a_cache_that_cannot_be_written_costs_a_trial_each_time(cache: Path, trials: list[str]) -> None:
    cache.parent.parent.mkdir(parents=True)
    cache.parent.write_text("a file where the folder should be")
    check_runtime(Trial(ONNX_RUNTIME))
    check_runtime(Trial(ONNX_RUNTIME))
    assert len(trials) == 2


def test_the_cache_is_bounded(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime_trial, "run_module", lambda *_: Ended(0, "begun\nevaluated\n", ""))
    for count in range(1, runtime_trial.MOST_OUTCOMES + 9):
        check_runtime(Trial(ONNX_RUNTIME, settings=DeviceSettings(context_tokens=count)))
    assert len(json.loads(cache.read_bytes())) == runtime_trial.MOST_OUTCOMES


def test_a_refusal_holds_for_a_day_or_until_the_doctor_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = [Ended(-signal.SIGBUS, "begun\n", "")]
    monkeypatch.setattr(runtime_trial, "run_module", lambda *_: ends.pop())
    for _ in range(2):
        with pytest.raises(DrafterError, match="SIGBUS"):
            check_runtime(Trial(ONNX_RUNTIME))
    assert not ends
    ends.append(Ended(-signal.SIGBUS, "begun\n", ""))
    now_s = time.time()
    monkeypatch.setattr(time, "time", lambda: now_s + runtime_trial.REFUSAL_HOLDS_S + 1)
    with pytest.raises(DrafterError, match="SIGBUS"):
        check_runtime(Trial(ONNX_RUNTIME))
    assert not ends
    runtime_trial.forget_refusals()
    ends.append(Ended(0, "begun\nevaluated\n", ""))
    check_runtime(Trial(ONNX_RUNTIME))
    check_runtime(Trial(ONNX_RUNTIME))


@pytest.mark.parametrize(
    ("ended", "refused", "remembered"),
    [
        (Ended(-signal.SIGKILL, "begun\n", ""), "SIGKILL; most likely for lack of memory", False),
        (Ended(-signal.SIGSEGV, "begun\nevaluated\n", ""), "SIGSEGV", True),  # when it was unloaded
        (Ended(-signal.SIGTERM, "begun\n", ""), "SIGTERM", False),
        (Ended(0, "begun\n", ""), "exit status 0", True),
        (Ended(None, "begun\n", ""), "was not done", True),
        (Ended(None, "", ""), "was not done", False),
        (Ended(0, "begun\nrefused\n", ""), "", False),
        (Ended(1, "", "No module named edge_client"), "", False),
    ],
)
def test_what_an_end_means(
    cache: Path, monkeypatch: pytest.MonkeyPatch, ended: Ended, refused: str, remembered: bool
) -> None:
    monkeypatch.setattr(runtime_trial, "run_module", lambda *_: ended)
    if refused:
        with pytest.raises(DrafterError, match=refused):
            check_runtime(Trial(ONNX_RUNTIME))
    else:
        check_runtime(Trial(ONNX_RUNTIME))
    assert cache.exists() == remembered


@pytest.mark.parametrize(("executable", "frozen"), [("", False), ("/usr/bin/an-app", False), ("/opt/python3", True)])
def test_without_an_interpreter_nothing_is_tried(
    monkeypatch: pytest.MonkeyPatch, executable: str, frozen: bool
) -> None:
    def started(*_arguments: object, **_options: object) -> None:
        raise AssertionError("no process may be started")

    monkeypatch.setattr(subprocess, "Popen", started)
    monkeypatch.setattr(sys, "executable", executable)
    monkeypatch.setattr(sys, "frozen", frozen, raising=False)
    check_runtime(Trial(ONNX_RUNTIME))


def test_an_error_in_the_trial_is_told_by_loading(tmp_path: Path, trials: list[str]) -> None:
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(GGUF.read_bytes()[:200_000])
    with pytest.raises(DrafterError, match=r"llama\.cpp cannot load"):
        load_drafter(damaged)
    assert len(trials) == 1


def test_a_child_answers_apart_from_what_it_prints_and_ends_with_its_parent_gone() -> None:
    ended = child_process.run_module("tests.service.talking_child", "the task", 60.0)
    assert ended.returncode == -signal.SIGALRM
    assert ended.output == "the task"
    assert ended.last_words == "printed by native code"


def test_amx_is_told_of_where_commands_are_copied(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    flags = {"flags": "avx512f amx_tile amx_int8"}
    monkeypatch.setattr(runtime_build, "cpu_facts", lambda: flags)
    assert "CFLAGS=-U__AMX_INT8__ CXXFLAGS=-U__AMX_INT8__ pip install --no-cache-dir" in runtime_install(LLAMA_CPP)
    monkeypatch.setattr(runtime_build, "native_libraries", lambda _package: [str(tmp_path / "libggml-cpu.so.0")])
    (tmp_path / "libggml-cpu.so.0").write_bytes(b"...AMX is not ready to be used!...")
    assert (
        "if a drafter ends with SIGILL, compile it anew: CFLAGS=-U__AMX_INT8__" in doctor._runtime(LLAMA_CPP, "").detail
    )
    (tmp_path / "libggml-cpu.so.0").write_bytes(b"...")
    assert "AMX" not in doctor._runtime(LLAMA_CPP, "").detail
    flags["flags"] = "avx2"
    assert "AMX" not in runtime_install(LLAMA_CPP)
