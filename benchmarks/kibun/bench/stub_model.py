"""In place of a model where what is measured is everything else: `--loader kibun.bench.stub_model:load`."""

from collections.abc import Sequence

import numpy as np

from kibun.server.backend import Job, ModelInfo, Result, Traits
from kibun.server.runner import LoadedModels
from kibun.server.wire import LoadOptions

VECTOR_SIZE = 768  # as HuBERT-base's
_TRAITS: Traits = (4.0, 4.0, 4.0, 4.0, 4.0)


class StubModel:
    """Reads all of the audio once and estimates nothing from it."""

    def __init__(self, name: str) -> None:
        self.info = ModelInfo(name, "1", VECTOR_SIZE, synthetic=True)

    def analyze(self, jobs: Sequence[Job]) -> list[Result]:
        """Each job's mean sample as its vector, everything else in the middle of its scale."""
        return [self._analyze(job) for job in jobs]

    def _analyze(self, job: Job) -> Result:
        vector = np.full(VECTOR_SIZE, job.audio.mean(), np.float16)
        return Result(vector, _TRAITS, _TRAITS, _TRAITS, _TRAITS, "conversation", valence=3.0, arousal=3.0)


def load(options: LoadOptions) -> LoadedModels:
    """One stub per name, two batches at once."""
    return LoadedModels([StubModel(name) for name in options.models], options.threads or 2, 0.0, "cpu")
