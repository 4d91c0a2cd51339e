"""Rendering a generated corpus part by part, on several processes."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

from kibun.training.corpora.report import Row

LICENSE = "Apache-2.0"  # of generated speech and its labels, as of what generates them


def render_in_order(
    render: Callable[..., list[Row]], tasks: Sequence[tuple[Any, ...]], jobs: int
) -> Iterator[list[Row]]:
    """The rows of a manifest that `render` makes of each task, its arguments; in order, by this many processes."""
    if jobs == 1:
        yield from itertools.starmap(render, tasks)
        return
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        yield from pool.map(render, *zip(*tasks, strict=True), chunksize=4)
