"""Running batches inside a worker: the interface of a model, and how the fault of one job is isolated from the others.

No torch here: a stub model needs none, and the worker starts as fast as its models allow.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from kibun.models.types import SAMPLE_RATE_HZ, Analysis, Utterance, faint_noise
from kibun.server.inference.backend import BackendError, Job, ModelInfo
from kibun.server.inference.worker_protocol import LoadOptions

WARM_UP_S = (0.25, 1.0)
"""Seconds of audio of the warm-up inferences. Of two lengths, as the cost of a batch has two parts: see `CostModel`."""

CHEAP_S = 0.3
"""Once warm-up inferences of a length took this long, the compilation of kernels (0.05 s) hardly shows in them."""

_log = logging.getLogger(__name__)


class DeviceLost(BaseException):
    """Raised by a model whose device this process can no longer use: a CUDA error, for example, is permanent.

    The worker exits and the server starts another. Not an Exception, so that nothing mistakes it for a job's fault.
    """


class ServedModel(Protocol):
    """A loaded model. `analyze` is called from several threads at once."""

    info: ModelInfo

    def analyze(self, utterances: Sequence[Utterance]) -> Sequence[Analysis]:
        """Analyse a batch of utterances that passed `Utterance.check`; return their analyses in order.

        If it raises, each utterance is tried alone; a BackendError raised for one alone is its result.
        """
        ...


@dataclass(frozen=True)
class LoadedModels:
    """Result of a `Loader`."""

    models: Sequence[ServedModel]
    slots: int  # inference threads
    batch_s: float  # seconds of audio that one batch may carry; 0: batching gains nothing
    device: str


Loader = Callable[[LoadOptions], LoadedModels]
"""Called in the worker; raises BackendError LOAD_FAILED with a message for the operator."""


class BatchRunner:
    """Checks jobs, runs them in batches and isolates the faults of one from the others. Any thread may call it."""

    def __init__(self, models: Sequence[ServedModel]) -> None:
        self._models = {model.info.name: model for model in models}
        if len(self._models) < len(models):
            raise BackendError("LOAD_FAILED", "two of the models have the same name")
        if not models:
            raise BackendError("LOAD_FAILED", "no model to load")

    def warm_up(self, audio_s: float) -> float:
        """Analyse faint noise of this many seconds with each model; return the seconds that it takes the first one.

        The first time includes the compilation of kernels, so it is analysed again where that costs next to nothing.
        Raises BackendError LOAD_FAILED.
        """
        default, *others = self._models
        for name in others:
            self._timed(name, audio_s)
        times_s = [self._timed(default, audio_s)]
        while len(times_s) < 3 and sum(times_s) < CHEAP_S:
            times_s.append(self._timed(default, audio_s))
        return min(times_s)

    def _timed(self, name: str, audio_s: float) -> float:
        """Seconds that faint noise takes a model. Raises BackendError LOAD_FAILED."""
        info = self._models[name].info
        noise = faint_noise(info.vector_size, max(round(SAMPLE_RATE_HZ * audio_s), info.min_samples))
        began = time.perf_counter()
        (outcome,) = self.run([Job(name, noise)])
        if isinstance(outcome, BackendError):
            raise BackendError("LOAD_FAILED", f"{name}: the warm-up inference failed: {outcome.message}")
        return time.perf_counter() - began

    def run(self, jobs: Sequence[Job]) -> list[Analysis | BackendError]:
        """Run the jobs, one batch per model; return one entry per job, in order."""
        outcomes: dict[int, Analysis | BackendError] = {}
        by_model: dict[str, list[int]] = {}
        for index, job in enumerate(jobs):
            error = self._refusal(job)
            if error is not None:
                outcomes[index] = error
            else:
                by_model.setdefault(job.model, []).append(index)
        for name, indices in by_model.items():
            answers = self._run_isolated(self._models[name], [jobs[index].utterance for index in indices])
            outcomes.update(zip(indices, answers, strict=True))
        return [outcomes[index] for index in range(len(jobs))]

    def _run_isolated(self, model: ServedModel, utterances: Sequence[Utterance]) -> list[Analysis | BackendError]:
        """Run the utterances together; if that fails (e.g. out of memory), run each alone: only the cause fails."""
        try:
            return [_finite(analysis) for analysis in model.analyze(utterances)]
        except Exception as error:
            _log.error("a batch failed", extra={"count": len(utterances)}, exc_info=error)
            if len(utterances) == 1:
                unnamed = BackendError("MODEL_FAILED", f"the model raised {type(error).__name__}")
                return [error if isinstance(error, BackendError) else unnamed]
        return [outcome for utterance in utterances for outcome in self._run_isolated(model, [utterance])]

    def _refusal(self, job: Job) -> BackendError | None:
        """Why a job must not reach a model, if so."""
        model = self._models.get(job.model)
        if model is None:
            return BackendError("UNKNOWN_MODEL", f"no model {job.model!r}; loaded: {', '.join(self._models)}")
        info = model.info
        try:
            job.utterance.check(
                vector_size=info.vector_size, min_samples=info.min_samples, max_samples=info.max_samples
            )
        except ValueError as error:
            return BackendError("INVALID_JOB", str(error))
        return None


def _finite(analysis: Analysis) -> Analysis | BackendError:
    """The analysis, or an error in its place: whatever the loader, no NaN leaves a worker."""
    if np.isfinite(analysis.vector).all() and np.isfinite(analysis.numbers()).all():
        return analysis
    return BackendError("MODEL_NONFINITE", "the model gave a value that is not finite")
