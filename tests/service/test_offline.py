"""No network: the answer waits or the device goes on alone; what was said stands, and the rest can be checked."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import groupby
from typing import Any

import pytest

from edge_client.client import EdgeClient, RequestOutput, SamplingParams
from edge_client.drafters.base import Drafter, DrafterError
from edge_client.drafters.lookup.chain import ChainDrafter
from edge_client.drafters.lookup.ngram import NgramDrafter
from edge_client.errors import SessionError
from edge_client.link.channel import LinkSettings
from edge_client.types import LinkState, OfflineAnswers, RideSettings, StreamChunk
from outrider_models.model_text import ModelText
from speculation.pace.base import Synchronous
from tests.harness import InProcessVerifier, LetterCodec, MockDrafter
from tests.mock_engine import EOS, MockEngine, answer
from tests.service.engines import GatedEngine
from tests.service.links import Road, Tarpit
from tests.service.raw import DEADLINE_S, PROMPT, SEED, until
from tests.speaking import SpeakingDrafter

COUNT = 120
WORDS = tuple(answer(PROMPT, SEED, COUNT))
TEXT = LetterCodec().text(WORDS)
PARAMS = SamplingParams(max_tokens=COUNT)
QUICK = LinkSettings(quiet_s=0.05, waiting_s=0.1, offline_after_s=0.2, reconnect_timeout_s=DEADLINE_S)
NOWHERE = "127.0.0.1:1"


def waited_for() -> Synchronous:
    """A verifier that waits for drafts gets them."""
    return Synchronous(4)


class Asked:
    """A question asked on a thread; `output` gives the answer or raises."""

    def __init__(self, client: EdgeClient, prompt: Any = PROMPT, params: SamplingParams = PARAMS) -> None:
        self.chunks: list[StreamChunk] = []
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._ask, args=(client, prompt, params), daemon=True)
        self._thread.start()

    def _ask(self, client: EdgeClient, prompt: Any, params: SamplingParams) -> None:
        try:
            self.chunks.extend(client.stream(prompt, params, seed=SEED))
        except Exception as error:
            self._error = error

    @property
    def began(self) -> bool:
        return any(chunk.token_ids for chunk in self.chunks)

    def output(self) -> RequestOutput:
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive(), "the caller waits for ever"
        if self._error is not None:
            raise self._error
        output = self.chunks[-1].output
        assert output is not None
        return output

    def states(self) -> list[LinkState]:
        return [state for state, _ in groupby(chunk.link for chunk in self.chunks)]


class World:
    """A verifier that steps when told, and a road to it."""

    def __init__(self, engine: GatedEngine, road: Road) -> None:
        self.engine, self.road = engine, road

    def client(self, drafter: Drafter | str | None, **settings: Any) -> EdgeClient:
        return EdgeClient(self.road.address, drafter, link=QUICK, **settings)

    def lose(self) -> None:
        self.road.refuse(True)
        self.road.cut()

    def begun_and_lost(self, client: EdgeClient, prompt: Any = PROMPT) -> Asked:
        """An answer of which a part has come when the network goes."""
        asked = Asked(client, prompt)
        self.engine.allow(2)  # 66 tokens at most
        until(lambda: asked.began, "the answer begins")
        self.lose()
        return asked

    def find(self) -> None:
        self.engine.allow(10_000)
        self.road.refuse(False)


@pytest.fixture
def world() -> Iterator[World]:
    engine = GatedEngine()
    with InProcessVerifier(engine) as verifier, Road(verifier.address) as road:
        yield World(engine, road)
        engine.allow(10_000)


# -- while the network is away -----------------------------------------------------------------------------------------


def test_an_answer_that_waits_says_so_and_goes_on_by_itself(world: World) -> None:
    with world.client(SpeakingDrafter(SEED)) as client:
        asked = world.begun_and_lost(client)
        until(lambda: LinkState.WAITING in asked.states(), "the answer waits")
        world.find()
        output = asked.output()
    assert output.token_ids == WORDS
    assert output.offline is None
    assert asked.states()[-2:] == [LinkState.WAITING, LinkState.LIVE]
    assert LinkState.OFFLINE not in asked.states()


def test_silence_without_a_broken_connection_is_waiting_too() -> None:
    engine = GatedEngine()
    with InProcessVerifier(engine) as verifier, Tarpit(verifier.address) as tarpit:
        settings = LinkSettings(quiet_s=0.05, waiting_s=0.1, stalled_s=DEADLINE_S)
        with EdgeClient(tarpit.address, link=settings) as client:
            asked = Asked(client)
            engine.allow(1)
            until(lambda: asked.began, "the answer begins")
            tarpit.bury()
            until(lambda: LinkState.WAITING in asked.states(), "the answer waits")
            engine.allow(10_000)


def test_a_verifier_that_thinks_for_long_is_heard(world: World) -> None:
    """It says nothing, but it answers pings."""
    settings = LinkSettings(quiet_s=0.05, waiting_s=0.1, stalled_s=DEADLINE_S)
    with EdgeClient(world.road.address, link=settings) as client:
        asked = Asked(client)
        world.engine.allow(1)
        until(lambda: asked.began, "the answer begins")
        world.road.pause()
        until(lambda: asked.states()[-1] is LinkState.WAITING, "the answer waits")
        told = sum(len(chunk.token_ids) for chunk in asked.chunks)
        world.road.resume()
        until(lambda: asked.states()[-1] is LinkState.LIVE, "a pong comes")
        assert sum(len(chunk.token_ids) for chunk in asked.chunks) == told
        world.engine.allow(10_000)
        assert asked.output().token_ids == WORDS


def test_a_verifier_that_is_not_there_is_being_connected_to(world: World) -> None:
    world.lose()
    with world.client(None) as client:
        asked = Asked(client)
        until(lambda: LinkState.CONNECTING in asked.states(), "it tries")
        world.find()
        assert asked.output().token_ids == WORDS
    assert asked.states()[0] is LinkState.CONNECTING
    assert asked.states()[-1] is LinkState.LIVE


@pytest.mark.parametrize("drafter", [None, MockDrafter(3, SEED, 0.8)], ids=["none", "without a model"])
def test_who_cannot_answer_alone_says_so_at_once_and_waits(world: World, drafter: Drafter | None) -> None:
    with world.client(drafter, offline_answers="auto") as client:
        assert any("cannot answer when it is offline" in notice for notice in client.notices)
        asked = world.begun_and_lost(client)
        until(lambda: LinkState.WAITING in asked.states(), "the answer waits")
        world.find()
        assert asked.output().token_ids == WORDS


# -- the device alone --------------------------------------------------------------------------------------------------


def test_the_device_goes_on_from_the_log(world: World) -> None:
    with world.client(SpeakingDrafter(SEED), offline_answers="auto") as client:
        asked = world.begun_and_lost(client)
        output = asked.output()
    assert output.offline is not None
    assert output.offline.of_log
    assert 0 < len(output.token_ids) < COUNT
    assert output.token_ids + output.offline.token_ids == WORDS  # it knows what the target would say
    assert output.text == output.committed_text + output.offline.text == TEXT
    assert output.finish_reason == "length"
    assert asked.states()[-2:] == [LinkState.WAITING, LinkState.OFFLINE]
    own = [chunk for chunk in asked.chunks if chunk.offline]
    assert "".join(chunk.text for chunk in own) == output.offline.text == "".join(output.offline.texts)
    assert any("alone" in notice for notice in output.metrics.notices)


def test_the_device_answers_a_question_that_nobody_heard() -> None:
    with EdgeClient(NOWHERE, SpeakingDrafter(SEED), link=QUICK, offline_answers="auto") as client:
        output = Asked(client, [{"role": "user", "content": "abc"}]).output()
    assert output.offline is not None
    assert output.offline.token_ids == tuple(answer([0, 2, 3, 4], SEED, COUNT))
    assert output.offline.target == ""
    assert (output.token_ids, output.committed_text, output.prompt_tokens) == ((), "", 4)


def test_stop_strings_end_the_devices_answer_too() -> None:
    whole = LetterCodec().text(answer([2, 3, 4], SEED, COUNT))
    params = SamplingParams(max_tokens=COUNT, stop=(whole[20:23],))
    with EdgeClient(NOWHERE, SpeakingDrafter(SEED), link=QUICK, offline_answers="auto") as client:
        output = client.generate("abc", params, seed=SEED)
    assert output.text == whole[: whole.index(whole[20:23])]
    assert output.finish_reason == "stop"


def test_token_ids_of_an_unknown_target_cannot_be_answered() -> None:
    with (
        EdgeClient(NOWHERE, SpeakingDrafter(SEED), link=QUICK, offline_answers="auto") as client,
        pytest.raises(SessionError, match="cannot answer alone: the prompt is token ids") as caught,
    ):
        client.generate(PROMPT, PARAMS, seed=SEED)
    assert (caught.value.code, caught.value.reason) == ("UNAVAILABLE", "NO_ANSWER_ALONE")


def test_what_had_come_is_not_lost_when_the_device_cannot_go_on(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_drafter: SpeakingDrafter) -> ModelText:
        raise DrafterError("its template is broken")

    monkeypatch.setattr(SpeakingDrafter, "model_text", broken)
    with world.client(SpeakingDrafter(SEED), offline_answers="auto") as client:
        with pytest.raises(SessionError, match="its template is broken") as caught:
            world.begun_and_lost(client).output()
        so_far = caught.value.so_far
        assert so_far is not None
        assert 0 < len(so_far.token_ids) < COUNT
        world.find()
        patient = RideSettings(offline_answers=OfflineAnswers.NEVER)  # a busy machine may be slow to come back
        assert client.generate(PROMPT, PARAMS, ride=patient, continues=so_far).token_ids == WORDS


def test_a_model_with_another_vocabulary_goes_on_from_the_text(world: World) -> None:
    with world.client("demo", offline_answers="auto") as client:
        output = world.begun_and_lost(client, "abc").output()
        world.find()
        checked = client.check("abc", output, PARAMS)
    assert output.offline is not None
    assert not output.offline.of_log
    assert output.offline.text
    assert output.committed_text == LetterCodec().text(output.token_ids)
    whole = tuple(answer([2, 3, 4], SEED, COUNT))
    assert checked.output.token_ids == whole
    assert checked.kept_tokens is None
    assert output.committed_text + checked.kept_text + checked.verifier_text == LetterCodec().text(whole)
    assert checked.kept_text + checked.device_text == output.offline.text


def test_the_drafter_drafts_again_when_the_network_is_back(world: World) -> None:
    """In a chain the model alone answers; afterwards both hold nothing that the other did not hear of."""
    chain = ChainDrafter([NgramDrafter()], SpeakingDrafter(SEED))
    with world.client(chain, offline_answers="auto", pace=waited_for) as client:
        output = world.begun_and_lost(client).output()
        assert output.offline is not None
        assert output.token_ids + output.offline.token_ids == WORDS
        world.find()
        again = client.generate(PROMPT, PARAMS, seed=SEED, ride=RideSettings(offline_answers=OfflineAnswers.NEVER))
    assert again.token_ids == WORDS
    assert again.offline is None
    assert again.metrics.accepted_tokens > 0
    assert not again.metrics.notices


def test_an_answer_alone_can_be_cancelled_and_leaves_the_drafter_free() -> None:
    with EdgeClient(NOWHERE, SpeakingDrafter(SEED), link=QUICK, offline_answers="auto") as client:
        for _ in range(2):
            chunks = client.stream("abc", SamplingParams(max_tokens=4000, ignore_eos=True), seed=SEED)
            assert next(chunk for chunk in chunks if chunk.offline and chunk.text)
            chunks.close()
        output = client.generate("abc", PARAMS, seed=SEED)
    assert output.offline is not None
    assert EOS not in output.offline.token_ids


# -- a person is asked -------------------------------------------------------------------------------------------------


def test_who_says_no_is_asked_once_and_gets_the_verifiers_answer(world: World) -> None:
    asked_for: list[bool] = []
    answered = threading.Event()

    def ask(_stands: Callable[[], bool]) -> bool:
        asked_for.append(True)
        answered.set()
        return False

    with world.client(SpeakingDrafter(SEED), offline_answers="ask", ask_offline=ask) as client:
        asked = world.begun_and_lost(client)
        assert answered.wait(DEADLINE_S)
        world.find()
        output = asked.output()
    assert output.token_ids == WORDS
    assert len(asked_for) == 1


def test_who_says_yes_gets_the_devices_answer(world: World) -> None:
    with world.client(SpeakingDrafter(SEED), offline_answers="ask", ask_offline=lambda stands: stands()) as client:
        output = world.begun_and_lost(client).output()
    assert output.offline is not None


def test_a_yes_that_comes_after_the_network_changes_nothing(world: World) -> None:
    def ask(stands: Callable[[], bool]) -> bool:
        world.find()
        until(lambda: not stands(), "the link is back")
        return True

    with world.client(SpeakingDrafter(SEED), offline_answers="ask", ask_offline=ask) as client:
        output = world.begun_and_lost(client).output()
    assert output.token_ids == WORDS
    assert output.offline is None


def test_nobody_to_ask_is_an_error() -> None:
    with pytest.raises(ValueError, match="somebody to ask"):
        EdgeClient(NOWHERE, SpeakingDrafter(SEED), offline_answers="ask")
    with pytest.raises(ValueError, match="'sometimes'"):
        EdgeClient(NOWHERE, SpeakingDrafter(SEED), offline_answers="sometimes")


# -- the check ---------------------------------------------------------------------------------------------------------


def test_what_the_device_said_rightly_is_kept_as_drafts(world: World) -> None:
    with world.client(SpeakingDrafter(SEED), offline_answers="auto", pace=waited_for) as client:
        before = world.begun_and_lost(client).output()
        world.find()
        checked = client.check(PROMPT, before, PARAMS)
    assert before.offline is not None
    assert checked.agrees
    assert checked.kept_tokens == len(before.offline.token_ids)
    assert checked.kept_text == before.offline.text
    assert checked.output.token_ids == WORDS
    assert checked.output.text == TEXT
    assert checked.output.metrics.accepted_tokens > 0


@pytest.mark.parametrize("right", [0, 7])
def test_the_verifier_says_where_the_device_was_wrong_and_goes_on_from_there(world: World, right: int) -> None:
    drafter = SpeakingDrafter(SEED)
    with world.client(drafter, offline_answers="auto") as client:
        asked = Asked(client)
        world.engine.allow(2)
        until(lambda: asked.began, "the answer begins")
        world.lose()
        until(lambda: LinkState.WAITING in asked.states(), "the answer waits")
        committed = sum(len(chunk.token_ids) for chunk in asked.chunks if not chunk.offline)
        drafter._wrong_at = len(PROMPT) + committed + right
        before = asked.output()
        world.find()
        checked = client.check(PROMPT, before, PARAMS)
    assert before.offline is not None
    assert len(before.token_ids) == committed
    assert not checked.agrees
    assert checked.kept_tokens == right
    assert checked.kept_text == TEXT[committed : committed + right]
    assert checked.kept_text + checked.device_text == before.offline.text
    assert checked.kept_text + checked.verifier_text == TEXT[committed:]
    assert checked.output.token_ids == WORDS


def test_only_what_the_device_said_alone_can_be_checked(world: World) -> None:
    world.find()
    with world.client(None) as client:
        output = client.generate(PROMPT, PARAMS, seed=SEED)
        with pytest.raises(ValueError, match="nothing to check"):
            client.check(PROMPT, output, PARAMS)


def test_another_target_does_not_check_what_it_did_not_begin(world: World) -> None:
    engine = MockEngine()
    engine.info = replace(engine.info, fingerprint="another")
    with world.client(SpeakingDrafter(SEED), offline_answers="auto") as client:
        before = world.begun_and_lost(client).output()
    with (
        InProcessVerifier(engine) as other,
        EdgeClient(other.address, SpeakingDrafter(SEED)) as client,
        pytest.raises(SessionError, match="another target") as caught,
    ):
        client.check(PROMPT, before, PARAMS)
    assert caught.value.reason == "TARGET_CHANGED"
