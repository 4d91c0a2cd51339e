"""Weights as they are stored: what a safetensors file holds, and whether every value of a tensor is a number."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from kibun.models.files import CONFIG, BundleError, one_line

if TYPE_CHECKING:
    from torch import Tensor, nn

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
    """The tensors of a file by name, as views of the file in memory. Raises BundleError."""
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
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
    for name, tensor in tensors:
        if tensor.is_floating_point() and tensor.numel():
            low, high = tensor.detach().aminmax()  # NaN if any value is; ten times as fast as isfinite
            if not (math.isfinite(low) and math.isfinite(high)):
                return name
    return None


def check_names(path: Path, missing: Iterable[str], unexpected: Iterable[str], mismatched: Iterable[str]) -> None:
    """Raise BundleError if a file lacks weights of these names, has them besides, or has them in another shape."""
    for names, text in zip((missing, unexpected, mismatched), _MISFITS, strict=True):
        if found := sorted(names):
            raise BundleError(f"{path}: {text.format(len(found), CONFIG)}, {found[0]} first")


def check_finite(path: Path, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Raise BundleError if one of a file's tensors holds NaN or infinity."""
    if name := not_finite(tensors):
        raise BundleError(f"{path}: {name} holds NaN or infinity: get the bundle again, or train it anew")


def own_weights(module: nn.Module) -> None:
    """Copy each weight of a module, so that none is a view of a mapped file."""
    for parameter in module.parameters():
        parameter.data = parameter.data.clone()
