"""What the session asks of whatever runs the models, and what it gets back.

Plain data and two Protocols: neither torch nor grpc is needed to import this. A backend is stateless: an `Utterance`
carries the audio *and* what is already known of its speaker, an `Analysis` the estimates *and* the new utterance
vector. Any worker on any machine can therefore answer any job, and a crash loses nothing.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from kibun.models.types import Analysis, Traits, Utterance


@dataclass(frozen=True, eq=False, slots=True)
class Job:
    """An utterance, and the model that is to analyse it."""

    model: str
    utterance: Utterance


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a loaded model is and what it can do."""

    name: str
    version: str
    vector_size: int  # D of `Utterance.history` and `Analysis.vector`
    min_samples: int = 400  # shorter audio cannot be analysed (receptive field of HuBERT's front)
    max_samples: int | None = None
    supports_emotion: bool = True  # valence and arousal
    supports_personality: bool = True
    supports_conversation_personality: bool = True
    synthetic: bool = False  # trained on generated speech: tells you nothing about real people
    trained: bool = True
    emotions: tuple[str, ...] = ("valence", "arousal")  # dimensions that it estimates; one alone is no emotion
    precision: str = ""  # that it runs in, and why, in words for the operator
    conditioned: bool = True  # emotion is conditioned on traits, given or its own
    emotion_rescaled_from: tuple[float, float] | None = None  # scale of the labels, where it was not 1..5
    # (utterance count, root-mean-square error per trait with that much evidence), by rising count; None: unknown
    expected_error: tuple[tuple[int, Traits], ...] | None = None

    @property
    def requires_given_traits(self) -> bool:
        """Whether its emotion needs traits that it does not estimate itself."""
        return self.supports_emotion and self.conditioned and not self.supports_personality


class BackendError(Exception):
    """A job (or the start of the backend) failed for good; it has been retried where that could help.

    Reasons: `WORKER_FAILED` (the worker died or hung on both attempts), `NO_WORKER` (none could be started for a
    long time; another server may have one), `MODEL_NONFINITE` (the model gave
    NaN or infinity), `MODEL_FAILED` (the model raised), `UNKNOWN_MODEL`, `INVALID_JOB` (shape, dtype or
    length of the audio or history), `LOAD_FAILED` (no worker could be started), `UNAVAILABLE` (not
    started, draining or closed).
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(reason, message)
        self.reason = reason
        self.message = message

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"


class Superseded(Exception):
    """An interim is not computed: its stream asked for a newer one or for the final, or there is no room.

    Only ever raised for interims, and not a fault: the caller goes on without this interim.
    """


class Backend(Protocol):
    """Runs models. `LocalBackend` is the default implementation; all of them pass one contract-test suite."""

    @property
    def slots(self) -> int:
        """How many `infer` calls may usefully be in flight at once; known after `start`."""
        ...

    @property
    def batch_s(self) -> float:
        """Seconds of audio that one batch may carry; 0 where batching gains nothing: one job each.

        An upper limit: whether a batch pays is decided by what batches were measured to cost.
        """
        ...

    async def start(self) -> tuple[ModelInfo, ...]:
        """Load the models; return them, the default first, once a warm-up inference has succeeded.

        Raises BackendError LOAD_FAILED with a message for the operator, naming the file at fault.
        """
        ...

    async def infer(self, jobs: Sequence[Job]) -> list[Analysis | BackendError]:
        """Analyse a batch: one entry per job, in order. A failed job is its own error and spoils no other.

        Raises BackendError only where no job could be tried at all.
        """
        ...

    def ready(self) -> bool:
        """Whether a job handed in now would be started now (False while workers are being respawned)."""
        ...

    def down_s(self) -> float:
        """Seconds for which no worker has lived, 0 while one does."""
        ...

    async def drain(self) -> None:
        """Refuse new jobs, wait for those in flight."""
        ...

    async def close(self) -> None:
        """Stop at once; jobs in flight get BackendError UNAVAILABLE. Idempotent."""
        ...


class Analyzer(Protocol):
    """What a session sees: one awaitable call per utterance. `batcher.Batcher` is the implementation."""

    @property
    def full(self) -> bool:
        """Whether finals need the machine: ask for no interim."""
        ...

    @property
    def stretch(self) -> float:
        """How many times further apart interims should be than on an idle server; >= 1, grows with the load."""
        ...

    def ready(self) -> bool:
        """Whether a worker lives or can be expected soon. What is submitted while none does waits for the next."""
        ...

    def admits(self, *, running: bool) -> bool:
        """Whether the finals of one more stream fit beside those of the open ones.

        `running`: it continues a conversation that is under way; such streams get the last of the room.
        """
        ...

    def stream(self, stream_id: str) -> AbstractContextManager[None]:
        """Entered while a stream is open. What it is expected to say takes room, until it ends."""
        ...

    async def submit(self, job: Job, *, stream_id: str, final: bool, deadline_s: float) -> Analysis:
        """Analyse one utterance; cancelling the awaiting task drops the job if it is still queued.

        `deadline_s`: seconds from now by which the answer is wanted. It orders the queue; a late final is
        computed all the same. A final waits while the queue has no room (backpressure). A stream has at
        most one interim queued.

        Raises Superseded (interims only) or BackendError.
        """
        ...
