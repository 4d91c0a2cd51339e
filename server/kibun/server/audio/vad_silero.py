"""Silero's recurrent network, version 6, run by onnxruntime; the weights come with the package silero-vad (MIT)."""

from __future__ import annotations

import math
import os
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from kibun.server.audio import silero_network
from kibun.server.audio.offset import OffsetRemover

if TYPE_CHECKING:
    import onnxruntime


class SileroVad:
    """The detector of one stream. All of a process share one onnxruntime session, whose `run` is thread-safe."""

    frame_samples = 512  # what the network was trained for: 32 ms
    _CONTEXT_SAMPLES = 64  # end of the previous frame, which the network expects in front
    _STATE_SHAPE = (1, 1, silero_network.HIDDEN)  # (layers, batch, hidden)
    #: The network is deaf to speech below -60 dBFS. A noise floor that is lower than a room's ever is, is raised to
    #: there: its microphone is turned down. More gain finds more of what people say far away, and taps, and chairs.
    _LOWEST_FLOOR = 10 ** (-85 / 20)
    _MOST_GAIN = 30.0
    #: A floor between these hides such things, but the network hears quiet speech in it only if it is louder: the gain
    #: rises to three at the middle and falls again. Louder speech needs none, and more would find voices in the back.
    _NOISY_FLOOR = 10 ** (-70 / 20)
    _LOUD_FLOOR = 10 ** (-50 / 20)
    #: After a third of a second without sound the network is not asked: in quiet it would cost as much as in speech.
    #: Sound is what is above this level and, unless it is louder than faint, stands out of the floor (energies).
    _INAUDIBLE = 10 ** (-75 / 10)
    _FAINT = 10 ** (-55 / 10)
    _STANDS_OUT = 3.0
    _ASKED_FRAMES = 10
    _SMOOTHING = 0.4  # share of the newest frame: a single quiet frame is no floor

    _context: npt.NDArray[np.float32]
    _hidden: npt.NDArray[np.float32]
    _cell: npt.NDArray[np.float32]
    _speaks: bool
    _inaudible: int  # frames without sound up to now
    _smooth: float  # energies
    _floor: float

    def __init__(self, enter: float = 0.4, leave: float = 0.15) -> None:
        """enter, leave: speech probability, 0..1, from which speech begins, and below which it ends.

        Raises:
            ValueError: out of range, or `leave` above `enter`.
        """
        if not 0.0 < leave <= enter < 1.0:
            raise ValueError(f"thresholds must be 0 < leave <= enter < 1, not leave {leave}, enter {enter}")
        self._session = _session()
        self._enter = enter
        self._leave = leave
        self._offset = OffsetRemover(self.frame_samples)
        self.reset()

    def decide(self, frames: npt.NDArray[np.float32]) -> list[bool]:
        """As `Vad.decide`. Raises ValueError for another shape."""
        if frames.ndim != 2 or frames.shape[1] != self.frame_samples:
            raise ValueError(f"frames must have shape (k, {self.frame_samples}), not {frames.shape}")
        if len(frames) == 0:
            return []
        sound = self._offset.remove(frames)
        gains, audible = self._gains(sound)
        if True not in audible:
            self._context = sound[-1, -self._CONTEXT_SAMPLES :] * gains[-1]
            self._speaks = False
            return [False] * len(sound)
        context, end = self._CONTEXT_SAMPLES, self._CONTEXT_SAMPLES + self.frame_samples
        inputs = np.empty((len(sound), end + context), np.float32)
        np.multiply(sound, gains[:, None], out=inputs[:, context:end])
        inputs[0, :context] = self._context
        inputs[1:, :context] = inputs[:-1, end - context : end]
        self._context = inputs[-1, end - context : end]
        if False in audible:
            inputs = inputs[audible]
        mirrored = slice(end - 2, end - 2 - context, -1)  # at the last sample, as the network pads
        inputs[:, end:] = inputs[:, mirrored]
        even, odd = silero_network.folded(inputs)
        probabilities, self._hidden, self._cell = self._session.run(
            ["probability", "hn", "cn"], {"even": even, "odd": odd, "h": self._hidden, "c": self._cell}
        )
        answers = iter(probabilities[:, 0].tolist())
        return [self._is_speech(next(answers) if heard else 0.0) for heard in audible]

    def _is_speech(self, probability: float) -> bool:
        self._speaks = probability >= (self._leave if self._speaks else self._enter)
        return self._speaks

    def _gains(self, sound: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], list[bool]]:
        """Factors for the frames, (k,), and which of them, so amplified, may hold speech."""
        gains, audible = [], []
        # Not np.dot: a BLAS may round by the memory's alignment, and so by how the stream came in pieces.
        for total in np.add.reduce(np.square(sound), axis=1).tolist():
            energy = total / self.frame_samples
            self._smooth = energy if self._smooth < 0 else self._smooth + self._SMOOTHING * (energy - self._smooth)
            self._floor = min(self._floor, self._smooth)
            gain = self._gain(math.sqrt(max(self._floor, 1e-14)))
            gains.append(gain)
            like_the_floor = energy < self._FAINT and energy < self._STANDS_OUT * self._floor
            soundless = like_the_floor or energy * gain**2 < self._INAUDIBLE
            self._inaudible = self._inaudible + 1 if soundless else 0
            audible.append(self._inaudible <= self._ASKED_FRAMES)
        return np.array(gains, np.float32), audible

    def _gain(self, floor: float) -> float:
        if floor > self._NOISY_FLOOR:
            return max(min(floor / self._NOISY_FLOOR, self._LOUD_FLOOR / floor), 1.0)
        return min(max(self._LOWEST_FLOOR / floor, 1.0), self._MOST_GAIN)

    def reset(self) -> None:
        """Forgets all audio so far."""
        self._offset.reset()
        self._context = np.zeros(self._CONTEXT_SAMPLES, np.float32)
        self._hidden = self._cell = np.zeros(self._STATE_SHAPE, np.float32)
        self._speaks = False
        self._inaudible = 0
        self._smooth, self._floor = -1.0, math.inf  # none yet


@cache
def _session() -> onnxruntime.InferenceSession:
    # As it is imported, onnxruntime would begin to send usage data to its makers, and leave a file for it.
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime  # not before a server needs it: the import takes a while

    onnxruntime.disable_telemetry_events()

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # frames are far too small to divide among threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # The package itself would import torch, which only the workers need.
    package = find_spec("silero_vad")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("the Silero VAD needs silero-vad: pip install 'kibun[server]'", name="silero_vad")
    model = Path(package.origin).parent / "data" / "silero_vad_16k_sequence.onnx"
    network = silero_network.build(model.read_bytes())
    return onnxruntime.InferenceSession(network, sess_options=options, providers=["CPUExecutionProvider"])
