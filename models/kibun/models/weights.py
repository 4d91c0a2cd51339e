"""Weights as they are stored: what a safetensors file holds, and whether every value of a tensor is a number."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from kibun.models.files import CONFIG, BundleError, one_line

if TYPE_CHECKING:
    from torch import Tensor, nn

Apply = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]
"""`map`, or what does the same with several threads."""

PART = 2
"""Of a tensor's name, what its part is named by: "tails.valence" of "tails.valence.layers.0.…"."""

_MISFITS = (
    "lacks {} weights that {} describes",
    "has {} weights that {} has no place for",
    "has {} weights of another shape than {} describes",
)


def read_header(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Dtype, in safetensors' notation, and shape of each tensor of a file. Raises BundleError if it is damaged."""
    try:
        with safe_open(path, "numpy") as file:
            tensors = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
            return {name: (tensor.get_dtype(), tuple(tensor.get_shape())) for name, tensor in tensors.items()}
    except (OSError, SafetensorError) as error:
        raise BundleError(f"{path}: damaged, or not a safetensors file ({one_line(error)})") from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name, as views of the file in memory. Raises BundleError.

    Each part of a model has a mapping of its own, `PART` says of what: its pages leave the process with it.
    """
    tensors: dict[str, Tensor] = {}
    try:
        for _, names in groupby(sorted(read_header(path)), key=lambda name: name.split(".")[:PART]):
            with safe_open(path, "pt") as file:
                tensors |= {name: file.get_tensor(name) for name in names}
        return tensors
    except (OSError, SafetensorError, RuntimeError) as error:
        raise BundleError(f"{path}: does not load: {one_line(error)}") from error


def check_header(path: Path, expected: int) -> None:
    """Check, before memory is spent on them, that a file's weights are numbers and at least half as many as expected.

    Raises BundleError.
    """
    header = read_header(path)
    for name, (dtype, shape) in header.items():
        if dtype not in ("F32", "F16", "BF16", "F64") and (dtype != "I64" or shape):  # I64: a counter of batches
            raise BundleError(f"{path}: {name} holds {dtype}, allowed are F32, F16, BF16 and F64")
    found = sum(math.prod(shape) for _, shape in header.values())
    if 2 * found < expected:
        raise BundleError(f"{path}: has {found:,} weights, but config.json describes a model of {expected:,}")


def not_finite(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """The name of the first tensor that holds NaN or infinity; None if none does."""
    named = list(tensors)
    with in_threads() as apply:
        finite = apply(_is_finite, [tensor for _, tensor in named])
        return next((name for (name, _), fine in zip(named, finite, strict=True) if not fine), None)


def _is_finite(tensor: Tensor) -> bool:
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    low, high = tensor.detach().aminmax()  # NaN if any value is; ten times as fast as isfinite
    return math.isfinite(low) and math.isfinite(high)


def check_names(path: Path, missing: Iterable[str], unexpected: Iterable[str], mismatched: Iterable[str]) -> None:
    """Raise BundleError if a file lacks weights of these names, has them besides, or has them in another shape."""
    for names, text in zip((missing, unexpected, mismatched), _MISFITS, strict=True):
        if found := sorted(names):
            raise BundleError(f"{path}: {text.format(len(found), CONFIG)}, {found[0]} first")


def check_finite(path: Path, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Raise BundleError if one of a file's tensors holds NaN or infinity."""
    if name := not_finite(tensors):
        raise BundleError(f"{path}: {name} holds NaN or infinity: get the bundle again, or train it anew")


@contextmanager
def in_threads() -> Iterator[Apply]:
    """Gives a `map` that calls in as many threads as torch may use, each of which computes alone.

    The threads of torch itself wait for each other at every operation, and spin meanwhile: twice the CPU time where a
    core is busy with something else, such as a worker's with checksums (measured).
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # of this thread, and of those that begin now
    try:
        with ThreadPoolExecutor(threads) as pool:
            yield pool.map
    finally:
        torch.set_num_threads(threads)


def own_weights(module: nn.Module) -> None:
    """Copy each weight of a module, so that none is a view of a mapped file."""
    for parameter in module.parameters():
        parameter.data = parameter.data.clone()
