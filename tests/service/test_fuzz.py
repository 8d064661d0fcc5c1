"""A few thousand messages of `python -m benchmarks.fuzz`, and every case that it once broke something with."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest
from outrider.v1 import verifier_pb2 as pb

from benchmarks.fuzz import http2
from benchmarks.fuzz.__main__ import problems
from benchmarks.fuzz.generate import generate, with_callers
from benchmarks.fuzz.operations import Identify, Operation, Resume, Send, Wait, dumps, loads, messages
from benchmarks.fuzz.shrink import shrink
from benchmarks.fuzz.world import WarpedLoop, world
from cloud_verifier.security.principals import Principal
from cloud_verifier.serving.service import VerifierService
from speculation.pace.base import PATIENCE_UNLIMITED_MS

CORPUS = sorted((Path(__file__).parent / "corpus").glob("*.json"))
SEED = 2
REFUSALS = {"UNKNOWN_KEY", "DISABLED", "KEY_REMOVED", "PRINCIPAL_SESSIONS", "PRINCIPAL_TOKENS"}


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_what_once_broke_something_breaks_nothing(path: Path) -> None:
    assert problems(loads(path.read_text())) == []


def test_some_thousand_messages_break_nothing() -> None:
    async def play() -> int:
        async with world(sockets=False) as subject:
            for number in range(150):
                assert await subject.play(generate(SEED, number)) == [], f"seed {SEED}, case {number}"
            return subject.messages

    with asyncio.Runner(loop_factory=WarpedLoop) as runner:
        assert runner.run(play()) > 1500


@pytest.mark.parametrize("sockets", [False, True])
def test_where_keys_come_and_go_and_quotas_are_small_nothing_breaks(sockets: bool) -> None:
    async def play() -> dict[str, int]:
        async with world(sockets=sockets, keys=True) as subject:
            for number in range(10 if sockets else 3000):
                # Who is there at the same time depends on threads: some refusals are rare.
                if number >= 150 and subject.refusals.keys() >= REFUSALS:
                    break
                case = with_callers(generate(SEED, number), SEED, number)
                assert loads(dumps(case)) == case
                assert await subject.play(case) == [], f"seed {SEED}, case {number}"
            return subject.refusals

    with asyncio.Runner(loop_factory=WarpedLoop) as runner:
        refusals = runner.run(play())
    if not sockets:
        assert refusals.keys() >= REFUSALS


def test_a_verifier_that_lets_anybody_resume_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Principal, "__getattribute__", _all_one)
    opened = pb.GenerateRequest(open=pb.Open(protocol_version=1, text="abc", patience_ms=PATIENCE_UNLIMITED_MS))
    theft: list[Operation] = [
        *(Identify(0, "ann"), Identify(1, "bob")),
        *(Send(0, opened.SerializeToString()), Wait(40), Resume(1, 0, 0), Wait(40)),
    ]
    assert "bob resumed a session of ann" in problems(theft, keys=True)


def _all_one(principal: Principal, name: str) -> Any:
    return "everybody" if name == "name" else object.__getattribute__(principal, name)


def test_over_sockets_and_beside_what_is_no_grpc_nothing_breaks() -> None:
    async def play() -> None:
        rng = random.Random(SEED)
        async with world(sockets=True) as subject:
            for number in range(8):
                await http2.say(subject.port, http2.connection(rng))
                assert await subject.play(generate(SEED, number)) == [], f"seed {SEED}, case {number}"

    with asyncio.Runner(loop_factory=WarpedLoop) as runner:
        runner.run(play())


def test_a_case_is_the_same_every_time_and_survives_being_printed() -> None:
    for number in range(50):
        case = generate(SEED, number)
        assert case == generate(SEED, number)
        assert loads(dumps(case)) == case
    assert generate(SEED, 0) != generate(SEED + 1, 0)


def test_a_verifier_that_forgets_nothing_is_found_out_and_the_case_shortened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.fuzz.world.PATIENCE_TURNS", 200)
    monkeypatch.setattr(VerifierService, "_forget", lambda _self, _session: None)
    case = generate(SEED, 1)
    assert messages(case) > 1
    assert any("nothing of the case is left" in problem for problem in problems(case))
    shortened = [step for step in shrink(case, lambda c: bool(problems(c)), 60) if not isinstance(step, Wait)]
    assert len(shortened) == 1
    assert isinstance(shortened[0], Send)
    assert pb.GenerateRequest.FromString(shortened[0].message).WhichOneof("message") == "open"
