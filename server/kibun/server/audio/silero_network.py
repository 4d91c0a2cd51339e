"""Silero's network as products of matrices, for onnxruntime; the weights come with the package silero-vad (MIT).

The package's own graph is convolutions over the four positions of each frame, which take onnxruntime twice as long as
the same work done as products whose rows are the positions of all frames. The spectrum needs half of the weights: its
basis is even or odd about the middle of the window. Probabilities differ by rounding from the package's, which the
tests keep as the oracle; a frame's are the same bits whatever frames are beside it, as each row of a product is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float32]
_Shape: TypeAlias = tuple[int | str, ...]

POSITIONS = 4  # per frame
HALF_WINDOW = 128  # samples; also from one position to the next
HIDDEN = 128
_BINS = HALF_WINDOW + 1
_TAPS = 3
#: Of the weights: spectrum, four convolutions, recurrent layer, and the last one.
_SHAPES = [
    *((258, 1, 256), (128, 129, 3), (128,), (64, 128, 3), (64,), (64, 64, 3), (64,), (128, 64, 3), (128,)),
    *((1, 512, 128), (1, 512, 128), (1, 1024), (1, 128, 1), (1,)),
]
_OPSET, _IR_VERSION = 16, 8
_FLOAT, _INT64 = 1, 7  # TensorProto.DataType


def folded(padded: Floats) -> tuple[Floats, Floats]:
    """The windows of frames as the network takes them: even and odd parts, (4 k, 128) each.

    padded: (k, 640), a frame behind its context, and the mirrored end of it.
    """
    row, step = padded.strides
    shape, strides = (len(padded), POSITIONS, 2 * HALF_WINDOW), (row, HALF_WINDOW * step, step)
    windows: Floats = np.ndarray(shape, np.float32, padded, 0, strides)  # as_strided, which takes longer than the sums
    first, mirrored = windows[..., 1 : HALF_WINDOW + 1], windows[..., : HALF_WINDOW - 1 : -1]
    even, odd = np.add(first, mirrored), np.subtract(first, mirrored)  # the sample in the middle counts twice, and 0
    return even.reshape(-1, HALF_WINDOW), odd.reshape(-1, HALF_WINDOW)


def build(package: bytes) -> bytes:
    """The ONNX model: even, odd (4 k, 128), h, c (1, 1, 128) to probability (k, 1), hn, cn (1, 1, 128).

    package: the package's own model of whole sequences. Raises ValueError if it is another network.
    """
    layers = _weights(package)
    if [part.shape for layer in layers for part in layer] != _SHAPES:
        raise ValueError("silero-vad holds another network than kibun knows; install silero-vad 6.2")
    (basis,), first, second, third, fourth, recurrent, last = layers
    basis = basis[:, 0]  # (258, 256): cosines, then sines, under a Hann window that begins with 0
    even, odd = basis[:_BINS], basis[_BINS:]
    if basis[:, 0].any() or (even[:, 1:] != even[:, :0:-1]).any() or (odd[:, 1:] != -odd[:, :0:-1]).any():
        raise ValueError("silero-vad's spectrum is not even and odd about its middle; install silero-vad 6.2")
    cosines, sines = (part[:, 1 : HALF_WINDOW + 1].T.copy() for part in (even, odd))
    cosines[-1] /= 2
    graph = _Graph()
    for part, matrix in (("even", cosines), ("odd", sines)):
        graph.add("MatMul", (part, graph.constant(matrix)), f"{part} bins")
        graph.add("Mul", (f"{part} bins", f"{part} bins"), f"{part} power")
    graph.add("Add", ("even power", "odd power"), "power")
    graph.add("Sqrt", ("power",), "bins")
    graph.windows("bins", POSITIONS, _BINS, (1, 1), [[0, 1, 2], [1, 2, 3], [2, 3, 4], [3, 4, 5]])
    graph.layer("bins windows", _by_tap(first[0]), first[1], "Relu", "first")
    graph.windows("first", POSITIONS, HIDDEN, (1, 0), [[0, 1, 2], [2, 3, 4]])
    graph.layer("first windows", _by_tap(second[0]), second[1], "Relu", "second")
    graph.reshape("second", (-1, HIDDEN), "second pairs")
    # The first of three taps lies before the frame; then one position is left, under the middle one of three.
    graph.layer("second pairs", _by_tap(third[0][:, :, 1:]), third[1], "Relu", "third")
    graph.layer("third", _by_tap(fourth[0][:, :, 1:2]), fourth[1], "Relu", "fourth")
    graph.reshape("fourth", (-1, 1, HIDDEN), "steps")
    gates = [graph.constant(part) for part in recurrent]
    graph.add("LSTM", ("steps", *gates, "", "h", "c"), "remembered", "hn", "cn", hidden_size=HIDDEN)
    graph.reshape("remembered", (-1, HIDDEN), "steps remembered")
    graph.add("Relu", ("steps remembered",), "active")
    graph.layer("active", _by_tap(last[0]), last[1], "Sigmoid", "probability")
    rows, state = ("rows", HALF_WINDOW), (1, 1, HIDDEN)
    inputs = {"even": rows, "odd": rows, "h": state, "c": state}
    return graph.model(inputs, {"probability": ("frames", 1), "hn": state, "cn": state})


def _by_tap(weight: Floats) -> Floats:
    """A convolution's (out, in, taps) as a matrix for rows of taps after each other, (taps · in, out)."""
    return weight.transpose(2, 1, 0).reshape(-1, len(weight))


