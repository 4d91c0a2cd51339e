"""What runs inside a worker: messages, batches, and the real loader with a tiny bundle that is made here."""

import asyncio
import io
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from kibun.models.files import write_checksums
from kibun.models.types import Analysis, Utterance
from kibun.server.inference import worker
from kibun.server.inference import worker_protocol as protocol
from kibun.server.inference.backend import BackendError, Job
from kibun.server.inference.runner import BatchRunner
from kibun.server.inference.worker_pool import DEFAULT_LOADER, LocalBackend
from tests.support import stub_model

# --- messages --------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True, scope="module")
def own_environment() -> Iterator[None]:
    """`load_models` sets variables of its process, which is the tests' own here; other tests need the hub."""
    with mock.patch.dict(os.environ):
        yield


class Drip(io.RawIOBase):
    """A pipe that gives a few bytes at a time."""

    def __init__(self, data: bytes, step: int) -> None:
        self._data, self._step, self._at = data, step, 0

    def readinto(self, buffer: Any) -> int:
        piece = self._data[self._at : self._at + min(self._step, len(buffer))]
        buffer[: len(piece)] = piece
        self._at += len(piece)
        return len(piece)


def a_batch() -> protocol.Batch:
    audio = np.linspace(0, 1, 3000, dtype=np.float32)
    history = np.ones((3, 4), np.float16)
    return protocol.Batch(
        7,
        (Job("a", Utterance(audio, history[:0])), Job("b", Utterance(audio[::2], history, (1.0, 2.0, 3.0, 4.0, 5.0)))),
    )


@settings(max_examples=20)
@given(st.integers(1, 9000))
def test_messages_survive_a_pipe_that_splits_them_anywhere(step: int) -> None:
    frame = b"".join(protocol.encode(a_batch()))
    batch = protocol.read_message_blocking(Drip(frame, step))

    async def read_in_server() -> protocol.Batch:
        reader = asyncio.StreamReader()
        for start in range(0, len(frame), step):
            reader.feed_data(frame[start : start + step])
        message: protocol.Batch = await protocol.read_message(reader)
        reader.feed_data(frame[:10])
        reader.feed_eof()
        with pytest.raises(EOFError):
            await protocol.read_message(reader)
        return message

    for got in (batch, asyncio.run(read_in_server())):
        assert got.number == 7
        for sent, received in zip(a_batch().jobs, got.jobs, strict=True):
            assert received.model == sent.model
            assert received.utterance.given_traits == sent.utterance.given_traits
            np.testing.assert_array_equal(received.utterance.audio, sent.utterance.audio)
            np.testing.assert_array_equal(received.utterance.history, sent.utterance.history)
    assert batch.jobs[0].utterance.audio.flags.writeable, "torch demands writable memory"


def test_end_of_file_inside_a_message_is_an_eof_error() -> None:
    frame = b"".join(protocol.encode(a_batch()))
    for length in (0, 2, 11, len(frame) - 1):
        with pytest.raises(EOFError):
            protocol.read_message_blocking(Drip(frame[:length], 1 << 16))


def test_audio_is_not_copied_into_the_frame() -> None:
    audio = np.zeros(160_000, np.float32)
    pieces = protocol.encode(protocol.Batch(1, (Job("a", Utterance(audio, np.zeros((0, 4), np.float16))),)))
    assert any(
        np.shares_memory(np.frombuffer(piece, np.uint8), audio) for piece in pieces if len(piece) == audio.nbytes
    )
    assert sum(len(piece) for piece in pieces) < audio.nbytes + 1000


# --- batches ---------------------------------------------------------------------------------------------------------


