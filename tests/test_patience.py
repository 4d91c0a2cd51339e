"""Timeouts that do not count time in which this process did not run."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from kibun.server.patience import Patience


@asynccontextmanager
async def patience(seconds: float) -> AsyncIterator[Patience]:
    made = Patience(seconds)
    try:
        yield made
    finally:
        made.close()


async def test_what_does_not_come_in_time_is_a_timeout() -> None:
    async with patience(0.1) as limit:
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            await limit.wait(asyncio.Event().wait())
        assert time.monotonic() - began >= 0.1
        await asyncio.sleep(0)  # nothing of the cancellation is left


async def test_each_wait_has_its_own_time() -> None:
    async with patience(0.3) as limit:
        for _ in range(4):
            assert await limit.wait(asyncio.sleep(0.1, "done")) == "done"
        await asyncio.sleep(0.4)
        assert await limit.wait(asyncio.sleep(0.1, "done")) == "done", "time between waits does not count"


async def test_what_came_while_the_process_did_not_run_is_seen_first() -> None:
    async with patience(0.2) as limit:
        loop = asyncio.get_running_loop()
        loop.call_later(0.1, time.sleep, 1.0)  # as if suspended
        assert await limit.wait(asyncio.sleep(0.3, "done")) == "done"
        with pytest.raises(TimeoutError):
            await limit.wait(asyncio.Event().wait())


async def test_a_cancellation_from_outside_stays_one() -> None:
    async def work() -> None:
        async with patience(5) as limit:
            await limit.wait(asyncio.Event().wait())

    task = asyncio.create_task(work())
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
