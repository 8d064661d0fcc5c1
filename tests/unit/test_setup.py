"""What `edge-client setup` finds on a device, leaves out, expects and chooses; nothing here asks a verifier."""

from __future__ import annotations

import json
import os
import re
import sys
import threading
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest
from click.testing import CliRunner
from rich.console import Console

from edge_client.cli import main
from edge_client.drafters import load_drafter
from edge_client.drafters.base import DrafterError
from edge_client.drafters.settings import DeviceSettings
from edge_client.drafters.sources import cli as sources_cli
from edge_client.drafters.sources import model_search
from edge_client.drafters.sources.model_search import Model, Place, look, usual_places
from edge_client.drafters.sources.spec import LOOKUPS
from edge_client.setup import hub_suggestions, measurement, proposals, reference_answers, tables
from edge_client.setup.drafter_trial import Accelerator, Tried, best, replay, try_drafter
from edge_client.setup.measurement import choose
from edge_client.setup.proposals import Candidate
from edge_client.setup.reference_answers import Answer, Listener, Reference, as_json, from_json
from edge_client.setup.speed_forecast import expected_ms_per_token, survivals
from edge_client.setup.speed_race import Race
from edge_client.types import RequestMetrics, RequestOutput
from outrider_models.runtime_build import LLAMA_CPP
from speculation.noise import Noise
from speculation.vocabulary.vocabulary import Vocabulary
from tests.contract.tiny_models import save_hybrid_gguf

DEMO = Path(__file__).resolve().parents[2] / "models" / "demo"
MANIFEST = {
    "layers": [
        {"mediaType": "application/vnd.ollama.image.license", "digest": "sha256:1"},
        {"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{'a' * 64}"},
    ]
}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Somebody's, with nothing in it; the current folder is another empty one."""
    for name in ("HF_HOME", "HF_HUB_CACHE", "LLAMA_CACHE", "OLLAMA_MODELS", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(sys, "platform", "linux")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "home"


def put(file: Path, content: Path | str = DEMO / "drafter.gguf") -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content.read_bytes() if isinstance(content, Path) else content.encode())
    return file


def test_models_are_found_where_people_and_programs_keep_them(home: Path) -> None:
    cache = home / ".cache"
    snapshot = cache / "huggingface" / "hub" / "models--org--Small-GGUF" / "snapshots"
    blob = put(snapshot.parent / "blobs" / "1234")
    for commit in ("c0ffee", "decade"):
        (snapshot / commit).mkdir(parents=True)
        (snapshot / commit / "small-q8_0.gguf").symlink_to(blob)
    put(Path("here.gguf"))
    put(Path("models/deep/er/model.gguf"))
    put(cache / "llama.cpp" / "llama.gguf")
    put(home / ".lmstudio" / "models" / "org" / "Studio-GGUF" / "studio.gguf")
    put(home / ".ollama" / "models" / "blobs" / f"sha256-{'a' * 64}")
    put(
        home / ".ollama" / "models" / "manifests" / "registry.ollama.ai" / "library" / "small" / "1b",
        json.dumps(MANIFEST),
    )
    put(home / ".ollama" / "models" / "manifests" / "registry.ollama.ai" / "library" / "broken" / "1b", "{")
    models, unusable = look(usual_places())
    assert {model.label for model in models} == {
        "here.gguf",
        "models/deep/er/model.gguf",
        "org/Small-GGUF/small-q8_0.gguf",
        "llama.gguf (llama.cpp)",
        "org/Studio-GGUF/studio.gguf (LM Studio)",
        "small:1b (Ollama)",
    }
    assert unusable == []
    of_ollama = next(model for model in models if "Ollama" in model.label)
    drafter = load_drafter(of_ollama.path)
    assert drafter is not None
    drafter.close()


