"""The model as every peer loads it.

One trunk and three tails of transformers' own modules (`kibun.models.model.KibunModel`: the code that belongs to the
weights, without kibun's packed encoder, batcher or server), with the heads. A peer so gets the cheaper arithmetic of
the shared trunk as well, where three whole `HubertModel`s, as the paper deploys them, would take 1.8 times as long; and
of a batch that is computed one utterance after the other, as padding halves the throughput of a CPU.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from kibun.models.bundle import load_bundle
from kibun.models.types import Utterance
from peers.settings import WORKERS, Settings


class Model:
    """Loaded; `analyze` may be called by several threads at once."""

    def __init__(self, settings: Settings) -> None:
        torch.set_num_threads(settings.threads)
        self._model = load_bundle(settings.bundle, allow_untrained=True).train(False)
        (Path(os.environ[WORKERS]) / str(os.getpid())).touch()

    def analyze(self, batch: Sequence[bytes]) -> list[dict[str, float]]:
        """Valence and arousal of utterances, each LINEAR16 at 16 kHz, analysed as the first of a conversation."""
        nothing = np.empty((0, self._model.vector_size), np.float16)
        audio = [np.frombuffer(pcm, "<i2").astype(np.float32) / np.float32(32768) for pcm in batch]
        found = self._model.analyze([Utterance(samples, nothing) for samples in audio])
        return [{"valence": one.valence or 0.0, "arousal": one.arousal or 0.0} for one in found]
