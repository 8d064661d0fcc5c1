"""Promise 1 with vLLM as the engine: the demo's target as the command serves it, real sockets, real drafters.

Words must be those of the torch engine, whatever the drafter, network and company, after a cut and after a crash.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cloud_verifier.engines.vllm.options import missing
from edge_client.client import EdgeClient
from edge_client.drafters import load_drafter
from edge_client.types import RequestOutput
from netlab.link_process import LinkProcess
from netlab.link_settings import LinkSettings
from netlab.verifier_process import VerifierProcess
from speculation.pace.adaptive import Adaptive
from speculation.pace.base import BoundedLookahead, FixedTree, Pace, Streaming, Synchronous
from speculation.sampling import SamplingParams

if why := missing():
    pytest.skip(why, allow_module_level=True)
pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]
DEMO = Path(__file__).resolve().parents[2] / "models" / "demo"
TOKENS, SEED = 32, 20
PROMPT = [{"role": "user", "content": "I'd like to book a table for two at an Italian restaurant in San Jose."}]
SAMPLING = {
    "greedy": SamplingParams(temperature=0.0, max_tokens=TOKENS, ignore_eos=True),
    "t0.8": SamplingParams(temperature=0.8, max_tokens=TOKENS, ignore_eos=True),
    "all": SamplingParams(
        temperature=1.0, top_p=0.9, presence_penalty=0.7, repetition_penalty=1.3, max_tokens=TOKENS, stop=("zzz",)
    ),
}
WAYS: dict[str, tuple[Callable[[], Pace], str | None]] = {
    "streaming": (Streaming, None),
    "sync": (lambda: Synchronous(4), "onnx"),
    "server-led": (BoundedLookahead, "onnx"),
    "adaptive": (Adaptive, "onnx"),
    "lookup": (lambda: Synchronous(4), "ngram"),
    "tree": (lambda: FixedTree(3), "onnx"),
}
NETWORK = LinkSettings.of_rtt(20, jitter_ms=8, seed=3)
Words = tuple[int, ...]


class Bench:
    """A verifier with vLLM, a link to it, and a client for every way of decoding."""

    def __init__(self, link: LinkProcess, verifier: VerifierProcess) -> None:
        self.link, self.verifier = link, verifier
        drafters = {"onnx": str(DEMO / "drafter-onnx"), "ngram": "ngram"}
        self.clients = {
            way: EdgeClient(f"127.0.0.1:{link.port}", load_drafter(drafters[name]) if name else None, pace=pace)
            for way, (pace, name) in WAYS.items()
        }

    def restart(self) -> None:
        """Kill the verifier as a crash would, and start another on the same port."""
        port = self.verifier.port
        self.verifier.kill()
        self.verifier.stop()
        self.verifier = with_vllm(port)


def with_vllm(port: int = 0) -> VerifierProcess:
    """After a restart it guesses, too."""
    options = ["--engine", "vllm", "--threads", "1", "--max-sessions", "8", "--kv-cache-gib", "0.25"]
    options += ["--own-guesses", "ngram"] if port else []
    return VerifierProcess(DEMO / "target", port=port, options=options)


@pytest.fixture(scope="module")
def reference() -> dict[str, Words]:
    """What the torch engine writes, without a drafter."""
    options = ["--engine", "torch", "--threads", "1", "--kv-cache-gib", "0.25"]
    with VerifierProcess(DEMO / "target", options=options) as verifier, EdgeClient(verifier.address) as client:
        return {name: client.generate(PROMPT, params, seed=SEED).token_ids for name, params in SAMPLING.items()}


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    verifier = with_vllm()
    try:
        assert "Strict mode is exact here" in verifier.banner
        with LinkProcess(("127.0.0.1", verifier.port), LinkSettings()) as link:
            subject = Bench(link, verifier)
            yield subject
            verifier = subject.verifier  # it may be another by now
            for client in subject.clients.values():
                client.close()
    finally:
        verifier.stop()


def run(client: EdgeClient, params: SamplingParams, disturb: Callable[[], object] | None = None) -> RequestOutput:
    """One answer; `disturb` is called once, when a third of it has come."""
    seen = 0
    for chunk in client.stream(PROMPT, params, seed=SEED):
        seen += len(chunk.token_ids)
        if disturb is not None and seen >= TOKENS // 3 and chunk.output is None:
            disturb()
            disturb = None
        if chunk.output is not None:
            return chunk.output
    raise AssertionError("the stream ended without an output")


@pytest.mark.parametrize("cut", [False, True], ids=["whole", "cut"])
@pytest.mark.parametrize("sampling", SAMPLING)
@pytest.mark.parametrize("way", WAYS)
def test_alone(bench: Bench, reference: dict[str, Words], way: str, sampling: str, cut: bool) -> None:
    bench.link.configure(NETWORK)
    output = run(bench.clients[way], SAMPLING[sampling], bench.link.cut if cut else None)
    assert output.token_ids == reference[sampling]
    if way == "sync" and not cut:
        assert output.metrics.accepted_tokens > 0


@pytest.mark.parametrize("disturbance", ["none", "cut", "killed"])
def test_in_company(bench: Bench, reference: dict[str, Words], disturbance: str) -> None:
    bench.link.configure(NETWORK)
    disturbances = {"none": None, "cut": bench.link.cut, "killed": bench.restart}
    with ThreadPoolExecutor(len(WAYS)) as pool:
        futures = {
            way: pool.submit(run, client, SAMPLING["t0.8"], disturbances[disturbance] if way == "streaming" else None)
            for way, client in bench.clients.items()
        }
        outputs = {way: future.result().token_ids for way, future in futures.items()}
    assert outputs == dict.fromkeys(WAYS, reference["t0.8"])


def test_logprobs_are_those_of_streaming_bit_by_bit(bench: Bench) -> None:
    params = SamplingParams(temperature=0.9, max_tokens=TOKENS, ignore_eos=True, logprobs=3)
    bench.link.configure(LinkSettings())
    expected = run(bench.clients["streaming"], params)
    output = run(bench.clients["sync"], params, bench.link.cut)
    assert output.token_ids == expected.token_ids
    assert output.logprobs == expected.logprobs
    assert len(output.logprobs or ()) == TOKENS