def test_models_are_listed_with_the_spec_that_opens_them(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = home / ".cache" / "huggingface" / "hub" / "models--org--Small-GGUF"
    for commit in ("c0ffee", "decade"):
        put(hub / "snapshots" / commit / "small-q8_0.gguf")
    put(hub / "refs" / "main", "c0ffee")
    put(Path("models/mine.gguf"))
    put(Path("cut.gguf"), "GGUF\x03")
    put(home / ".lmstudio" / "models" / "studio.gguf")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(hub.parent))
    monkeypatch.setattr(sources_cli, "is_installed", lambda module: module == LLAMA_CPP)
    runner = CliRunner()
    found = json.loads(runner.invoke(main, ["models", "--json"]).output)
    by_spec = {model["drafter"]: model for model in found["models"]}
    assert by_spec.keys() == {
        *("demo", str(DEMO / "drafter.gguf"), "models/mine.gguf", "~/.lmstudio/models/studio.gguf"),
        *("hf:org/Small-GGUF:small-q8_0.gguf", "hf:org/Small-GGUF@decade:small-q8_0.gguf"),
    }
    assert by_spec["demo"] | {"path": "", "memory_bytes": 0, "size_bytes": 0} == {
        "drafter": "demo",
        "name": "demo",
        "kind": "onnx",
        "path": "",
        "memory_bytes": 0,
        "size_bytes": 0,
        "vocabulary_tokens": 4096,
        "runtime": "onnxruntime",
        "runtime_installed": False,
    }
    assert by_spec["models/mine.gguf"]["vocabulary_tokens"] == 4096
    assert by_spec["models/mine.gguf"]["runtime_installed"] is True
    assert [one["what"] for one in found["left_out"]] == ["cut.gguf"]
    for spec in by_spec:
        drafter = load_drafter(spec, settings=DeviceSettings(offline=True))
        assert drafter is not None
        drafter.close()
    table = runner.invoke(main, ["models"]).output
    assert re.search(r"hf:org/Small-GGUF@decade:small-q8_0.gguf +GGUF +3 MB +4,096 +installed", table)
    assert "The runtime for ONNX drafters is missing: pip install" in table
    assert "cannot be used: cut.gguf" in table


@pytest.mark.parametrize(
    ("variable", "inside"),
    [
        ("HF_HOME", "hub/models--o--m/snapshots/c/m.gguf"),
        ("LLAMA_CACHE", "m.gguf"),
        ("XDG_CACHE_HOME", "llama.cpp/m.gguf"),
    ],
)
def test_where_a_program_was_told_to_keep_its_models_is_looked_at(
    home: Path, monkeypatch: pytest.MonkeyPatch, variable: str, inside: str
) -> None:
    monkeypatch.setenv(variable, str(home / "elsewhere"))
    put(home / "elsewhere" / inside)
    assert len(look(usual_places())[0]) == 1


def test_of_a_folder_with_onnx_files_one_is_taken_and_encoders_are_not_proposed(home: Path) -> None:
    for name in ("model.onnx", "model_q4f16.onnx"):
        put(home / "small" / "onnx" / name, DEMO / "drafter-onnx" / "model.onnx")
    put(home / "small" / "tokenizer.json", "{}")
    put(home / "small" / "config.json", json.dumps({"architectures": ["LlamaForCausalLM"]}))
    put(home / "embedder" / "model.onnx", "x")
    put(home / "embedder" / "tokenizer.json", "{}")
    put(home / "embedder" / "config.json", json.dumps({"architectures": ["BertModel"]}))
    put(home / "vision" / "model.onnx", "x")  # with no tokenizer: no language
    models, unusable = look([Place("mine", home, 3)])
    assert [model.label for model in models] == ["small/onnx (mine)"]
    assert unusable == []


def test_a_file_that_is_none_is_left_out_with_a_sentence(home: Path) -> None:
    put(home / "half.gguf", "GGUF\x03")
    put(home / "page.gguf", "<html>")
    models, unusable = look([Place("mine", home, 0)])
    assert models == []
    assert [one.what for one in unusable] == ["half.gguf (mine)", "page.gguf (mine)"]
    assert "damaged or incomplete" in unusable[0].why
    assert "not a GGUF file" in unusable[1].why


def test_what_a_model_needs_is_told_from_its_header(tmp_path: Path) -> None:
    save_hybrid_gguf(tmp_path / "hybrid.gguf")
    ((model,), _) = look([Place("mine", tmp_path, 0)])
    assert model.weights_bytes == (tmp_path / "hybrid.gguf").stat().st_size
    assert model.memory_bytes > model.weights_bytes


def model(name: str, megabytes: int, *, experts: bool = False) -> Model:
    return Model(Path(f"/{name}"), name, megabytes * 10**6, megabytes * 10**6 + 1, not experts)


