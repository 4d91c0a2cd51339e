"""Waiting that does not blame others for time in which this process itself did not run."""

import asyncio
import time

import pytest

from kibun.server.session.timeout import Timeout


def hold_up(seconds: float) -> None:
    """The whole loop, as a suspended process is."""
    time.sleep(seconds)


async def test_what_does_not_come_is_given_up() -> None:
    patience = Timeout(0.05)
    with pytest.raises(TimeoutError):
        await patience.wait(asyncio.Event().wait())
    patience.close()


async def test_one_timer_serves_for_many_waits() -> None:
    patience = Timeout(0.2)
    for _ in range(8):
        await patience.wait(asyncio.sleep(0.05))
    patience.close()


@pytest.mark.parametrize("held_up_s", [0.6, 1.2])
async def test_what_comes_after_the_process_was_held_up_is_in_time(held_up_s: float) -> None:
    """However much of that lies before the timer was due, or after."""
    patience, came = Timeout(0.3), asyncio.Event()

    async def comes_a_little_later() -> None:
        await asyncio.sleep(0.1)
        hold_up(held_up_s)
        await asyncio.sleep(0.1)
        came.set()

    coming = asyncio.create_task(comes_a_little_later())
    assert await patience.wait(came.wait())
    await coming
    patience.close()


async def test_what_does_not_come_then_either_is_given_up() -> None:
    patience = Timeout(0.3)
    waiting = asyncio.create_task(asyncio.sleep(0.1))
    await waiting
    asyncio.get_running_loop().call_soon(hold_up, 0.8)
    with pytest.raises(TimeoutError):
        await patience.wait(asyncio.Event().wait())
    patience.close()
