"""A real small model beside a real target: the verifier's own guesses, alone and beside a device's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from edge_client.client import EdgeClient
from edge_client.types import RequestOutput
from netlab.verifier_process import VerifierProcess, VerifierProcessError
from speculation.sampling import SamplingParams

DEMO = Path(__file__).resolve().parents[2] / "models" / "demo"
PROMPT = [{"role": "user", "content": "I'd like to book a table for two at an Italian restaurant in San Jose."}]
TOKENS = 48
SAMPLING = [
    SamplingParams(temperature=0.0, max_tokens=TOKENS, ignore_eos=True),
    SamplingParams(temperature=0.8, top_p=0.95, max_tokens=TOKENS, ignore_eos=True, logprobs=2),
]


def answers(*options: str, drafter: str | None = None) -> list[RequestOutput]:
    with (
        VerifierProcess(DEMO / "target", options=["--threads", "1", "--step-ms", "20", *options]) as verifier,
        EdgeClient(verifier.address, drafter) as client,
    ):
        return [client.generate(PROMPT, params, seed=4) for params in SAMPLING]


def test_a_draft_model_saves_forwards_and_changes_no_word() -> None:
    model = ("--draft-model", str(DEMO / "drafter.gguf"))
    plain = answers()
    for drafter in (None, str(DEMO / "drafter-onnx")):
        helped = answers(*model, drafter=drafter)
        assert [one.token_ids for one in helped] == [one.token_ids for one in plain]
        assert [one.logprobs for one in helped] == [one.logprobs for one in plain]
        if drafter is None:
            assert all(one.metrics.own_accepted_tokens > 0 for one in helped)
            assert all(one.metrics.target_forwards < TOKENS for one in helped)


def test_a_draft_model_of_another_vocabulary_is_refused(tmp_path: Path) -> None:
    other = shutil.copytree(DEMO / "target", tmp_path / "other")
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    tokens = tokenizer["model"]["vocab"]
    one, two = (token for token, number in tokens.items() if number in (300, 301))
    tokens[one], tokens[two] = tokens[two], tokens[one]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(VerifierProcessError, match="another vocabulary"):
        VerifierProcess(DEMO / "target", options=["--threads", "1", "--draft-model", str(other)])