def test_what_does_not_fit_or_cannot_be_quick_enough_is_left_out_with_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proposals, "available_bytes", lambda: 10 * 10**9)
    monkeypatch.setattr(proposals, "memory_bytes_per_ms", lambda: 10e6)
    models = [model("small", 100), model("slow", 1000), model("sparse", 1000, experts=True), model("big", 6000)]
    worth, left_out = proposals.candidates(models, threads=2, step_ms=30.0)
    assert [one.label for one in worth] == ["ngram", "history", "small", "sparse"]
    assert left_out == [
        model_search.LeftOut(
            "slow",
            "too slow here: reading its 1.0 GB takes at least 35 ms per guess, and the verifier writes a token in "
            "30 ms",
        ),
        model_search.LeftOut("big", "it needs about 6.0 GB of memory, more than half of the 10.0 GB that are free"),
    ]
    assert [one.label for one in proposals.candidates(models, 2)[0]] == ["ngram", "history", "small", "slow", "sparse"]


def test_of_very_many_models_the_smallest_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proposals, "available_bytes", lambda: None)
    worth, left_out = proposals.candidates([model(str(number), 1) for number in range(20)], 1)
    assert len(worth) == len(LOOKUPS) + proposals.MOST_TRIED
    assert len(left_out) == 20 - proposals.MOST_TRIED
    assert "--drafter" in left_out[0].why


def test_survival_is_that_of_the_lines_between_misses() -> None:
    right, wrong = [True] * 300, [False] * 300
    assert survivals([right])[:4] == pytest.approx(np.ones(4))
    assert survivals([wrong])[1] == 0.0
    pairs = survivals([[True, True, False] * 200])
    assert pairs[1] == pytest.approx(1.0, abs=0.02)
    assert pairs[2] == pytest.approx(1.0, abs=0.04)
    assert pairs[3] == pytest.approx(0.0, abs=0.04)


def test_what_is_expected_follows_the_hits_the_time_and_the_way() -> None:
    rng = np.random.default_rng(1)
    often, seldom = ([list(rng.random(400) < rate)] for rate in (0.85, 0.3))

    def ms(hits: list[list[bool]], draft_ms: float, rtt_ms: float) -> float:
        return expected_ms_per_token(hits, draft_ms, rtt_ms, 30.0)

    assert ms(often, 5, 20) < ms(often, 5, 100) < ms(often, 5, 400) <= 30.0
    assert ms(often, 5, 50) < ms(often, 20, 50)
    assert ms(often, 5, 50) < ms(seldom, 5, 50)
    assert ms([[False] * 50], 1, 0) == 30.0
    # As in the design's table of a simulation: 0.85 and 5 ms give 13.2, 16.0 and 19.7 ms per token.
    assert [ms(often, 5, rtt_ms) for rtt_ms in (20, 50, 100)] == pytest.approx([13.2, 16.0, 19.7], rel=0.15)


def tried(spec: str, expected_ms: float | None, memory_bytes: int = 0, **others: Any) -> Tried:
    return Tried(spec, spec, expected_ms=expected_ms, memory_bytes=memory_bytes, **others)


def test_the_fastest_answers_are_chosen_and_not_the_quickest_guesses() -> None:
    hasty = tried("hasty", 30.0, 10, token_ms=0.5)
    right = tried("right", 15.0, 900, token_ms=6.0)
    assert best([hasty, right]) == right
    assert best([right, tried("as good", 15.2, 100)]) == tried("as good", 15.2, 100)
    assert best([tried("broken", None, trouble="broken")]) is None
    assert best([]) is None


def test_where_nothing_was_judged_a_lookup_is_chosen() -> None:
    assert choose([tried("model", None, 5), tried("ngram", None)]) == tried("ngram", None)
    assert choose([tried("model", None, 5)]) == tried("model", None, 5)


def test_a_lookup_goes_before_the_best_model_where_that_costs_nothing() -> None:
    model, chain, dear = tried("m", 10.0, 9), tried("ngram+m", 10.2, 9), tried("ngram+m", 11.0, 9)
    ngram = tried("ngram", 30.0)
    assert choose([ngram, model, chain]) == chain
    assert choose([ngram, model, dear]) == model
    assert choose([ngram, model]) == model
    assert choose([ngram]) == ngram


@pytest.mark.parametrize(
    ("token_ms", "asked", "tried_with", "taken"),
    [
        ({1: 0.5, 4: 0.2}, None, [1], 1),  # a tiny model is no quicker with more
        ({1: 20.0, 4: 7.0}, None, [1, 4], 4),
        ({1: 20.0, 4: 25.0}, None, [1, 4], 1),
        ({3: 20.0}, 3, [3], 3),
    ],
)
def test_a_slow_drafter_is_tried_with_more_threads_and_keeps_what_is_quicker(
    monkeypatch: pytest.MonkeyPatch, token_ms: dict[int, float], asked: int | None, tried_with: list[int], taken: int
) -> None:
    seen = []

    def trial_of(spec: str, threads: int, _reference: object, *, label: str, accelerator: Accelerator) -> Tried:
        assert accelerator == Accelerator("auto", -1)
        seen.append(threads)
        return Tried(spec, label, threads, token_ms=token_ms[threads])

    monkeypatch.setattr(measurement, "try_drafter", trial_of)
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    found = measurement.Measuring(Console(), asked, Accelerator("auto", -1)).one(Candidate("m", "m"))
    assert seen == tried_with
    assert found.threads == taken


