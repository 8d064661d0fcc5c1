import asyncio

import pytest

from cloud_verifier.serving.write_timeout import WriteTimeout

NEVER = 3600.0


def test_a_write_that_nobody_reads_times_out_however_many_were_read_before() -> None:
    async def writes() -> None:
        limit = WriteTimeout(0.05)
        for _ in range(10):
            with limit:
                await asyncio.sleep(0.01)
        with pytest.raises(TimeoutError), limit:
            await asyncio.sleep(NEVER)
        limit.close()
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0

    asyncio.run(writes())


def test_who_is_cancelled_from_outside_is_cancelled() -> None:
    async def write() -> None:
        with WriteTimeout(NEVER):
            await asyncio.sleep(NEVER)

    async def cancelled() -> None:
        task = asyncio.create_task(write())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())


def test_between_writes_the_clock_stands_still() -> None:
    async def writes() -> None:
        limit = WriteTimeout(0.02)
        with limit:
            pass
        await asyncio.sleep(0.06)  # rings, and nobody is cancelled
        with limit:
            await asyncio.sleep(0)
        limit.close()

    asyncio.run(writes())
