"""The worker process: the only place that runs a model.

`worker_process.WorkerProcess` spawns one per device and exchanges messages with it (`worker_protocol`) through its
stdin and stdout. What it writes to stderr is passed on by the server.

Thread contract. The main thread loads the models and from then on only reads batches. `slots` inference threads, a
`kibun.models.crew.Crew`, share the weights, which are read-only after loading; each leads one batch at a time, with one
intra-op thread on a CPU, and while it has none it helps with the others' (`kibun.models.packed` cuts them into pieces).
The thread that led a batch writes the answer, under one lock.

A job that cannot be analysed gets its own error and harms no other. The worker exits as soon as its stdin ends: the
server has closed it or died. It ignores SIGINT and SIGTERM, as only the server knows what is in flight.
"""

import faulthandler
import gc
import importlib
import io
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from kibun.models import provenance
from kibun.models._torch import import_torch
from kibun.models.crew import Crew, helped_s
from kibun.models.files import BundleError, fingerprint, resolve_bundle, verify
from kibun.models.types import EMOTIONS, Analysis, Utterance
from kibun.server.inference.backend import BackendError, ModelInfo
from kibun.server.inference.runner import WARM_UP_S, BatchRunner, DeviceLost, LoadedModels, Loader
from kibun.server.inference.worker_protocol import (
    Answers,
    Batch,
    LoadFailed,
    LoadOptions,
    Ready,
    encode,
    read_message_blocking,
)
from kibun.server.inference.worker_start import IMPORT_EARLY
from kibun.server.observability import logs

if TYPE_CHECKING:
    from kibun.models.packed_model import PackedModel

CANNOT_GO_ON = 70
"""Exit code after an error that no job caused."""

ORPHAN_CHECK_S = 1.0

CPU_BATCH_S = 30.0  # packed, mixed lengths cost nothing; the batcher decides whether a batch is worth the wait
CUDA_BATCH_S = 60.0  # a guess, as is the next: no GPU has been measured yet
CUDA_THREADS = 2  # one prepares a batch while the other's runs

_log = logging.getLogger(__name__)


