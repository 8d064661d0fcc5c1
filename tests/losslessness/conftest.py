"""Real parts for the losslessness suite: the demo pair, verifiers and links in processes of their own, real sockets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_client.client import EdgeClient
from edge_client.drafters import load_drafter
from edge_client.drafters.base import Candidates, Drafter, DrafterInfo
from edge_client.export.gguf_file import export_gguf
from netlab.experiments.troubled import Trouble, Troubled
from netlab.link_process import LinkProcess
from netlab.link_settings import LinkSettings
from netlab.verifier_process import VerifierProcess
from speculation.pace.adaptive import Adaptive
from speculation.pace.base import BoundedLookahead, FixedTree, Pace, Streaming, Synchronous
from speculation.pace.policies import find

DEMO = Path(__file__).resolve().parents[2] / "models" / "demo"


class PatientTree(FixedTree):
    """A tree for which the verifier waits a while, so that none comes too late."""

    patience_ms = 200


PACES: dict[str, Callable[[], Pace]] = {
    "streaming": Streaming,
    "sync": lambda: Synchronous(4),
    "server-led": BoundedLookahead,
    "adaptive": Adaptive,
    "tree": lambda: FixedTree(3),
    "patient tree": lambda: PatientTree(3),
    "opt-tree": find("opt-tree:24"),
}
# Every way of decoding: pace and drafter.
WAYS = [
    ("streaming", "none"),
    ("sync", "none"),
    *((pace, drafter) for pace in ("sync", "server-led", "adaptive") for drafter in ("onnx", "gguf", "garbage")),
    *((pace, drafter) for pace in ("sync", "adaptive") for drafter in ("ngram", "ngram+onnx")),
    *(("tree", drafter) for drafter in ("onnx", "gguf", "garbage")),
    ("patient tree", "buried"),
    ("opt-tree", "onnx"),
    *(("adaptive", trouble) for trouble in Trouble),
]


class GarbageDrafter(Drafter):
    """Talks nonsense in the right vocabulary."""

    def __init__(self, info: DrafterInfo) -> None:
        self.info = info
        self._rng = np.random.default_rng(5)
        self._length = 0

    @property
    def length(self) -> int:
        return self._length

    def feed(self, tokens: Any) -> None:
        self._length += len(tokens)

    def candidates(self) -> Candidates:
        ids = self._rng.choice(self.info.vocabulary_size, 8, replace=False).astype(np.int64)
        return Candidates(ids, np.sort(self._rng.normal(-3, 1, 8))[::-1])

    def rollback(self, length: int) -> None:
        self._length = length

    def close(self) -> None:
        pass


class BuryingDrafter(Drafter):
    """Puts two tokens that are never meant just before the one that a drafter means most, which so becomes the third
    guess: where there is no noise, only twigs are ever right."""

    def __init__(self, drafter: Drafter) -> None:
        self.info = drafter.info
        self._drafter = drafter

    @property
    def length(self) -> int:
        return self._drafter.length

    def feed(self, tokens: Any) -> None:
        self._drafter.feed(tokens)

    def candidates(self) -> Candidates:
        ids, log_probs, *_ = self._drafter.candidates()
        unlikely = np.setdiff1d(np.arange(len(ids) + 2), ids)[:2]
        return Candidates(np.append(unlikely, ids), np.append(log_probs[0] + [0.2, 0.1], log_probs))

    def rollback(self, length: int) -> None:
        self._drafter.rollback(length)

    def close(self) -> None:
        self._drafter.close()


@dataclass
class Bench:
    """A verifier process, a link to it, and one client for every way of decoding."""

    target: Path
    verifier: VerifierProcess
    link: LinkProcess
    clients: dict[tuple[str, str], EdgeClient] = field(default_factory=dict)
    restarts: int = 0

    def restart_verifier(self) -> None:
        """Kill it as a crash would, and start another on the same port, which guesses in another way."""
        port = self.verifier.port
        self.verifier.kill()
        self.verifier.stop()
        self.restarts += 1
        self.verifier = start_verifier(self.target, port, OWN_GUESSES[self.restarts % len(OWN_GUESSES)])


OWN_GUESSES = (("--draft-model", str(DEMO / "drafter.gguf")), ("--own-guesses", "ngram"))


def start_verifier(
    target: Path = DEMO / "target", port: int = 0, own: Sequence[str] = OWN_GUESSES[0]
) -> VerifierProcess:
    """With llama.cpp the demo's target writes an answer in a few milliseconds, before anything can happen to it.

    That one guesses, too, in the way of `own`: who is right beside whom is the scheduler's business, not the engine's.
    """
    more = ["--step-ms", "20", *own] if target.suffix == ".gguf" else []
    return VerifierProcess(target, port=port, options=["--threads", "1", "--max-sessions", "32", *more])


@pytest.fixture(scope="session")
def gguf_target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's target, for llama.cpp."""
    path = tmp_path_factory.mktemp("target") / "target.gguf"
    export_gguf(DEMO / "target", path, "q8_0")
    return path


@pytest.fixture(scope="module", params=["torch", "llama.cpp"])
def target(request: pytest.FixtureRequest, gguf_target: Path) -> Path:
    """A target for every engine."""
    return DEMO / "target" if request.param == "torch" else gguf_target


def make_drafter(kind: str) -> Drafter | None:
    """A fresh drafter by name."""
    if kind == "none":
        return None
    if kind == "gguf":
        return load_drafter(DEMO / "drafter.gguf")
    if kind in ("ngram", "ngram+onnx"):
        return load_drafter(kind.replace("onnx", str(DEMO / "drafter-onnx")))
    onnx = load_drafter(DEMO / "drafter-onnx")
    assert onnx is not None
    if kind == "onnx":
        return onnx
    if kind in list(Trouble):
        return Troubled(onnx, Trouble(kind))
    if kind == "buried":
        return BuryingDrafter(onnx)
    onnx.close()
    return GarbageDrafter(onnx.info)


@pytest.fixture(scope="module")
def bench(target: Path) -> Iterator[Bench]:
    verifier = start_verifier(target)
    assert "Strict mode is exact here" in verifier.banner
    with LinkProcess(("127.0.0.1", verifier.port), LinkSettings()) as link:
        subject = Bench(target, verifier, link)
        try:
            for pace, drafter in WAYS:
                client = EdgeClient(f"127.0.0.1:{link.port}", make_drafter(drafter), pace=PACES[pace])
                assert not client.notices
                subject.clients[pace, drafter] = client
            yield subject
        finally:
            for client in subject.clients.values():
                if client._drafter is not None and isinstance(client._drafter.lease.drafter, Troubled):
                    client._drafter.lease.drafter.released.set()
                client.close()
            subject.verifier.stop()