class _Graph:
    """Collects nodes and constants, and writes them as ONNX: its protobuf has few kinds of fields, and the package onnx
    would take longer to import than this server to start.
    """

    def __init__(self) -> None:
        self._nodes: list[bytes] = []
        self._constants: list[bytes] = []

    def constant(self, array: npt.NDArray[np.float32] | npt.NDArray[np.int64]) -> str:
        """Adds a tensor; its name."""
        name = f"constant {len(self._constants)}"
        kind = _INT64 if array.dtype == np.int64 else _FLOAT
        self._constants.append(_tensor(name, array.shape, kind, np.ascontiguousarray(array).tobytes()))
        return name

    def integers(self, values: Sequence[object]) -> str:
        """Adds a tensor of integers; its name."""
        return self.constant(np.array(values, np.int64))

    def add(self, kind: str, inputs: Sequence[str], *outputs: str, **attributes: int) -> None:
        """Adds a node."""
        parts = [_text(1, name) for name in inputs] + [_text(2, name) for name in outputs] + [_text(4, kind)]
        for name, value in attributes.items():
            parts.append(_bytes(5, _text(1, name) + _number(3, value) + _number(20, 2)))  # of type INT
        self._nodes.append(b"".join(parts))

    def reshape(self, name: str, shape: Sequence[int], to: str) -> None:
        """Adds another shape of `name`."""
        self.add("Reshape", (name, self.integers(shape)), to)

    def windows(self, name: str, count: int, width: int, zeros: tuple[int, int], taps: Sequence[Sequence[int]]) -> None:
        """Adds `NAME windows`: of every `count` rows, between so many of zeros, those that each output's taps see."""
        self.reshape(name, (-1, count, width), f"{name} of frames")
        pads = self.integers((0, zeros[0], 0, 0, zeros[1], 0))
        self.add("Pad", (f"{name} of frames", pads), f"{name} padded")
        self.add("Gather", (f"{name} padded", self.integers(taps)), f"{name} taps", axis=1)
        self.reshape(f"{name} taps", (-1, _TAPS * width), f"{name} windows")

    def layer(self, name: str, matrix: Floats, bias: Floats, activation: str, to: str) -> None:
        """Adds a product, its bias and an activation."""
        self.add("Gemm", (name, self.constant(matrix), self.constant(bias)), f"{to} sums")
        self.add(activation, (f"{to} sums",), to)

    def model(self, inputs: Mapping[str, _Shape], outputs: Mapping[str, _Shape]) -> bytes:
        """The file."""
        parts = [_bytes(1, node) for node in self._nodes] + [_text(2, "silero")]
        parts += [_bytes(5, constant) for constant in self._constants]
        parts += [_bytes(field, _value(*v)) for field, vs in ((11, inputs), (12, outputs)) for v in vs.items()]
        opset = _text(1, "") + _number(2, _OPSET)
        return _number(1, _IR_VERSION) + _bytes(7, b"".join(parts)) + _bytes(8, opset)


# ---- ONNX's protobuf (onnx.proto3): the numbers are those of its fields


def _tensor(name: str, shape: Sequence[int], kind: int, raw: bytes) -> bytes:
    return b"".join(_number(1, size) for size in shape) + _number(2, kind) + _text(8, name) + _bytes(9, raw)


def _value(name: str, shape: _Shape) -> bytes:
    sizes = (_text(2, size) if isinstance(size, str) else _number(1, size) for size in shape)
    tensor = _number(1, _FLOAT) + _bytes(2, b"".join(_bytes(1, size) for size in sizes))
    return _text(1, name) + _bytes(2, _bytes(1, tensor))


def _text(field: int, value: str) -> bytes:
    return _bytes(field, value.encode())


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _varint(value: int) -> bytes:
    groups = []
    while value > 127:
        groups.append(value & 127 | 128)
        value >>= 7
    return bytes([*groups, value])


def _weights(model: bytes) -> list[list[Floats]]:
    """Of every layer that has any, in order, its weights."""
    (graph,) = (value for field, value in _fields(model) if field == 7)
    constants: dict[bytes, Floats] = {}
    layers: list[list[bytes]] = []
    for field, value in _fields(graph):
        parts = list(_fields(value)) if field in (1, 5) else []
        if field == 5:
            name, raw = (next(part for number, part in parts if number == wanted) for wanted in (8, 9))
            constants[name] = np.frombuffer(raw, "<f4").reshape([size for number, size in parts if number == 1])
        elif field == 1:
            layers.append([part for number, part in parts if number == 1])
    return [found for layer in layers if (found := [constants[name] for name in layer if name in constants])]


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """The fields of a message: a number, or bytes."""
    at = 0
    while at < len(message):
        tag, at = _varint_at(message, at)
        value, at = _varint_at(message, at)
        if tag & 7 == 2:
            yield tag >> 3, message[at : at + value]
            at += value
        elif tag & 7 == 0:
            yield tag >> 3, value
        else:
            raise ValueError("silero-vad's model cannot be read; install silero-vad 6.2")


def _varint_at(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while message[at] & 128:
        value |= (message[at] & 127) << shift
        at, shift = at + 1, shift + 7
    return value | message[at] << shift, at + 1
