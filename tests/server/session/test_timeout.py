"""Timeouts do not count time in which the process was suspended."""

import asyncio

import pytest

from kibun.server.session.timeout import CATCH_UP_S, Timeout
from tests.support.virtual_time import in_virtual_time, suspend


def now() -> float:
    return asyncio.get_running_loop().time()


@in_virtual_time
async def test_a_wait_ends_when_its_time_is_up() -> None:
    timeout = Timeout(5)
    with pytest.raises(TimeoutError):
        await timeout.wait(asyncio.Event().wait())
    assert now() == 5
    timeout.close()


@in_virtual_time
async def test_each_wait_has_the_full_time() -> None:
    timeout = Timeout(5)
    for _ in range(3):
        await timeout.wait(asyncio.sleep(4))
    began = now()
    with pytest.raises(TimeoutError):
        await timeout.wait(asyncio.Event().wait())
    assert now() == began + 5
    timeout.close()


@in_virtual_time
async def test_many_waits_need_few_timers(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, timers = asyncio.get_running_loop(), []
    call_later = loop.call_later

    def counted(*arguments: object) -> asyncio.TimerHandle:
        timers.append(call_later(*arguments))  # type: ignore[arg-type]
        return timers[-1]

    monkeypatch.setattr(loop, "call_later", counted)
    timeout = Timeout(5)
    came = [loop.create_future() for _ in range(100)]
    for number, future in enumerate(came):
        loop.call_at(0.1 * (number + 1), future.set_result, None)
    for future in came:
        await timeout.wait(future)
    assert len(timers) <= 1 + 10 / 5, "one at the start, and one more whenever it was due"
    assert sum(not timer.cancelled() and timer.when() > now() for timer in timers) == 1
    timeout.close()
    assert all(timer.cancelled() or timer.when() <= now() for timer in timers)


@in_virtual_time
async def test_a_cancelled_wait_is_cancelled_and_no_timeout() -> None:
    async def wait() -> None:
        timeout = Timeout(5)
        try:
            await timeout.wait(asyncio.Event().wait())
        finally:
            timeout.close()

    task = asyncio.create_task(wait())
    await asyncio.sleep(1)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


@pytest.mark.parametrize("suspended_s", [4.5, 60.0])
@in_virtual_time
async def test_what_comes_after_the_process_was_suspended_is_in_time(suspended_s: float) -> None:
    """However much of that time lies before or after the moment when the timer was due."""
    timeout, came = Timeout(5), asyncio.Event()

    async def come() -> None:
        await asyncio.sleep(1)
        suspend(suspended_s)
        await asyncio.sleep(0.9 * CATCH_UP_S)
        came.set()

    coming = asyncio.create_task(come())
    assert await timeout.wait(came.wait())
    await coming
    timeout.close()


@in_virtual_time
async def test_a_suspended_process_does_not_wait_much_longer() -> None:
    timeout = Timeout(5)
    asyncio.get_running_loop().call_soon(suspend, 60)
    with pytest.raises(TimeoutError):
        await timeout.wait(asyncio.Event().wait())
    assert now() == 60 + CATCH_UP_S
    timeout.close()
