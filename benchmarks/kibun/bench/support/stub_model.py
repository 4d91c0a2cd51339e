"""Models without weights, to measure everything but inference: `--loader kibun.bench.support.stub_model:load`.

`load_recalling` loads one whose estimates show whether everything arrived, once and in order.
"""

import time
import zlib
from collections.abc import Sequence

import numpy as np

from kibun.models.types import NEUTRAL_TRAITS, Analysis, Traits, Utterance
from kibun.server.inference.backend import ModelInfo
from kibun.server.inference.runner import LoadedModels
from kibun.server.inference.worker_protocol import LoadOptions

VECTOR_SIZE = 768  # as HuBERT-base's


class ConstantModel:
    """Reads all of the audio once and estimates nothing from it."""

    def __init__(self, name: str) -> None:
        self.info = ModelInfo(name, "1", VECTOR_SIZE, synthetic=True)

    def analyze(self, utterances: Sequence[Utterance]) -> list[Analysis]:
        """Each utterance's mean sample as its vector, everything else in the middle of its scale."""
        return [self._analyze(utterance) for utterance in utterances]

    def _analyze(self, utterance: Utterance) -> Analysis:
        vector = np.full(VECTOR_SIZE, utterance.audio.mean(), np.float16)
        traits = NEUTRAL_TRAITS
        return Analysis(vector, traits, traits, traits, traits, "conversation", valence=3.0, arousal=3.0)


class RecallingModel:
    """Estimates are checksums, spread over their scales: one other sample, or one earlier utterance that is missing,
    doubled or in another place, makes them others. Takes a little time, as models do.
    """

    LATENCY_S = 0.01
    S_PER_AUDIO_S = 0.002

    def __init__(self, name: str) -> None:
        self.info = ModelInfo(name, "1", 8, synthetic=True)

    def analyze(self, utterances: Sequence[Utterance]) -> list[Analysis]:
        """Traits of the utterance and emotion follow the audio, traits of the conversation the history too."""
        time.sleep(self.LATENCY_S + self.S_PER_AUDIO_S * sum(utterance.seconds for utterance in utterances))
        return [self._analyze(utterance) for utterance in utterances]

    def _analyze(self, utterance: Utterance) -> Analysis:
        own = _checksum(utterance.audio.tobytes())
        so_far = _checksum(utterance.history.tobytes(), own)
        vector = np.array([own >> shift & 1023 for shift in (0, 10, 20)] + [0] * 5, np.float16)  # exact in float16
        traits, conversation = _traits(own), _traits(so_far)
        condition = utterance.given_traits or conversation
        emotion = _checksum(np.array(condition, np.float32).tobytes(), own)
        return Analysis(
            vector,
            traits if utterance.personality else None,
            conversation if utterance.personality else None,
            conversation if utterance.personality else None,
            condition if utterance.emotion else None,
            None if not utterance.emotion else "given" if utterance.given_traits else "conversation",
            valence=_scaled(emotion, 0, 1.0, 5.0) if utterance.emotion else None,
            arousal=_scaled(emotion, 16, 1.0, 5.0) if utterance.emotion else None,
        )


def load(options: LoadOptions) -> LoadedModels:
    """One stub per name, two batches at once."""
    return LoadedModels([ConstantModel(name) for name in options.models], options.own_threads(2), 0.0, "cpu")


def load_recalling(options: LoadOptions) -> LoadedModels:
    """One recalling stub per name, two batches at once, several jobs in each."""
    return LoadedModels([RecallingModel(name) for name in options.models], options.own_threads(2), 8.0, "cpu")


def _checksum(data: bytes, start: int = 0) -> int:
    return zlib.crc32(data, start)


def _traits(checksum: int) -> Traits:
    first, second, third, fourth, fifth = (_scaled(checksum, shift, 1.0, 7.0) for shift in (0, 5, 10, 15, 20))
    return first, second, third, fourth, fifth


def _scaled(checksum: int, shift: int, low: float, high: float) -> float:
    """Twelve bits of a checksum as a number from low to high."""
    return low + (high - low) * (checksum >> shift & 4095) / 4095
