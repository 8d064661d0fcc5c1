"""Promise 1: the text is a pure function of (target, prompt, parameters, seed).

Token ids must be equal whatever the way of decoding, the drafter, the network, the company in the batch, a cut link or
a restarted verifier. Everything here is real: processes, sockets, the demo pair in both formats.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import llama_cpp
import numpy as np
import numpy.typing as npt
import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from cloud_verifier.engines.llama_cpp.load import BFLOAT16
from edge_client.client import EdgeClient
from edge_client.types import RequestOutput
from netlab.experiments.troubled import Trouble
from netlab.link_settings import LinkSettings
from speculation.noise import Noise
from speculation.sampling import SamplingParams, filtered
from tests.losslessness.conftest import DEMO, WAYS, Bench

TOKENS = 32
SEED = 20
PROMPT = [{"role": "user", "content": "I'd like to book a table for two at an Italian restaurant in San Jose."}]
SAMPLING = {
    "greedy": SamplingParams(temperature=0.0, max_tokens=TOKENS, ignore_eos=True),
    "t0.8": SamplingParams(temperature=0.8, max_tokens=TOKENS, ignore_eos=True),
    "t1-top-p0.9": SamplingParams(temperature=1.0, top_p=0.9, max_tokens=TOKENS, ignore_eos=True),
}
NETWORKS = {"rtt0": LinkSettings(), "rtt20-jitter": LinkSettings.of_rtt(20, jitter_ms=8, seed=3)}
Words = tuple[int, ...]
Logits = npt.NDArray[np.float64]


@pytest.fixture(scope="module")
def reference(bench: Bench) -> dict[str, Words]:
    """Plain streaming, alone, over a perfect link."""
    bench.link.configure(LinkSettings())
    client = bench.clients["streaming", "none"]
    return {name: client.generate(PROMPT, params, seed=SEED).token_ids for name, params in SAMPLING.items()}


def run(
    client: EdgeClient,
    params: SamplingParams,
    disturb: Callable[[], object] | None = None,
) -> RequestOutput:
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


def own_logits(target: Path) -> Callable[[list[int]], Logits]:
    """What a runtime itself says comes after some tokens: transformers, or llama.cpp as its own bindings use it, with
    values of the type that strict mode keeps."""
    if target.is_dir():
        model = LlamaForCausalLM.from_pretrained(target, dtype=torch.float32).eval()
        return lambda tokens: model(input_ids=torch.tensor([tokens])).logits[0, -1].double().numpy()
    llama = llama_cpp.Llama(
        str(target), n_ctx=512, n_threads=1, flash_attn=True, type_v=BFLOAT16, logits_all=True, verbose=False
    )

    def last(tokens: list[int]) -> Logits:
        llama.reset()
        llama.eval(tokens)
        return np.array(llama.scores[len(tokens) - 1], np.float64)

    return last


def by_hand(target: Path, params: SamplingParams) -> Words:
    """The same words by the definitions in `speculation`; nothing of the verifier."""
    logits = own_logits(target)
    tokenizer = AutoTokenizer.from_pretrained(DEMO / "target")
    rendered = tokenizer.apply_chat_template(PROMPT, tokenize=False, add_generation_prompt=True)
    tokens = tokenizer.encode(rendered, add_special_tokens=False)
    prompt_length, noise = len(tokens), Noise(SEED)
    with torch.inference_mode():
        for position in range(prompt_length, prompt_length + TOKENS):
            scores = logits(tokens)
            if not params.greedy:
                scores = filtered(scores, params) + noise.gumbel(position, np.arange(len(scores)))
            tokens.append(int(scores.argmax()))
    return tuple(tokens[prompt_length:])


@pytest.mark.parametrize("sampling", SAMPLING)
def test_streaming_says_what_the_target_says_by_hand(target: Path, reference: dict[str, Words], sampling: str) -> None:
    assert reference[sampling] == by_hand(target, SAMPLING[sampling])


def test_the_reference_is_worth_comparing_with(reference: dict[str, Words]) -> None:
    assert all(len(words) == TOKENS and len(set(words)) > TOKENS // 4 for words in reference.values())
    assert len(set(reference.values())) == len(reference)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("sampling", SAMPLING)
@pytest.mark.parametrize(("pace", "drafter"), WAYS, ids=map("-".join, WAYS))
def test_alone(bench: Bench, reference: dict[str, Words], pace: str, drafter: str, sampling: str, network: str) -> None:
    bench.link.configure(NETWORKS[network])
    guesses = drafter in ("onnx", "gguf", "ngram+onnx", "buried")
    for _ in range(10):  # a device that gets no processor for a while hears the whole answer at once
        output = run(bench.clients[pace, drafter], SAMPLING[sampling])
        assert output.token_ids == reference[sampling]
        assert not output.metrics.notices or drafter == Trouble.FAILING
        if output.metrics.drafted_tokens or not guesses:
            break
    if guesses:
        assert output.metrics.drafted_tokens > 0
        if pace in ("sync", "patient tree", "opt-tree"):  # one that never waits may have been ahead of every guess
            assert output.metrics.accepted_tokens > 0


@pytest.mark.parametrize("sampling", SAMPLING)
@pytest.mark.parametrize(("pace", "drafter"), WAYS, ids=map("-".join, WAYS))
def test_cut_link(bench: Bench, reference: dict[str, Words], pace: str, drafter: str, sampling: str) -> None:
    bench.link.configure(NETWORKS["rtt20-jitter"])
    for _ in range(10):  # a cut that finds the whole answer on this side cuts nothing
        output = run(bench.clients[pace, drafter], SAMPLING[sampling], bench.link.cut)
        assert output.token_ids == reference[sampling]
        if output.metrics.reconnects:
            break
    assert output.metrics.reconnects == 1


@pytest.mark.parametrize("disturbance", ["none", "cut", "restart"])
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("sampling", SAMPLING)
def test_in_company(bench: Bench, reference: dict[str, Words], sampling: str, network: str, disturbance: str) -> None:
    """Every way of decoding at once, each in the company of all others, through the same disturbance."""
    bench.link.configure(NETWORKS[network])
    disturbances = {"none": None, "cut": bench.link.cut, "restart": bench.restart_verifier}
    for _ in range(5):  # on a busy machine some begin after it, or have heard all before
        once = threading.Lock()

        def disturb_once(once: threading.Lock = once) -> None:
            action = disturbances[disturbance]
            if action is not None and once.acquire(blocking=False):
                action()

        with ThreadPoolExecutor(len(bench.clients)) as pool:
            futures = {
                way: pool.submit(run, client, SAMPLING[sampling], disturb_once) for way, client in bench.clients.items()
            }
            outputs = {way: future.result(timeout=120) for way, future in futures.items()}
        assert {way: output.token_ids for way, output in outputs.items()} == dict.fromkeys(outputs, reference[sampling])
        reconnects = sum(output.metrics.reconnects for output in outputs.values())
        if disturbance == "none" or reconnects >= len(outputs) // 2:
            break
    if disturbance != "none":
        assert reconnects >= len(outputs) // 2


@pytest.mark.parametrize("drafter", ["onnx", "garbage", "ngram+onnx"])
@pytest.mark.parametrize("cut", [False, True], ids=["whole", "cut"])
def test_penalties_and_logprobs_are_those_of_streaming(bench: Bench, drafter: str, cut: bool) -> None:
    """Log-probabilities bit by bit: those of the position, whatever block it was evaluated in."""
    params = SamplingParams(
        temperature=0.9,
        max_tokens=TOKENS,
        ignore_eos=True,
        presence_penalty=0.7,
        frequency_penalty=0.5,
        repetition_penalty=1.3,
        logprobs=3,
    )
    bench.link.configure(LinkSettings())
    expected = run(bench.clients["streaming", "none"], params)
    bench.link.configure(NETWORKS["rtt20-jitter"])
    for _ in range(10):  # see test_cut_link
        output = run(bench.clients["sync", drafter], params, bench.link.cut if cut else None)
        assert output.token_ids == expected.token_ids
        if output.metrics.reconnects or not cut:
            break
    assert output.logprobs == expected.logprobs
    assert len(output.logprobs or ()) == TOKENS
    assert output.metrics.reconnects == cut
