"""The devices of a soak against a mock target: every fate comes, the words are compared, and nothing is left."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.fuzz.world import AnyLetterCodec
from benchmarks.soak.__main__ import findings
from benchmarks.soak.churn import FATES, Churn, Device, Question, questions
from benchmarks.soak.verifier import Reading
from cloud_verifier.security.authentication import Authentication
from cloud_verifier.security.keys import KeyFile, KeyStore
from cloud_verifier.serving.service import ServiceSettings
from tests.harness import InProcessVerifier
from tests.mock_engine import MockEngine
from tests.service.raw import until

READING = Reading(0.0, 0.0, 300 << 20, 1000, 11, 3, 2, 100, 4, 90, 8)


@pytest.fixture
def file(tmp_path: Path) -> KeyFile:
    return KeyFile(tmp_path / "keys.toml")


@pytest.fixture
def key(file: KeyFile) -> str:
    return file.add("ann", {})


@pytest.fixture
def verifier(file: KeyFile, key: str) -> Iterator[InProcessVerifier]:
    assert key
    keys = Authentication(KeyStore(file.path))
    engine = MockEngine(max_sequences=64)
    with InProcessVerifier(
        engine, AnyLetterCodec(), authentication=keys, service=ServiceSettings(lease_s=0.2)
    ) as running:
        yield running


async def churned(address: str, key: str, asked: list[Question], sessions: int) -> Churn:
    churn = Churn(Device(address, key, seed=1), asked)
    until_s = asyncio.get_running_loop().time() + 20.0
    task = asyncio.create_task(churn.run(until_s))
    while sum(churn.fates.values()) < sessions and not task.done():
        await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return churn


def test_every_fate_comes_and_words_are_compared(verifier: InProcessVerifier, key: str) -> None:
    async def test() -> None:
        asked = await questions(verifier.address, key)
        right = await churned(verifier.address, key, asked, 2 * len(FATES))
        assert set(right.fates) == set(FATES)
        assert right.cut >= 2
        assert right.wrong == 0
        others = [replace(question, words=[7] * len(question.words)) for question in asked]
        assert (await churned(verifier.address, key, others, len(FATES))).wrong > 0

    asyncio.run(test())
    until(lambda: verifier.service.sessions == 0, "no session is left")
    until(lambda: verifier.scheduler.room == 64, "nor a place")


def test_a_soak_that_grows_is_not_flat() -> None:
    steady = [replace(READING, at_s=5.0 * i, rss_bytes=(300 << 20) + (i % 7) * 9000) for i in range(720)]
    assert findings(steady, READING, [])["flat"]
    grown = [replace(one, rss_bytes=one.rss_bytes + round(one.at_s / 3600 * (20 << 20))) for one in steady]
    found = findings(grown, READING, [])
    assert not found["flat"]
    assert found["memory_mib_per_hour"]["per_hour"] == pytest.approx(20, abs=1)
    warm_up = [replace(one, rss_bytes=one.rss_bytes - (max(0, 100 - i) << 20)) for i, one in enumerate(steady)]
    assert findings(warm_up, READING, [])["flat"]
