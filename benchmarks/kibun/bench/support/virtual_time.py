"""Runs coroutines on an event loop whose clock jumps to the next timer: simulated minutes take milliseconds."""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class VirtualLoop(asyncio.SelectorEventLoop):
    """`now` is its time, in seconds from 0."""

    def __init__(self) -> None:
        self.now = 0.0
        super().__init__(_Jumps(self))

    def time(self) -> float:
        return self.now


class _Jumps(selectors.SelectSelector):
    """Instead of waiting, moves the clock on."""

    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[Any]:
        assert timeout is not None, "everything waits and nothing is due"
        if timeout > 0:
            self._loop.now += timeout
        return super().select(0)


def run(main: Coroutine[Any, Any, T]) -> T:
    """Result of `main`; inside, the loop's time starts at 0."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)
