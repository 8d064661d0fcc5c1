"""The device writes alone with a drafter that others want too, that hangs, or that is closed: all answers end."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from edge_client.client import EdgeClient
from edge_client.drafters.base import Candidates, Drafter
from edge_client.drafters.lookup.chain import ChainDrafter
from edge_client.drafters.lookup.ngram import NgramDrafter
from edge_client.errors import SessionError
from edge_client.riding import answer as answer_module
from speculation.sampling import SamplingParams
from tests.harness import LetterCodec, queue_of
from tests.mock_engine import answer
from tests.service.raw import DEADLINE_S, SEED, until
from tests.service.test_offline import COUNT, NOWHERE, PARAMS, QUICK, Asked
from tests.speaking import SpeakingDrafter

TEXT = LetterCodec().text(answer([2, 3, 4], SEED, COUNT))
ENDLESS = SamplingParams(max_tokens=4000, ignore_eos=True)
DEADLINES = pytest.mark.usefixtures("short_deadline")


class Gated(SpeakingDrafter):
    """Every call named waits for the gate, once `armed`."""

    def __init__(self, method: str) -> None:
        super().__init__(SEED)
        self.gate, self.within, self.armed = threading.Event(), threading.Event(), False
        setattr(self, method, partial(self._wait, getattr(self, method)))

    def _wait(self, call: Callable[..., Any], *arguments: Any) -> Any:
        if self.armed:
            self.within.set()
            assert self.gate.wait(60)
        return call(*arguments)


@pytest.fixture
def short_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer_module, "ALONE_DEADLINE_S", 0.4)


@pytest.fixture
def gates() -> Iterator[list[Gated]]:
    made: list[Gated] = []
    yield made
    for drafter in made:
        drafter.gate.set()


def offline(drafter: Drafter) -> EdgeClient:
    return EdgeClient(NOWHERE, drafter, link=QUICK, offline_answers="auto")


@DEADLINES
@pytest.mark.parametrize("in_chain", [False, True])
@pytest.mark.parametrize("method", ["speaker", "model_text", "feed", "candidates"])
def test_a_model_that_hangs_is_given_up_by_all_who_want_it(method: str, in_chain: bool, gates: list[Gated]) -> None:
    model = Gated(method)
    gates.append(model)
    with offline(ChainDrafter([NgramDrafter()], model) if in_chain else model) as client:
        model.armed = True
        asked = [Asked(client, "abc") for _ in range(2)]
        for one in asked:
            with pytest.raises(SessionError, match="its model has not answered for") as caught:
                one.output()
            assert (caught.value.code, caught.value.reason) == ("UNAVAILABLE", "NO_ANSWER_ALONE")
        assert queue_of(client).taken, "nobody else calls a drafter that is within a call"
        model.gate.set()
        until(lambda: not queue_of(client).taken, "the call comes back")
        assert client.generate("abc", PARAMS, seed=SEED).text == TEXT


def test_a_complete_answer_does_not_wait_until_the_model_is_given_back(gates: list[Gated]) -> None:
    class Model(Gated):
        def candidates(self) -> Candidates:
            self.armed = True  # from now on it cannot be rolled back
            return super().candidates()

    model = Model("rollback")
    gates.append(model)
    with offline(ChainDrafter([NgramDrafter()], model)) as client:
        assert client.generate("abc", PARAMS, seed=SEED).text == TEXT
        assert model.within.wait(DEADLINE_S)
        model.gate.set()


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), MemoryError("told to fail")])
def test_whatever_a_model_raises_is_told(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    drafter = SpeakingDrafter(SEED)

    def fail(_tokens: object) -> None:
        raise error

    with offline(drafter) as client:
        with monkeypatch.context() as broken:
            broken.setattr(drafter, "feed", fail)
            with pytest.raises(SessionError, match="the device cannot answer alone"):
                Asked(client, "abc").output()
        assert Asked(client, "abc").output().text == TEXT


def test_several_answers_take_turns() -> None:
    with offline(ChainDrafter([NgramDrafter()], SpeakingDrafter(SEED))) as client:
        asked = [Asked(client, "abc") for _ in range(4)]
        assert {one.output().text for one in asked} == {TEXT}
        until(lambda: not queue_of(client).taken, "all have left")


def test_closing_ends_who_writes_and_who_waits_for_a_turn() -> None:
    closed: list[bool] = []

    class Model(SpeakingDrafter):
        def close(self) -> None:
            closed.append(True)

    client = offline(Model(SEED))
    asked = [Asked(client, "abc", ENDLESS) for _ in range(3)]
    until(lambda: any(chunk.offline and chunk.text for one in asked for chunk in one.chunks), "one of them writes")
    client.close()
    assert closed
    for one in asked:
        with pytest.raises(SessionError, match="this client was closed"):
            one.output()
