"""The real programs, ready for an experiment: a verifier process behind an emulated link, and clients with drafters."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from outrider.demo_pair import demo_folder

from edge_client.client import EdgeClient
from edge_client.drafters.base import Drafter
from netlab.experiments import drafters
from netlab.link_process import LinkProcess
from netlab.link_settings import LinkSettings
from netlab.race import CO_LOCATED, Lane, Watch, open_lanes, unwatched
from netlab.verifier_process import VerifierProcess

DEMO = demo_folder()
MAX_SESSIONS = 64


def folder_of(target: Path) -> Path:
    """A target's folder or hub id; "demo" is the demo pair's."""
    return DEMO / "target" if str(target) == "demo" else target


@dataclass(frozen=True)
class Rig:
    """A verifier with its emulated link. Made by `start`, which also ends it.

    co_located: another of the same target, with a small model beside it.
    """

    verifier: VerifierProcess
    link: LinkProcess
    co_located: Rig | None = None

    @property
    def address(self) -> str:
        """HOST:PORT of the link's near end."""
        return f"127.0.0.1:{self.link.port}"

    def configure(self, settings: LinkSettings) -> None:
        """Of all links. Raises LinkProcessError."""
        self.link.configure(settings)
        if self.co_located is not None:
            self.co_located.configure(settings)

    def link_of(self, lane: Lane) -> LinkProcess:
        """The link that a lane's answers come over."""
        return self.co_located.link if self.co_located is not None and lane.policy == CO_LOCATED else self.link

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

        co_located = self.co_located.address if self.co_located is not None else ""
        with open_lanes(self.address, load, wanted, watch, co_located) as lanes:
            yield lanes


@contextlib.contextmanager
def start(target: Path, step_ms: float, draft_model: str = "") -> Iterator[Rig]:
    """Start verifier and link. target: a folder, or "demo". step_ms: least time of a target step. draft_model: of a
    second verifier, if any, as `cloud-verifier serve` has it; "demo" is the demo pair's drafter.

    Raises VerifierProcessError, LinkProcessError.
    """
    with contextlib.ExitStack() as stack:
        options = ["--step-ms", str(step_ms), "--threads", "1", "--max-sessions", str(MAX_SESSIONS)]

        def started(*more: str) -> Rig:
            verifier = stack.enter_context(VerifierProcess(folder_of(target), options=[*options, *more]))
            return Rig(verifier, stack.enter_context(LinkProcess(("127.0.0.1", verifier.port))))

        rig = started()
        if draft_model:
            beside = str(DEMO / "drafter.gguf") if draft_model == "demo" else draft_model
            rig = replace(rig, co_located=started("--draft-model", beside))
        yield rig
