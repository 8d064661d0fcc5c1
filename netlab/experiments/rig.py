"""The real programs, ready for an experiment: a verifier process behind an emulated link, and clients with drafters."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from outrider.demo_pair import demo_folder

from edge_client.client import EdgeClient
from edge_client.drafters.base import Drafter
from netlab.experiments import drafters
from netlab.link_process import LinkProcess
from netlab.race import Lane, Watch, open_lanes, unwatched
from netlab.verifier_process import VerifierProcess

DEMO = demo_folder()
MAX_SESSIONS = 64


def folder_of(target: Path) -> Path:
    """A target's folder or hub id; "demo" is the demo pair's."""
    return DEMO / "target" if str(target) == "demo" else target


@dataclass(frozen=True)
class Rig:
    """A verifier with its emulated link. Made by `start`, which also ends it."""

    verifier: VerifierProcess
    link: LinkProcess

    @property
    def address(self) -> str:
        """HOST:PORT of the link's near end."""
        return f"127.0.0.1:{self.link.port}"

    @contextlib.contextmanager
    def lanes(
        self, wanted: Mapping[str, str], drafter: str, draft_ms: float = 0.0, watch: Watch = unwatched
    ) -> Iterator[list[Lane]]:
        """Warm lanes over the link as it is now; see `open_lanes` and `drafters.load`.

        Raises DrafterError, PolicyError, SessionError.
        """
        with EdgeClient(self.verifier.address) as client:
            info = client.model_info()

        def load() -> Drafter | None:
            return drafters.load(drafter, draft_ms, info.vocabulary_size, info.vocabulary_fingerprint)

        with open_lanes(self.address, load, wanted, watch) as lanes:
            yield lanes


@contextlib.contextmanager
def start(target: Path, step_ms: float) -> Iterator[Rig]:
    """Start verifier and link. target: a folder, or "demo". step_ms: least time of a target step.

    Raises VerifierProcessError, LinkProcessError.
    """
    options = ["--step-ms", str(step_ms), "--threads", "1", "--max-sessions", str(MAX_SESSIONS)]
    with (
        VerifierProcess(folder_of(target), options=options) as verifier,
        LinkProcess(("127.0.0.1", verifier.port)) as link,
    ):
        yield Rig(verifier, link)