def raced(*ms_per_token: tuple[float, float], tokens: int = 5) -> Race:
    """Answers of so many tokens, streamed and drafted with these times per token."""

    def outputs(way: int) -> tuple[RequestOutput, ...]:
        times = [pair[way] for pair in ms_per_token]
        figures = [RequestMetrics(1.0, 1.0, ms, None, 0, 0, 0, None, 0, 0, 0, 0.0, 0, 0, 0) for ms in times]
        return tuple(RequestOutput("", (0,) * tokens, (), "stop", 0, 0, found) for found in figures)

    return Race("here", outputs(0), outputs(1))


def test_a_race_tells_the_speed_up_of_all_answers_and_how_they_spread() -> None:
    race = raced((20.0, 5.0), (20.0, 10.0), (20.0, 20.0), (20.0, 25.0))
    assert race.speed_up == pytest.approx(80 / 60)
    assert race.spread == pytest.approx((0.95, 2.5))
    assert raced((20.0, 10.0), (20.0, 0.0)).spread == (4.0, 4.0), "one answer tells no spread"


def test_forecasts_are_corrected_by_the_share_of_the_gain_that_was_real() -> None:
    measuring = measurement.Measuring(Console(quiet=True), 1)
    measuring.reference = Reference("target", "", 100, 0.0, 20.0, (), None)
    tried = [Tried("here", "here", expected_ms=10.0), Tried("worse", "worse", expected_ms=16.0), Tried("x", "x")]
    corrected = measuring.correct(raced((30.0, 22.5)), tried[0], tried)
    assert [one.expected_ms for one in corrected] == [15.0, 18.0, None]
    assert raced((30.0, 40.0)).share(10.0, 20.0) == 0.0, "no gain at all"
    assert raced((30.0, 3.0)).share(10.0, 20.0) == 1.0, "a race that went better than forecast promises nothing"
    assert raced((30.0, 3.0)).share(20.0, 20.0) == 1.0


def test_only_an_accelerator_is_written_down() -> None:
    assert Accelerator().settings == {}
    assert Accelerator("auto", -1).settings == {"provider": "auto", "gpu-layers": -1}
    assert Accelerator(gpu_layers=-1).device.gpu_layers == -1


def test_a_table_fits_a_narrow_screen_and_says_when_there_is_no_model(capsys: pytest.CaptureFixture[str]) -> None:
    reference = Reference("m", "sha256:1", 3, 50.0, 30.0, (), None)
    long = tried("ngram+models/a-rather-long-name-of-a-model-Q4_K_M.gguf", 10.0, 10**9, acceptance=0.7, token_ms=5.0)
    left_out = [model_search.LeftOut("a", "too slow"), model_search.LeftOut("b", "too slow")]
    tables.show(Console(width=70), [long, tried("ngram", 30.0, threads=4)], left_out, reference)
    shown = capsys.readouterr().out
    assert "left out: a, b: too slow" in shown
    assert "speed-up" in shown
    assert "3.0 x" in shown
    assert "No model" not in shown
    tables.show(Console(), [tried("ngram", 30.0)], [], reference)
    assert "No model to draft with was found" in capsys.readouterr().out


def test_hits_are_those_of_the_shared_noise_at_the_positions_of_the_log() -> None:
    """A target that draws as the drafter does, from its own candidates: every guess is right."""
    drafter = load_drafter(DEMO / "drafter-onnx")
    assert drafter is not None
    log, noise = list(range(20, 30)), Noise(7)
    drafter.feed(log)
    for position in range(10, 40):
        found = drafter.candidates()
        log.append(int(found.ids[(found.log_probs / 0.8 + noise.gumbel(position, found.ids)).argmax()]))
        drafter.feed(log[-1:])
    hits, times_ms = replay(drafter, Answer(tuple(log), 10, seed=7))
    assert hits == [True] * 30
    assert len(times_ms) == 30
    others, _ = replay(drafter, Answer(tuple(log), 10, seed=8))
    assert sum(others) < 25
    drafter.close()