class Recorder(stub_model.StubModel):
    """Records the sizes of its batches."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.sizes: list[int] = []

    def analyze(self, utterances: Sequence[Utterance]) -> list[Analysis]:
        self.sizes.append(len(utterances))
        return super().analyze(utterances)


def job(first: float = 0.1, *, model: str = "a", samples: int = 8000, vectors: NDArray[Any] | None = None) -> Job:
    history = np.zeros((0, 4), np.float16) if vectors is None else vectors
    return Job(model, Utterance(np.full(samples, first, np.float32), history))


def test_a_failing_batch_is_run_one_by_one() -> None:
    model = Recorder("a")
    outcomes = BatchRunner([model]).run([job(), job(stub_model.RAISES), job()])
    assert model.sizes == [3, 1, 1, 1]
    assert [isinstance(outcome, Analysis) for outcome in outcomes] == [True, False, True]


def test_each_model_gets_one_batch() -> None:
    models = [Recorder("a"), Recorder("b")]
    outcomes = BatchRunner(models).run([job(), job(0.2, model="b"), job(0.3), job(0.4, model="b")])
    assert [model.sizes for model in models] == [[2], [2]]
    assert [o.arousal for o in outcomes if isinstance(o, Analysis)] == pytest.approx([1.4, 1.8, 2.2, 2.6])


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (job(model="c"), "UNKNOWN_MODEL"),
        (job(samples=399), "INVALID_JOB"),
        (job(samples=30 * 16_000 + 1), "INVALID_JOB"),
        (job(float("nan")), "INVALID_JOB"),
        (job(float("inf")), "INVALID_JOB"),
        (job(vectors=np.zeros((2, 5), np.float16)), "INVALID_JOB"),
        (job(vectors=np.zeros((2, 4), np.float32)), "INVALID_JOB"),
        (job(vectors=np.zeros(4, np.float16)), "INVALID_JOB"),
        (Job("a", Utterance(np.zeros(8000), np.zeros((0, 4), np.float16))), "INVALID_JOB"),  # type: ignore[arg-type]
        (Job("a", Utterance(np.zeros((2, 8000), np.float32), np.zeros((0, 4), np.float16))), "INVALID_JOB"),
    ],
)
def test_malformed_jobs_never_reach_a_model(bad: Job, reason: str) -> None:
    model = Recorder("a")
    first, second = BatchRunner([model]).run([bad, job()])
    assert isinstance(first, BackendError)
    assert first.reason == reason
    assert isinstance(second, Analysis)
    assert model.sizes == [1]


def test_models_need_different_names() -> None:
    with pytest.raises(BackendError, match="same name"):
        BatchRunner([Recorder("a"), Recorder("a")])
    with pytest.raises(BackendError, match="no model"):
        BatchRunner([])


# --- real models -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the real architecture, tiny and untrained."""
    from kibun.models.bundle import KibunConfig, KibunModel

    folder = tmp_path_factory.mktemp("bundles") / "tiny"
    hubert = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "conv_dim": [8] * 7,
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 2,
    }
    KibunModel(KibunConfig(hubert=hubert, bundle_name="tiny", bundle_version="7")).save_pretrained(folder)
    return folder


def a_job() -> Job:
    """Half a second of silence."""
    return Job("tiny", Utterance(np.zeros(8000, np.float32), np.zeros((0, 16), np.float16)))


def options(*models: Path | str, device: str = "cpu", allow_untrained: bool = True) -> protocol.LoadOptions:
    names = tuple(map(str, models))
    return protocol.LoadOptions(DEFAULT_LOADER, names, device=device, allow_untrained=allow_untrained)


def loaded_model(options: protocol.LoadOptions) -> worker.BundleModel:
    loaded = worker.load_models(options)
    assert loaded.slots == worker.usable_cores() >= 1
    assert loaded.device == "cpu"
    (model,) = loaded.models
    assert isinstance(model, worker.BundleModel)
    return model


async def test_a_real_bundle_answers_through_the_worker_as_it_does_in_process(bundle: Path) -> None:
    from kibun.models.bundle import load_bundle

    backend = LocalBackend([bundle], device="cpu", threads=2, allow_untrained=True)
    (info,) = await backend.start()
    try:
        assert (info.name, info.version, info.vector_size, info.min_samples) == ("tiny", "7", 16, 400)
        assert (info.trained, info.supports_emotion, info.supports_personality) == (False, True, True)
        assert (backend.slots, backend.batch_s) == (2, worker.CPU_BATCH_S)
        assert info.precision == "float32: the model is too small to gain from bfloat16"
        rng = np.random.default_rng(0)
        jobs = [
            Job("tiny", Utterance(rng.normal(0, 0.1, samples).astype(np.float32), np.zeros((0, 16), np.float16), given))
            for samples, given in [(400, None), (16_000, None), (24_000, (1.0, 2.0, 3.0, 4.0, 5.0))]
        ]
        outcomes = await backend.infer(jobs)
        first = outcomes[0]
        assert isinstance(first, Analysis)
        jobs.append(Job("tiny", Utterance(jobs[1].utterance.audio, first.vector[None])))
        outcomes += await backend.infer(jobs[-1:])
    finally:
        await backend.close()
    wanted = load_bundle(bundle, allow_untrained=True).analyze([job.utterance for job in jobs])
    for got, want in zip(outcomes, wanted, strict=True):
        assert isinstance(got, Analysis), got
        np.testing.assert_allclose(got.vector, want.vector, atol=1e-3)
        for field in ("utterance_traits", "average_traits", "conversation_traits", "condition_traits"):
            assert getattr(got, field) == pytest.approx(getattr(want, field), abs=1e-4)
        assert got.condition_source == want.condition_source
        assert (got.valence, got.arousal) == pytest.approx((want.valence, want.arousal), abs=1e-4)
    last = outcomes[-1]
    assert isinstance(last, Analysis)
    assert last.utterance_traits != pytest.approx(last.average_traits, abs=1e-6), "the history counts"


def test_untrained_damaged_and_missing_bundles_are_named(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"LOAD_FAILED: .*/tiny: this bundle is untrained"):
        worker.load_models(options(bundle, allow_untrained=False))
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in bundle.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    with pytest.raises(BackendError, match=r"copy/model\.safetensors: does not match"):
        worker.load_models(options(copy))
    state = load_file(bundle / "model.safetensors")
    state["tails.personality.layers.0.attention.k_proj.bias"][3] = float("nan")
    save_file(state, copy / "model.safetensors")
    write_checksums(copy)
    with pytest.raises(BackendError, match=r"copy/model\.safetensors: tails\.personality.* holds NaN"):
        worker.load_models(options(copy))
    with pytest.raises(BackendError, match="no bundle 'nowhere'"):
        worker.load_models(options("nowhere"))


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "tpu:0", "mps", ""])
def test_impossible_devices_are_refused(bundle: Path, device: str) -> None:
    with pytest.raises(BackendError, match="device"):
        worker.load_models(options(bundle, device=device))


