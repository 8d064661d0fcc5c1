"""A hot restart with real processes: the successor takes over the port, and running answers, in mid-sentence."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from edge_client.client import EdgeClient
from netlab.verifier_process import VerifierProcess
from speculation.sampling import SamplingParams
from tests.service.raw import until

TARGET = Path(__file__).resolve().parents[2] / "models" / "demo" / "target"
OPTIONS = ("--threads", "1", "--reuse-port")


def test_a_successor_takes_over_port_and_answers() -> None:
    params = SamplingParams(temperature=0.8, max_tokens=480, ignore_eos=True)
    slow = ("--step-ms", "250", "--drain-timeout-s", "300")  # it lasts until the successor is there
    with VerifierProcess(TARGET, options=[*OPTIONS, *slow]) as old, EdgeClient(old.address) as client:
        chunks = client.stream("<|user|>I need a train", params, seed=3)
        first = next(chunks)
        with VerifierProcess(TARGET, port=old.port, options=OPTIONS) as new:
            os.kill(old.pid, signal.SIGTERM)
            until(lambda: "draining: 1 streams" in old.log, "the old one drains")
            second = next(chunks)
            os.kill(old.pid, signal.SIGTERM)  # the second signal: at once
            rest = list(chunks)
            until(lambda: old.returncode == 0, "the old one has left")
            with EdgeClient(new.address) as other:
                expected = other.generate("<|user|>I need a train", params, seed=3)
    assert first.text + second.text + "".join(chunk.text for chunk in rest) == expected.text
    output = rest[-1].output
    assert output is not None
    assert output.token_ids == expected.token_ids
    assert output.metrics.reconnects >= 1
