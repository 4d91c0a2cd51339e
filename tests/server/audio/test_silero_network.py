"""The network as products gives what the package's own graph gives, and a frame's bits do not depend on its company."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest

from kibun.bench.support.speech_like import lay_out
from kibun.server.audio import silero_network

Floats = npt.NDArray[np.float32]

STATE = np.zeros((1, 1, silero_network.HIDDEN), np.float32)
_SPEC = find_spec("silero_vad")
assert _SPEC is not None
assert _SPEC.origin is not None
PACKAGE = Path(_SPEC.origin).parent / "data" / "silero_vad_16k_sequence.onnx"


@pytest.fixture(scope="module")
def network() -> Any:
    return onnxruntime.InferenceSession(silero_network.build(PACKAGE.read_bytes()), providers=["CPUExecutionProvider"])


def frames() -> Floats:
    """Speech, silence and noise, each frame behind its context, (k, 576)."""
    sound = lay_out([("silence", 0.3), ("speech", 2.0), ("silence", 0.7)], noise_rms=1e-3).audio
    noise = np.random.default_rng(0).standard_normal(16_000).astype(np.float32) * np.float32(0.2)
    audio = np.concatenate([sound, noise])
    return np.lib.stride_tricks.sliding_window_view(audio, 576)[::512].copy()


def run(network: Any, inputs: Floats, hidden: Floats, cell: Floats) -> list[Floats]:
    mirrored = np.concatenate([inputs, inputs[:, -2:-66:-1]], axis=1)
    even, odd = silero_network.folded(mirrored)
    found: list[Floats] = network.run(["probability", "hn", "cn"], {"even": even, "odd": odd, "h": hidden, "c": cell})
    return found


def test_it_is_the_packages_network_up_to_rounding(network: Any) -> None:
    package = onnxruntime.InferenceSession(PACKAGE, providers=["CPUExecutionProvider"])
    inputs = frames()
    expected, hidden, cell = package.run(["speech_probs", "hn", "cn"], {"input": inputs, "h": STATE, "c": STATE})
    assert expected.max() > 0.9
    assert expected.min() < 0.1
    found = run(network, inputs, STATE, STATE)
    assert np.abs(found[0][:, 0] - expected).max() < 5e-6
    assert np.abs(found[1] - hidden).max() < 5e-5
    assert np.abs(found[2] - cell).max() < 5e-5


@pytest.mark.parametrize("together", [1, 2, 3, 7])
def test_a_frame_has_the_same_bits_in_any_company(network: Any, together: int) -> None:
    inputs = frames()
    whole = run(network, inputs, STATE, STATE)
    hidden = cell = STATE
    parts = []
    for begin in range(0, len(inputs), together):
        part, hidden, cell = run(network, inputs[begin : begin + together], hidden, cell)
        parts.append(part)
    assert np.array_equal(np.concatenate(parts), whole[0])
    assert np.array_equal(hidden, whole[1])
    assert np.array_equal(cell, whole[2])


def test_another_network_is_refused() -> None:
    other = PACKAGE.with_name("silero_vad_16k_op15.onnx").read_bytes()
    with pytest.raises(ValueError, match=r"install silero-vad 6\.2"):
        silero_network.build(other)


def test_a_spectrum_that_cannot_be_halved_is_refused() -> None:
    data = bytearray(PACKAGE.read_bytes())
    basis = next(part for layer in silero_network._weights(bytes(data)) for part in layer).tobytes()
    changed = np.frombuffer(basis, np.float32).copy()
    changed[7] += 1
    with pytest.raises(ValueError, match="even and odd"):
        silero_network.build(bytes(data).replace(basis, changed.tobytes()))