def main() -> None:
    """Entry point of the process: load the models, report them, then run batches until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    faulthandler.enable()
    gc.disable()  # until the models are loaded: imports make many objects and hardly any garbage
    requests, answers = _take_over_stdio()
    if IMPORT_EARLY in sys.argv:
        _importing.start()
    try:
        options = read_message_blocking(requests)
        logs.configure(options.log_level, options.log_format, front=options.front)
        sys.path.extend(entry for entry in options.import_path if entry not in sys.path)
        if options.server_pid is not None:
            threading.Thread(target=_end_with_server, args=(options.server_pid,), daemon=True).start()
        _serve(options, requests, answers)
        code = 0
    except (EOFError, BrokenPipeError):
        code = 0
    except BaseException:
        _log.exception("the worker cannot go on")
        code = CANNOT_GO_ON
    _end(code)


def _end_with_server(server: int) -> None:
    """Exit when the server is gone: the end of stdin is noticed only once the models are loaded, if they ever are."""
    while os.getppid() == server:
        time.sleep(ORPHAN_CHECK_S)
    os._exit(0)


def _take_over_stdio() -> tuple[io.FileIO, io.FileIO]:
    """Return the pipes from and to the server; from now on, prints go to stderr and cannot garble a message."""
    requests = os.fdopen(os.dup(0), "rb", buffering=0)
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)
    return requests, answers


def _serve(options: LoadOptions, requests: io.FileIO, answers: io.FileIO) -> None:
    send = _Sender(answers)
    try:
        module, _, function = options.loader.partition(":")
        loader: Loader = getattr(importlib.import_module(module), function)
        loaded = loader(options)
        _log.info("models are loaded")
        runner = BatchRunner(loaded.models)
        with ThreadPoolExecutor(loaded.slots) as pool:  # side by side and without help, as when busy
            costs = tuple(zip(WARM_UP_S, pool.map(runner.warm_up, WARM_UP_S), strict=True))
        crew = Crew(loaded.slots)
        _log.info("models have answered")
    except BackendError as error:
        send(LoadFailed(error.message))
        return
    except Exception as error:
        _log.exception("loading failed")
        send(LoadFailed(f"unexpected {type(error).__name__} while loading: {error}"))
        return
    gc.enable()
    infos = tuple(model.info for model in loaded.models)
    send(Ready(infos, loaded.slots, loaded.batch_s, loaded.device, costs))
    while True:
        batch: Batch = read_message_blocking(requests)
        crew.submit(partial(_answer, runner, batch, send))


def _answer(runner: BatchRunner, batch: Batch, send: "_Sender") -> None:
    try:
        send(Answers(batch.number, tuple(runner.run(batch.jobs)), helped_s()))
    except BrokenPipeError:
        os._exit(0)
    except BaseException:
        # The device is lost, or this is a bug. A batch without an answer would wait for its deadline; when the worker
        # exits, the server notices at once and tries again elsewhere.
        _log.exception("the worker cannot go on")
        _end(CANNOT_GO_ON)


def _end(code: int) -> NoReturn:
    """Not sys.exit, which would wait for inference threads whose answers are no longer read."""
    with suppress(OSError):  # of a server that is gone
        sys.stderr.flush()
    logs.flush()
    os._exit(code)


class _Sender:
    """Writes whole messages; any thread may call it."""

    def __init__(self, stream: io.FileIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()

    def __call__(self, message: object) -> None:
        with self._lock:
            for piece in encode(message):
                view = memoryview(piece).cast("B")
                while view:
                    view = view[self._stream.write(view) :]


def load_models(options: LoadOptions) -> LoadedModels:
    """Load bundles with torch; the default loader.

    Raises BackendError LOAD_FAILED naming the file, the device or the missing package.
    """
    # Imports and packing take a second and more of one core: others compute checksums meanwhile.
    checker = ThreadPoolExecutor(1)
    checks = [checker.submit(_verify, name) for name in options.models]
    checker.shutdown(wait=False)
    if _importing.is_alive():
        _importing.join()
    try:
        _import()
        import torch

        from kibun.models.analysis import NonFiniteError
        from kibun.models.precision import packed_for
        from kibun.models.stored import load_stored
    except ImportError as error:
        raise BackendError("LOAD_FAILED", f"cannot import {error.name}: pip install 'kibun[server]'") from error
    _log.info("modules are imported")
    gc.freeze()  # imported modules stay: no later collection need scan them
    torch.set_num_threads(max(1, usable_cores() // options.sharing))  # while loading; inference threads have one each
    device = _choose_device(options.device)
    models = []
    for name, check in zip(options.models, checks, strict=True):
        load = partial(load_stored, name, allow_untrained=options.allow_untrained, verified=True)
        try:
            try:
                chosen = packed_for(load, options.precision, device)
            finally:
                check.result()  # before anything is served; and a damaged file is the cause of whatever else failed
            checksum = fingerprint(resolve_bundle(name))
            models.append(BundleModel(chosen.model, chosen.reason, checksum, slowed=chosen.slower))
        except BundleError as error:
            raise BackendError("LOAD_FAILED", str(error)) from error
        except NonFiniteError as error:
            raise BackendError("LOAD_FAILED", f"{name}: {error}; try --precision fp32") from error
    torch.set_num_threads(1)
    if device == "cpu":
        return LoadedModels(models, options.own_threads(usable_cores()), CPU_BATCH_S, device)
    return LoadedModels(models, options.own_threads(CUDA_THREADS), CUDA_BATCH_S, device)


def _import() -> None:
    """Import what loads and runs bundles. Raises ImportError."""
    # Read when torch is imported, and transformers, which only a bundle with a rare activation needs.
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["HF_HUB_OFFLINE"] = "1"  # a worker loads local files only
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    import_torch()
    import kibun.models.precision
    import kibun.models.stored  # noqa: F401


def _import_early() -> None:
    with suppress(ImportError):  # `load_models` meets it again
        _import()


_importing = threading.Thread(target=_import_early, daemon=True)
"""Started where the worker is, before its options say what to load."""


def _verify(name: str) -> None:
    verify(resolve_bundle(name))


class BundleModel:
    """A bundle as a runner.Model: any number of threads may call `analyze`; none writes the weights."""

    def __init__(self, bundle: "PackedModel", precision: str, checksum: str = "", *, slowed: bool = False) -> None:
        """precision: of its matrix products, and why, in words. slowed: see `ModelInfo`."""
        self._bundle = bundle
        self._streams = threading.local()
        config, rescaled = bundle.config, bundle.config.emotion_rescaled_from
        self.info = ModelInfo(
            name=config.bundle_name,
            version=config.bundle_version,
            vector_size=bundle.vector_size,
            min_samples=bundle.min_samples,
            supports_emotion=set(config.emotions) == set(EMOTIONS),
            supports_personality=config.supports_personality,
            supports_conversation_personality=config.supports_personality,
            synthetic=config.synthetic,
            provenance=provenance.describe(config.tasks, config.synthetic_parts or ()),
            trained=config.trained,
            emotions=config.emotions,
            precision=precision,
            slowed=slowed,
            conditioned=config.conditioned,
            emotion_rescaled_from=(rescaled[0], rescaled[1]) if rescaled else None,
            license=config.license or "",
            checksum=checksum,
            evidence=bundle.evidence,
        )
        if not self.info.supports_emotion and not self.info.supports_personality:
            raise BackendError(
                "LOAD_FAILED",
                f"{config.bundle_name}: estimates {config.emotions[0]} alone, and what is served is valence and arousal"
                " together, or personality: assemble it with the other run, as in"
                " `kibun models build --valence RUN --arousal RUN --out DIR`",
            )

    def analyze(self, utterances: Sequence[Utterance]) -> list[Analysis]:
        """Analyse a batch. Raises BackendError MODEL_NONFINITE or INVALID_JOB, and DeviceLost."""
        import torch

        from kibun.models.analysis import NonFiniteError

        torch.set_num_threads(1)  # a setting of each thread
        try:
            with self._own_stream():
                return self._bundle.analyze(utterances)
        except NonFiniteError as error:
            raise BackendError("MODEL_NONFINITE", str(error)) from error
        except ValueError as error:
            raise BackendError("INVALID_JOB", str(error)) from error
        except torch.AcceleratorError as error:
            raise DeviceLost from error

    def _own_stream(self) -> AbstractContextManager[Any]:
        """On a GPU, a CUDA stream for each inference thread, so that batches of two threads overlap."""
        import torch

        if self._bundle.device.type == "cpu":
            return nullcontext()
        if not hasattr(self._streams, "own"):
            torch.cuda.synchronize(self._bundle.device)  # the weights are there
            self._streams.own = torch.cuda.Stream(self._bundle.device)  # type: ignore[no-untyped-call]
        return torch.cuda.stream(self._streams.own)


def _choose_device(wanted: str) -> str:
    import torch

    if wanted == "auto":
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise BackendError("LOAD_FAILED", f"device {wanted!r}: use auto, cpu, cuda or cuda:N") from None
    if device.type == "cpu":
        return "cpu"
    count = torch.cuda.device_count()
    if device.type != "cuda" or (device.index or 0) >= count:
        raise BackendError("LOAD_FAILED", f"device {wanted!r}: this machine has {count} CUDA devices")
    return f"cuda:{device.index or 0}"


def usable_cores(quota: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Count the cores that this process may use: those of its affinity, or a container's CPU quota if that is less."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        allowed_us, period_us = quota.read_text().split()  # "max 100000" without a quota
        return max(1, min(cores, round(int(allowed_us) / int(period_us))))
    except (OSError, ValueError):
        return cores
