"""SHA-256 of a trunk, over names, shapes and values, computed from a model or from a file of weights.

Values are taken as float32, in which they are loaded, so a trunk stored as float16 has the checksum of the loaded one.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kibun.models.files import BundleError
from kibun.models.weights import read_header

if TYPE_CHECKING:
    from torch import nn

    from kibun.models.model import KibunModel

_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8"}


def trunk_checksum(model: KibunModel) -> str:
    """SHA-256 of the trunk that a model's tasks share: 64 hexadecimal digits."""
    return module_checksum(model.trunk)


def module_checksum(module: nn.Module) -> str:
    """SHA-256 of any module's weights: 64 hexadecimal digits."""
    state = sorted(module.state_dict().items())
    return _digest((name, value.detach().cpu().float().numpy()) for name, value in state)


def stored_trunk_checksum(weights: Path) -> str:
    """`trunk_checksum` of a model.safetensors, without loading it or torch. Raises BundleError if it is damaged."""
    read_header(weights)  # what follows trusts the file's structure
    try:
        with weights.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
        data = np.memmap(weights, np.uint8, mode="r", offset=8 + length)  # (bytes,)
        stored = sorted(
            ((name.removeprefix("trunk."), t) for name, t in header.items() if name.startswith("trunk.")),
            key=lambda item: item[0],
        )
        return _digest((name, _read(data, tensor)) for name, tensor in stored)
    except (OSError, ValueError, KeyError, struct.error) as error:
        raise BundleError(f"{weights}: not a safetensors file of a bundle ({error})") from error


def _read(data: NDArray[np.uint8], tensor: dict[str, Any]) -> NDArray[np.float32]:
    """The values of a tensor, by its entry in the header, from the file's data (bytes,)."""
    begin, end = tensor["data_offsets"]
    values = data[begin:end].view(_DTYPES[tensor["dtype"]]).reshape(tensor["shape"])
    if tensor["dtype"] == "BF16":  # the upper half of a float32
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)


def _digest(tensors: Iterable[tuple[str, NDArray[np.float32]]]) -> str:
    digest = hashlib.sha256()
    for name, values in tensors:
        digest.update(f"{name}\0{','.join(map(str, values.shape))}\0".encode())
        digest.update(np.ascontiguousarray(values, "<f4").data)
    return digest.hexdigest()
