"""Who gets a place, in which order, and who is refused."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from grpc import StatusCode

from cloud_verifier.errors import VerifierError
from cloud_verifier.security.principals import Principal, Quota
from cloud_verifier.serving.admission import Admission, AdmissionSettings, Place
from cloud_verifier.serving.token_bucket import TokenBucket


class MockHouse:
    """Places by count, and sessions that may be given up."""

    def __init__(self, places: int) -> None:
        self.places, self.entered, self.away = places, 0, list[str]()

    @property
    def room(self) -> int:
        return self.places - self.entered

    def free_place(self, principal: str | None = None, *, politely: bool = False) -> bool:
        gone = [name for name in self.away if principal in (None, name) and not politely]
        if gone:
            self.away.remove(gone[0])
        return bool(gone)


class Door:
    """An admission whose asking and leaving take one line each."""

    def __init__(self, places: int, **settings: Any) -> None:
        self.now_s = 0.0
        self.house = MockHouse(places)
        self.admission = Admission(self.house, AdmissionSettings(**settings), lambda: self.now_s)
        self.told: list[int] = []
        self.order: list[str] = []

    async def ask(self, name: str = "ann", **quota: int) -> Place:
        async def tell(position: int) -> None:
            self.told.append(position)

        place = await self.admission.place(Principal(name, Quota(**quota)), tell)
        self.order.append(name)
        return place

    async def enter(self, name: str = "ann", **quota: int) -> Place:
        place = await self.ask(name, **quota)
        self.house.entered += 1
        place.enter()
        return place

    async def queued(self, name: str = "ann", **quota: int) -> asyncio.Task[Place]:
        """Asks, and is in the queue."""
        waiting = self.admission.waiting
        task = asyncio.create_task(self.enter(name, **quota))
        while self.admission.waiting == waiting:
            await asyncio.sleep(0)
        return task

    def leave(self, place: Place) -> None:
        """Its sequence is freed, too."""
        place.leave()
        self.house.entered -= 1
        self.admission.room_changed()

    async def refusal(self, name: str = "ann", **quota: int) -> VerifierError:
        with pytest.raises(VerifierError) as caught:
            await self.ask(name, **quota)
        return caught.value


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 30))


def test_places_are_given_out_and_come_back() -> None:
    async def story() -> None:
        door = Door(2, max_queue=0)
        first, _ = await door.enter(), await door.ask()  # the second still reads its prompt
        refusal = await door.refusal()
        assert (refusal.reason, refusal.retry_after_s) == ("SESSIONS", 1.0)
        door.leave(first)
        await door.enter()
        assert (await door.refusal()).reason == "SESSIONS"
        assert door.told == []

    run(story())


def test_a_place_whose_prompt_cannot_be_used_comes_back() -> None:
    async def story() -> None:
        door = Door(1, max_queue=0)
        place = await door.ask()
        place.leave()
        place.leave()
        await door.enter()
        assert (await door.refusal()).reason == "SESSIONS"

    run(story())


def test_principals_take_turns() -> None:
    async def story() -> None:
        door = Door(1)
        place = await door.enter("first")
        greedy = [await door.queued("greedy") for _ in range(3)]
        modest = [await door.queued("modest"), await door.queued("late")]
        assert door.told == [1, 2, 3, 4, 5]
        for _ in range(5):
            door.leave(place)
            done, _ = await asyncio.wait([*greedy, *modest], return_when=asyncio.FIRST_COMPLETED)
            (task,) = done
            (greedy if task in greedy else modest).remove(task)
            place = task.result()
        assert door.order == ["first", "greedy", "modest", "late", "greedy", "greedy"]
        assert door.admission.waiting == 0

    run(story())


def test_who_comes_does_not_overtake_who_waits() -> None:
    async def story() -> None:
        door = Door(1)
        place = await door.enter("first")
        waiting = await door.queued("second")
        place.leave()
        door.house.entered -= 1  # free, but the queue has not been told yet
        late = await door.queued("late")
        door.admission.room_changed()
        await waiting
        assert door.order == ["first", "second"]
        late.cancel()

    run(story())


def test_who_gives_up_waiting_leaves_no_trace() -> None:
    async def story() -> None:
        door = Door(1)
        place = await door.enter()
        left, granted = await door.queued("left"), await door.queued("granted")
        left.cancel()
        await asyncio.gather(left, return_exceptions=True)
        assert door.admission.waiting == 1
        door.leave(place)  # in the same moment as
        granted.cancel()
        await asyncio.gather(granted, return_exceptions=True)
        assert door.admission.waiting == 0
        await door.enter("next", max_sessions=1)
        door.house.places = 9
        await door.ask("granted", max_sessions=1)

    run(story())


def test_the_queue_is_bounded_in_length_and_time() -> None:
    async def story() -> None:
        door = Door(1, max_queue=2, queue_timeout_s=0.0)
        await door.enter()
        refusal = await door.refusal()
        assert (refusal.reason, refusal.retry_after_s) == ("QUEUE_TIMEOUT", 1.0)
        assert door.admission.waiting == 0
        patient = Door(1, max_queue=2)
        await patient.enter()
        tasks = [await patient.queued(), await patient.queued()]
        refusal = await patient.refusal("other")
        assert refusal.reason == "SESSIONS"
        assert "2 sessions wait" in refusal.sentence
        for task in tasks:
            task.cancel()

    run(story())


def test_a_session_whose_device_is_away_gives_way_before_anybody_is_refused() -> None:
    async def story() -> None:
        door = Door(1, max_queue=0)
        place = await door.enter()
        door.house.away.append("ann")
        task = await door.queued("ben")
        assert door.house.away == []
        door.leave(place)
        await task

    run(story())


def test_a_principal_has_so_many_sessions_and_no_more() -> None:
    async def story() -> None:
        door = Door(9)
        place = await door.enter(max_sessions=2)
        await door.enter(max_sessions=2)
        refusal = await door.refusal(max_sessions=2)
        assert (refusal.reason, refusal.retry_after_s) == ("PRINCIPAL_SESSIONS", 1.0)
        await door.enter("ben", max_sessions=2)
        door.house.away.append("ben")
        assert (await door.refusal(max_sessions=2)).reason == "PRINCIPAL_SESSIONS", "another's does not give way"
        door.house.away.append("ann")
        await door.enter(max_sessions=2)
        assert door.house.away == ["ben"], "its own does"
        door.leave(place)

    run(story())


def test_waiting_sessions_count_as_sessions_and_are_bounded_themselves() -> None:
    async def story() -> None:
        door = Door(1)
        place = await door.enter(max_sessions=3, max_queued=1)
        task = await door.queued(max_sessions=3, max_queued=1)
        assert (await door.refusal(max_sessions=3, max_queued=1)).reason == "PRINCIPAL_QUEUE"
        assert (await door.refusal(max_sessions=2)).reason == "PRINCIPAL_SESSIONS"
        other = await door.queued("ben", max_queued=1)
        door.leave(place)
        await task
        other.cancel()

    run(story())


def test_all_sessions_together_are_bounded() -> None:
    async def story() -> None:
        door = Door(9, max_sessions=2)
        place = await door.ask()
        await door.ask("ben")
        assert (await door.refusal("cid")).reason == "SESSIONS"
        place.leave()
        await door.ask("cid")

    run(story())


def test_tokens_are_paid_back_before_the_next_session() -> None:
    async def story() -> None:
        door = Door(9)
        place = await door.enter(tokens_per_minute=600)
        place.charge(500)
        place.charge(500)
        await door.enter(tokens_per_minute=600)
        place.charge(650)
        refusal = await door.refusal(tokens_per_minute=600)
        assert (refusal.code.name, refusal.reason) == ("RESOURCE_EXHAUSTED", "PRINCIPAL_TOKENS")
        assert refusal.retry_after_s == pytest.approx(5.0)
        await door.enter("ben", tokens_per_minute=600)
        door.now_s = 5.0
        await door.enter(tokens_per_minute=600)
        place.charge(651)
        await door.refusal(tokens_per_minute=600)
        await door.enter()

    run(story())


def test_a_bucket_fills_to_its_brim_and_may_be_overdrawn() -> None:
    now_s = 0.0
    bucket = TokenBucket(2.0, 10.0, lambda: now_s)
    now_s = 100.0
    bucket.take(10)
    assert bucket.wait_s == 0
    bucket.take(4)
    assert bucket.wait_s == 2.0
    now_s = 101.0
    assert bucket.wait_s == 1.0
    now_s = 102.0
    assert bucket.wait_s == 0
    never = TokenBucket(0.0, 1.0, lambda: now_s)
    never.take(2)
    assert never.wait_s == float("inf")


def test_a_door_that_closes_sends_away_who_waits() -> None:
    async def story() -> None:
        door = Door(1)
        place = await door.enter()
        task = await door.queued("ben")
        leaving = VerifierError(StatusCode.UNAVAILABLE, "DRAINING", "use another one")
        door.admission.close(leaving)
        with pytest.raises(VerifierError) as caught:
            await task
        assert caught.value is leaving
        assert door.admission.waiting == 0
        door.leave(place)
        await door.enter("ben", max_sessions=1)

    run(story())


def test_who_has_gone_and_owes_nothing_is_forgotten() -> None:
    async def test() -> None:
        door = Door(8, max_queue=4)
        stays = await door.enter("stays")
        owes = await door.enter("owes", tokens_per_minute=60)
        owes.charge(90)
        door.leave(owes)
        for number in range(50):
            door.leave(await door.enter(f"guest {number}", tokens_per_minute=60))
            assert door.admission.accounts <= 3, "the one that stays, the one that owes, and the latest guest"
        assert (await door.refusal("owes", tokens_per_minute=60)).reason == "PRINCIPAL_TOKENS"
        door.leave(stays)
        door.now_s += 90.0
        await door.enter("another")
        assert door.admission.accounts == 1

    run(test())