def test_an_answer_is_that_of_its_output_however_late_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The drafting thread tells the log when the output has come already."""
    listener = Listener()
    metrics = RequestMetrics(1.0, 1.0, 1.0, None, 0, 0, 0, None, 0, 0, 0, 0.0, 0, 0, 0)
    output = RequestOutput("", (8, 9), (), "stop", 2, 7, metrics)
    listener.learn([1, 2, 5], 2)  # of an answer before
    later = threading.Timer(0.2, listener.learn, ([1, 2, 8, 9], 2))
    later.start()
    assert listener.heard(output) == [Answer((1, 2, 8, 9), 2, seed=7)]
    later.join()
    monkeypatch.setattr(reference_answers, "HEARD_S", 0.0)
    assert listener.heard(output) == [], "not told"


def test_a_reference_reaches_another_process_unchanged() -> None:
    vocabulary = Vocabulary(("a", "\udcff", "Ġb"), frozenset({1}), added=frozenset({2}))
    for told in (vocabulary, None):
        reference = Reference("m", "sha256:1", 3, 50.0, 30.0, (Answer((1, 2, 0), 2, 5),), told)
        assert from_json(json.loads(json.dumps(as_json(reference)))) == reference


def test_a_trial_that_crashes_or_hangs_is_a_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = sys.executable
    for module, sentence in (
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "ended with SIGSEGV, its file may be damaged"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "most likely for lack of memory"),
        ("raise SystemExit('no such runtime')", "it cannot be tried: no such runtime"),
        ("import time; time.sleep(600)", "not done with a few answers after 2 s"),
    ):
        program = tmp_path / "python"
        program.write_text(f'#!/bin/sh\nexec {real} -c "{module}"\n')
        program.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(program))
        found = try_drafter("ngram", 1, None, longest_s=2.0 if "sleep" in module else 60.0)
        assert sentence in found.trouble


def test_a_trial_without_a_verifier_tells_time_and_memory() -> None:
    found = try_drafter(str(DEMO / "drafter.gguf"), 1, None)
    assert found.trouble == ""
    assert found.token_ms is not None
    assert found.token_ms > 0
    assert found.memory_bytes is not None
    assert found.memory_bytes > 2**20  # its own: not what this process has taken
    assert found.memory_bytes < 2**28
    assert found.acceptance is None
    assert found.expected_ms is None


def test_a_vocabulary_that_nobody_tells_cannot_be_translated() -> None:
    untold = Reference("m", "letters", 3, 50.0, 30.0, (Answer((1, 2, 0), 2),), None)
    assert "cannot be had from the verifier" in try_drafter(str(DEMO / "drafter-onnx"), 1, untold).trouble


@pytest.mark.parametrize(
    ("name", "tokens", "repo"),
    [
        ("chat", ["<|im_start|>", "<|fim_prefix|>", "<think>"], "ggml-org/Qwen3-0.6B-GGUF"),
        ("chat", ["<|im_start|>", "<|fim_prefix|>"], "bartowski/Qwen2.5-0.5B-Instruct-GGUF"),
        ("Meta-Llama-3.1-8B-Instruct", [], "bartowski/Llama-3.2-1B-Instruct-GGUF"),
        ("Qwen/Qwen3-8B", [], "ggml-org/Qwen3-0.6B-GGUF"),
        ("Qwen/Qwen3-8B", ["a", "b"], None),  # its vocabulary says otherwise
        ("Qwen3.5-8B", [], None),
        ("target", [], None),
    ],
)
def test_the_family_of_a_target_is_known_by_its_tokens_or_else_by_its_name(
    name: str, tokens: list[str], repo: str | None
) -> None:
    family = hub_suggestions.family_of(name, tokens)
    assert (family.drafters[0].repo if family else None) == repo


def test_the_size_of_a_download_is_the_hubs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("outrider_models.hub._listing", lambda _hub, _model: {"m-Q4_K_M.gguf": 7, "m-Q8_0.gguf": 9})
    (family, *_) = [one for one in hub_suggestions.FAMILIES if "smollm2" in one.name.pattern]
    assert [one.download_bytes for one in hub_suggestions.suggestions(family.drafters)] == [7]
    monkeypatch.setattr("outrider_models.hub._listing", lambda _hub, _model: None)
    with pytest.raises(DrafterError, match="the hub cannot be reached"):
        hub_suggestions.suggestions(family.drafters)
