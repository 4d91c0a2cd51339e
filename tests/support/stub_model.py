"""A model without weights, run by real worker processes: `--loader tests.support.stub_model:load`.

Options follow its name, as in `stub?delay_s=0.02&s_per_audio_s=0.1&slots=4`. The first sample of an utterance can ask
for a fault, unless `faults=0`: for audio in which any sample may come first. `gate` is the path of a `Barrier`.
"""

import itertools
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import parse_qsl, quote

import numpy as np

from kibun.models.types import Analysis, Traits, Utterance, faint_noise
from kibun.server.inference.backend import BackendError, ModelInfo
from kibun.server.inference.runner import LoadedModels
from kibun.server.inference.worker_protocol import LoadOptions

VECTOR_SIZE = 4

# First samples that ask for a fault; exact in float32.
POISON = 0.5  # the process is killed
NAN = 0.25  # an estimate is NaN
RAISES = 0.125  # the model raises
HANGS = 0.0625  # never answered
WAITS = 0.03125  # answered once the gate is open
WAITING_POISON = 0.015625  # the process is killed once the gate is open


class Barrier:
    """A folder through which a test sees utterances arrive in a worker, and decides when they go on."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(exist_ok=True)

    def __str__(self) -> str:
        """For the option `gate`."""
        return quote(str(self._folder))

    @property
    def arrived(self) -> int:
        """How many utterances have come to the gate so far, in any worker."""
        return len(list(self._folder.glob("arrived-*")))

    def open(self) -> None:
        """Let all of them go on, and those that come later."""
        (self._folder / "open").touch()

    def wait(self) -> None:
        """In the worker: arrive, and wait until the gate is open."""
        (self._folder / f"arrived-{os.getpid()}-{time.monotonic_ns()}").touch()
        while not (self._folder / "open").exists():
            time.sleep(0.002)


class StubModel:
    """Estimates are plain functions of the audio, so that tests can tell which utterance they belong to."""

    def __init__(
        self,
        name: str,
        delay_s: float = 0.0,
        s_per_audio_s: float = 0.0,
        hangs_after: float = float("inf"),
        hang_s: float = 3600,
        gate: Barrier | None = None,
    ) -> None:
        self.info = ModelInfo(
            name, "1", VECTOR_SIZE, max_samples=30 * 16_000, synthetic=True, license="LicenseRef-stub"
        )
        self._delay_s = delay_s
        self._s_per_audio_s = s_per_audio_s
        self.faults = True
        self._hang_s = hang_s
        self._hangs_after = hangs_after  # batches, those of the warm-up not counted
        self._batches = itertools.count(1)
        self._gate = gate

    def analyze(self, utterances: Sequence[Utterance]) -> list[Analysis]:
        if not _is_warm_up(utterances[0]) and next(self._batches) > self._hangs_after:
            time.sleep(self._hang_s)
        time.sleep(self._delay_s + self._s_per_audio_s * sum(utterance.seconds for utterance in utterances))
        return [self._analyze(utterance) for utterance in utterances]

    def _analyze(self, utterance: Utterance) -> Analysis:
        what = float(utterance.audio[0]) if self.faults else 0.0
        if what in (WAITS, WAITING_POISON):
            assert self._gate is not None, "such an utterance needs a gate"
            self._gate.wait()
        if what in (POISON, WAITING_POISON):
            os.kill(os.getpid(), signal.SIGKILL)
        if what == RAISES:
            raise ValueError(f"the audio starts with {what}")
        if what == HANGS:
            time.sleep(3600)
        level = float(np.sqrt(np.mean(np.square(utterance.audio, dtype=np.float64))))
        traits = _traits(level)
        so_far = _traits(float(np.mean([*utterance.history[:, 1], np.float16(level)], dtype=np.float64)))
        known = utterance.given_traits or so_far
        heard = utterance.emotion and not utterance.given_traits
        vector = np.array([len(utterance.history), level, utterance.seconds, os.getpid() % 1000], np.float16)
        return Analysis(
            vector,
            utterance_traits=traits if utterance.personality else None,
            average_traits=so_far if utterance.personality else None,
            conversation_traits=so_far if utterance.personality else None,
            condition_traits=known if utterance.emotion else None,
            condition_source=None if not utterance.emotion else "given" if utterance.given_traits else "conversation",
            condition_weight=(1 - 1 / (2 + len(utterance.history)),) * 5 if heard else None,
            valence=3.0 if utterance.emotion else None,
            arousal=(float("nan") if what == NAN or self.info.name == "nan" else 1.0 + 4.0 * min(level, 1.0))
            if utterance.emotion
            else None,
        )


def _is_warm_up(utterance: Utterance) -> bool:
    return np.array_equal(utterance.audio, faint_noise(VECTOR_SIZE, len(utterance.audio)).audio)


def _traits(level: float) -> Traits:
    return (4.0 + 3.0 * min(level, 1.0), 4.0, 4.0, 4.0, 4.0)


def load(options: LoadOptions) -> LoadedModels:
    """Make one stub per model name; a name with a slash must be an existing path, some other names fail to load."""
    models = []
    slots = options.own_threads(2)
    batch_s = 8.0
    for text in options.models:
        name, _, query = text.partition("?")
        options_of_it = dict(parse_qsl(query))
        gate = Barrier(Path(path)) if (path := options_of_it.pop("gate", "")) else None
        settings = {key: float(value) for key, value in options_of_it.items()}
        if "/" in name and not os.path.exists(name):
            raise BackendError("LOAD_FAILED", f"{name}: no such file")
        if name == "crash":
            os.kill(os.getpid(), signal.SIGKILL)
        if name == "bug":
            raise KeyError("layer_weights")
        if name == "sleepy":
            if gate is not None:
                gate.wait()
            time.sleep(3600)
        time.sleep(settings.get("load_s", 0.0))
        print("loading", name)  # a stray print must not garble the protocol
        slots = int(settings.get("slots", slots))
        batch_s = settings.get("batch_s", batch_s)
        delays = settings.get("delay_s", 0.0), settings.get("s_per_audio_s", 0.0)
        hangs = settings.get("hangs_after", float("inf")), settings.get("hang_s", 3600)
        model = StubModel(name, *delays, *hangs, gate)
        model.faults = settings.get("faults", 1) != 0
        models.append(model)
    return LoadedModels(models, slots, batch_s, "cpu")


def load_on_cpu_only(options: LoadOptions) -> LoadedModels:
    """Fail on any device but "cpu"."""
    if options.device != "cpu":
        raise BackendError("LOAD_FAILED", f"{options.device}: no such device")
    return load(options)