def test_a_container_has_as_many_cores_as_its_quota(tmp_path: Path) -> None:
    quota, cores = tmp_path / "cpu.max", worker.usable_cores(tmp_path / "absent")
    for text, expected in [
        ("max 100000", cores),
        ("50000 100000", 1),
        ("100000 100000", 1),
        ("99900000 100000", cores),
    ]:
        quota.write_text(text)
        assert worker.usable_cores(quota) == expected


@pytest.mark.parametrize(
    ("first_s", "later_s", "expected_s", "count"),
    [
        pytest.param(0.1, 0.02, 0.02, 3, id="small"),
        pytest.param(0.25, 0.2, 0.2, 2, id="medium"),
        pytest.param(0.6, 0.55, 0.6, 1, id="large"),
    ],
)
def test_a_warm_up_is_timed_without_what_only_the_first_inference_does(
    monkeypatch: pytest.MonkeyPatch, first_s: float, later_s: float, expected_s: float, count: int
) -> None:
    now = 0.0
    lengths: list[float] = []

    class Slow(stub_model.StubModel):
        def analyze(self, utterances: Sequence[Utterance]) -> list[Analysis]:
            nonlocal now
            now += later_s if lengths else first_s
            lengths.append(utterances[0].seconds)
            return super().analyze(utterances)

    monkeypatch.setattr("kibun.server.inference.runner.time.perf_counter", lambda: now)
    runner = BatchRunner([Slow("default"), stub_model.StubModel("other")])
    assert runner.warm_up(0.25) == pytest.approx(expected_s)
    assert lengths == [0.25] * count


async def test_a_backend_tells_what_its_warm_up_took() -> None:
    backend = LocalBackend(["stub?slots=1&s_per_audio_s=0.4"], loader="tests.support.stub_model:load")
    await backend.start()
    await backend.close()
    assert [audio_s for audio_s, _ in backend.costs] == [0.25, 1.0]
    assert all(took_s >= 0.4 * audio_s for audio_s, took_s in backend.costs)


def test_weights_that_are_not_finite_are_an_error_of_the_job(bundle: Path) -> None:
    import torch

    model = loaded_model(options(bundle))
    with torch.no_grad():
        for weight in model._bundle.heads.emotion_heads["valence"].parameters():
            weight.fill_(float("nan"))
    with pytest.raises(BackendError, match="warm-up inference failed"):
        BatchRunner([model]).warm_up(1.0)
    (outcome,) = BatchRunner([model]).run([a_job()])
    assert isinstance(outcome, BackendError)
    assert outcome.reason == "MODEL_NONFINITE"


def test_a_lost_device_is_not_taken_for_the_fault_of_a_job(bundle: Path) -> None:
    import torch

    from kibun.server.inference.runner import DeviceLost

    model = loaded_model(options(bundle))

    def lose(*_: object) -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    model._bundle.trunk.register_forward_pre_hook(lose)
    with pytest.raises(DeviceLost):
        BatchRunner([model]).run([a_job()])


def test_out_of_memory_is_answered_with_smaller_batches(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    model = loaded_model(options(bundle))
    real = model._bundle.analyze

    def analyze(requests: Sequence[Utterance]) -> list[Analysis]:
        if len(requests) > 1:
            raise torch.OutOfMemoryError
        return real(requests)

    monkeypatch.setattr(model._bundle, "analyze", analyze)
    jobs = [a_job()] * 3
    assert all(isinstance(outcome, Analysis) for outcome in BatchRunner([model]).run(jobs))


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))


def test_precision_is_as_asked_for_and_reported(bundle: Path) -> None:
    from dataclasses import replace

    model = loaded_model(replace(options(bundle), precision="bf16"))
    assert model.info.precision.startswith("bfloat16: ")
    (outcome,) = BatchRunner([model]).run([a_job()])
    assert isinstance(outcome, Analysis)
    model = loaded_model(replace(options(bundle), precision="fp32"))
    assert model.info.precision == "float32, as asked for"


def test_a_bundle_is_known_by_what_its_vectors_depend_on(bundle: Path, tmp_path: Path) -> None:
    from kibun.models.files import CARD, CONFIG, fingerprint, write_checksums

    assert loaded_model(options(bundle)).info.bundle == fingerprint(bundle)
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    (copy / CARD).write_text("as before, in other words")
    write_checksums(copy)
    assert fingerprint(copy) == fingerprint(bundle)
    (copy / CONFIG).write_text((copy / CONFIG).read_text() + "\n")
    write_checksums(copy)
    assert fingerprint(copy) != fingerprint(bundle)
