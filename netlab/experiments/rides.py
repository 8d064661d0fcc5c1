"""One answer with its diary, per policy: in the simulator or on the real programs. For timelines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from netlab.experiments import conditions, rig
from netlab.experiments.timeline import Ride
from netlab.link_settings import LinkSettings
from netlab.prompts import OPENINGS
from netlab.race import chat
from netlab.simulator import pair, policies
from netlab.simulator.device import DeviceSettings
from netlab.simulator.link import Link
from netlab.simulator.run import Rider, simulate
from netlab.simulator.verifier import StepTime, VerifierSettings
from speculation.pace.base import Pace
from speculation.pace.observed import Diary, Observed
from speculation.sampling import SamplingParams


@dataclass(frozen=True)
class RideSettings:
    """draft_ms: of a guess; on the real programs the least time of one. acceptance: in the simulator only."""

    policies: Sequence[str]
    rtt_ms: float
    draft_ms: float
    step_ms: float
    tokens: int
    seed: int
    acceptance: float = 0.85


def simulated(settings: RideSettings) -> list[Ride]:
    """Of a policy with several paces, the best on this answer. Raises PolicyError, PaceError."""
    answer = pair.heavy_headed(settings.acceptance).answers(1, settings.tokens, settings.seed)[0]
    verifier = VerifierSettings(StepTime(settings.step_ms))
    rides = []
    for policy in settings.policies:
        played = []
        for name, make in policies.find(policy).candidates.items():
            diary = Diary()
            rider = Rider(
                answer,
                Link.of_settings(LinkSettings.of_rtt(settings.rtt_ms)),
                Observed(make(), diary),
                DeviceSettings(settings.draft_ms),
            )
            played.append((simulate([rider], verifier).results[0].ms_per_token, name, diary))
        _, name, diary = min(played, key=lambda one: one[0])
        rides.append(Ride(name, settings.rtt_ms, diary))
    return rides


def real(settings: RideSettings, drafter: str = "demo", target: str = "demo") -> list[Ride]:
    """On the real programs. Raises what `rig.start` and `Rig.lanes` raise."""
    diaries: dict[str, Diary] = {}

    def watch(lane: str, pace: Pace) -> Pace:
        diaries[lane] = Diary()
        return Observed(pace, diaries[lane])

    params = SamplingParams(temperature=0.8, max_tokens=settings.tokens, ignore_eos=True)
    rides = []
    with rig.start(Path(target), settings.step_ms) as running:
        running.link.configure(conditions.of_rtts([settings.rtt_ms])[0].settings)
        wanted = {name: name for name in settings.policies}
        with running.lanes(wanted, drafter, settings.draft_ms, watch) as lanes:
            for lane in lanes:
                lane.tune(params, settings.seed)
                lane.answer(chat(OPENINGS[settings.seed % len(OPENINGS)]), params, settings.seed)
                rides.append(Ride(lane.candidate, settings.rtt_ms, diaries[lane.name]))
    return rides
