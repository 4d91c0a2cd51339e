"""Timing that survives a busy machine: what is compared takes turns within one process."""

import statistics
import time
from collections.abc import Callable, Mapping


def interleaved(paths: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds that each path took in each round, after one call that is not counted (memory, kernels)."""
    times: dict[str, list[float]] = {name: [] for name in paths}
    for path in paths.values():
        path()
    for _ in range(rounds):
        for name, path in paths.items():
            begin = time.perf_counter()
            path()
            times[name].append(time.perf_counter() - begin)
    return times


def ratio(times: Mapping[str, list[float]], slow: str, fast: str) -> float:
    """How many times faster `fast` is than `slow`: the median over rounds of their quotient in that round."""
    return statistics.median(a / b for a, b in zip(times[slow], times[fast], strict=True))
