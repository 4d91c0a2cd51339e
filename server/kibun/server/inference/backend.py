"""The interfaces between a session, the queue and whatever runs the models.

Plain data and two Protocols: importing this needs neither torch nor grpc. A backend is stateless: an `Utterance`
carries the audio *and* what is already known of its speaker, an `Analysis` the estimates *and* the new utterance
vector. Any worker on any machine can therefore answer any job, and a crash loses nothing.
"""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, Protocol

from kibun.models import evidence
from kibun.models.types import Analysis, Evidence, Utterance

Urgency = Literal["final", "eager", "interim"]
"""Why an analysis is wanted, the most urgent first. Eager: the utterance has ended unless its speaker goes on."""


@dataclass(frozen=True, eq=False, slots=True, weakref_slot=True)
class Job:
    """An utterance, and the model that is to analyse it."""

    model: str
    utterance: Utterance


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a loaded model is and what it can estimate."""

    name: str
    version: str
    vector_size: int  # D of `Utterance.history` and `Analysis.vector`
    min_samples: int = 400  # shorter audio cannot be analysed (receptive field of HuBERT's front)
    max_samples: int | None = None
    supports_emotion: bool = True  # valence and arousal
    supports_personality: bool = True
    supports_conversation_personality: bool = True
    synthetic: bool = False  # a task learnt from generated speech: tells you nothing about real people
    provenance: str = ""  # what learnt from generated speech, in words; "": nothing did
    trained: bool = True
    emotions: tuple[str, ...] = ("valence", "arousal")  # dimensions that it estimates; emotion is both
    precision: str = ""  # of its matrix products, and why, in words for the operator
    slowed: bool = False  # by that precision, which was asked for
    conditioned: bool = True  # its emotion estimate depends on traits, given or predicted
    emotion_rescaled_from: tuple[float, float] | None = None  # scale of its training labels, where that was not 1..5
    license: str = ""  # of its weights, as an SPDX expression; "": not stated
    checksum: str = ""  # of the bundle's configuration and weights, in hex; "": it is no bundle
    evidence: tuple[Evidence, ...] | None = None  # what heard traits are worth, by rising number of utterances

    @property
    def bundle(self) -> str:
        """What made its vectors, in hex: those of another bundle are of no use to it, be it of the same name."""
        return self.checksum or f"{self.vector_size:08x}"

    def evidence_after(self, utterance_count: int) -> Evidence | None:
        """What conversation-level traits are worth after this many utterances; None: unknown."""
        return evidence.after(self.evidence or (), utterance_count)

    @property
    def requires_given_traits(self) -> bool:
        """Whether its emotion estimate needs traits that it does not predict itself."""
        return self.supports_emotion and self.conditioned and not self.supports_personality


class BackendError(Exception):
    """A job, or the start of the backend, failed for good; where a retry could help, it has been made.

    Reasons: `WORKER_FAILED` (the worker died or hung on both attempts), `NO_WORKER` (none could be started for a long
    time; another server may have one), `MODEL_NONFINITE` (the model returned NaN or infinity), `MODEL_FAILED` (the
    model raised), `UNKNOWN_MODEL`, `INVALID_JOB` (malformed audio or history), `LOAD_FAILED` (no worker could be
    started), `UNAVAILABLE` (not started, draining or closed).
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(reason, message)
        self.reason = reason
        self.message = message

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"


class Outcomes(list[Analysis | BackendError]):
    """What became of a batch: an entry per job, in order; a job that failed has an error as its entry."""

    def __init__(self, entries: Iterable[Analysis | BackendError], helped_s: float | None = None) -> None:
        """helped_s: seconds that all slots together worked on the batch, where those that were idle helped; else None.

        Then the time until the answer does not tell how much the backend can carry.
        """
        super().__init__(entries)
        self.helped_s = helped_s


class Superseded(Exception):
    """An eager or interim job is not computed: its stream asked for a newer one or the final, or the server is busy.

    Never raised for finals. It is no fault: the caller goes on without this estimate.
    """


class Backend(Protocol):
    """Runs models. `worker_pool.LocalBackend` is the implementation."""

    @property
    def slots(self) -> int:
        """How many `infer` calls can usefully be in flight at once; known after `start`."""
        ...

    @property
    def batch_s(self) -> float:
        """Seconds of audio that one batch may carry; 0 where batching gains nothing: one job each.

        An upper limit: the measured cost of batches decides whether a larger one pays.
        """
        ...

    @property
    def costs(self) -> Sequence[tuple[float, float]]:
        """Seconds of audio of each warm-up inference of the default model, and seconds that it took; after `start`."""
        ...

    async def start(self) -> tuple[ModelInfo, ...]:
        """Load the models; return them, the default first, once a warm-up inference has succeeded.

        Raises BackendError LOAD_FAILED with a message for the operator that names the file.
        """
        ...

    async def infer(self, jobs: Sequence[Job]) -> Outcomes:
        """Analyse a batch; return what became of each job.

        Raises BackendError only where no job could be tried at all.
        """
        ...

    def ready(self) -> bool:
        """Whether a job submitted now would start now; False while no worker is alive."""
        ...

    def down_s(self) -> float:
        """Seconds for which no worker has been alive; 0 while one is."""
        ...

    async def drain(self) -> None:
        """Refuse new jobs and wait for those in flight."""
        ...

    async def close(self) -> None:
        """Stop at once; jobs in flight get BackendError UNAVAILABLE. Idempotent."""
        ...


class Analyzer(Protocol):
    """The queue as a session sees it: one awaitable call per utterance. `batcher.Batcher` is the implementation."""

    @property
    def full(self) -> bool:
        """Whether finals need all of the machine: request nothing that is not final."""
        ...

    @property
    def stretch(self) -> float:
        """How many times further apart interims should be than on an idle server; >= 1, grows with the load."""
        ...

    def ready(self) -> bool:
        """Whether a worker is alive or expected soon. Jobs submitted while none is wait for the next one."""
        ...

    def admits(self, *, running: bool) -> bool:
        """Whether finals are predicted to wait no longer than they may, if one more stream opened beside the others.

        running: the stream continues a conversation that has begun; they may wait longer for such a stream.
        """
        ...

    def stream(self, stream_id: str, *, running: bool = False) -> AbstractContextManager[None]:
        """Entered for as long as a stream is open: the speech expected of it counts as load; running: see `admits`."""
        ...

    async def submit(self, job: Job, *, stream_id: str, urgency: Urgency, deadline_s: float) -> Analysis:
        """Analyse one utterance; cancelling the awaiting task drops the job if it is still queued.

        deadline_s: seconds from now by which the answer is wanted. It orders the queue; a late final is still computed.
        A final waits while the queue is full (backpressure). Of what is not final, a stream has at most one job queued.
        A final whose very `job` object was submitted as eager before takes that answer, or its place in the queue: it
        is computed once.

        Raises Superseded (never for a final) or BackendError.
        """
        ...
