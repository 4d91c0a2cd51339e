"""The encoder against the paper's deployment: three full HubertModels in float32, one utterance at a time.

All paths have the same random weights (which cost what trained ones cost), take turns in one process, and answer the
same utterances, so that beside every ratio stands the largest difference of the answers.
"""

import copy
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from kibun.bench.support import machine, material, timing
from kibun.bench.support.report import Report
from kibun.models._transformers import HubertConfig, HubertModel
from kibun.models.config import KibunConfig
from kibun.models.encoder_settings import frame_count
from kibun.models.encoders import EncoderConfig
from kibun.models.frames import Frames, normalised
from kibun.models.model import KibunModel
from kibun.models.packed import Packed
from kibun.models.packed_model import PackedModel, pack
from kibun.models.precision import EMULATED, emulates_bfloat16
from kibun.models.types import SAMPLE_RATE_HZ, Utterance
from kibun.training.evaluation.report_table import Cell, Row, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAPER = "three HubertModels, fp32"
PLAIN = "trunk and tails, transformers' modules"
FP32, BF16 = "packed, fp32", "packed, bf16"
_PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
TASKS = ("personality", "valence", "arousal")


@dataclass(frozen=True)
class Models:
    """The same weights in every form. singles: one full model per task; they differ above layer six only.

    packed: by FP32 and BF16, the latter unless left out.
    """

    singles: list[HubertModel]
    plain: KibunModel
    packed: dict[str, PackedModel]


def measure(*, quick: bool = False, device: str = "cpu", config: HubertConfig | None = None) -> Report:
    """One intra-op thread on a CPU. config: HuBERT's sizes; default: those of HuBERT-base.

    A CPU that emulates bfloat16 is not measured in it: that takes four times as long as all the rest.
    """
    torch.set_num_threads(1)
    left_out = EMULATED if device == "cpu" and emulates_bfloat16() else None
    precisions = {name: dtype for name, dtype in _PRECISIONS.items() if name == "fp32" or left_out is None}
    models = build(config or HubertConfig(), device, precisions)
    lengths, rounds = ((1.0, 5.0), 3) if quick else ((1.0, 3.0, 5.0, 10.0, 20.0), 3)
    with torch.inference_mode():
        rows = [measure_length(models, seconds, rounds, device, quick=quick) for seconds in lengths]
        sounds = material.utterances(3, 0.8, 1.6) if quick else material.utterances(12, 0.8, 8.5)
        batch = measure_batches(models, sounds, 1 if quick else 2, device, quick=quick)
        threads = {} if quick or device != "cpu" else measure_threads(models.packed[FP32], sounds, rounds=3)
    peaks = {name: machine.gemm_tflops(dtype, device) for name, dtype in precisions.items()}
    for row in rows:
        gflop = counted_gflop(models.plain.config.hubert_config, row["audio_s"])
        row["share_of_peak"] = {name: gflop / row["ms"][f"packed, {name}"] / peak for name, peak in peaks.items()}
    at_5 = next(row for row in rows if row["audio_s"] == 5.0)
    payload = {
        "ratio_fp32": at_5["ratio"][FP32],
        "ratio_bf16": at_5["ratio"].get(BF16),
        "bf16_left_out": left_out,
        "max_diff_fp32": max(row["max_diff_fp32"] for row in rows),
        "batched_diff_fp32": batch["difference"]["fp32"],
        "pooled_error_bf16": None if left_out else max(row["pooled_error_bf16"] for row in rows),
        "lengths": rows,
        "batch": batch,
        "threads": threads,
        "gemm_tflops": peaks,
        "device": device,
        "machine": machine.describe(),
    }
    return Report(payload, _tables(payload), lambda: _draw(payload))


def build(config: HubertConfig, device: str, precisions: Mapping[str, torch.dtype] = _PRECISIONS) -> Models:
    """Random weights, the same every time."""
    torch.manual_seed(0)
    config._attn_implementation = "sdpa"
    singles = [HubertModel(config).train(False)]
    for _ in TASKS[1:]:
        other = copy.deepcopy(singles[0])
        for layer in other.encoder.layers[len(other.encoder.layers) // 2 :]:
            for parameter in layer.parameters():
                parameter.data += 0.02 * torch.randn_like(parameter)
        singles.append(other)
    plain = nn.Module.to(_filled(config, singles), device)
    packed = {f"packed, {name}": pack(copy.deepcopy(plain), dtype) for name, dtype in precisions.items()}
    return Models([nn.Module.to(single, device) for single in singles], plain, packed)


def _filled(config: HubertConfig, singles: Sequence[HubertModel]) -> KibunModel:
    hubert = {name: value for name, value in config.to_dict().items() if not name.startswith("_")}
    model = KibunModel(KibunConfig(hubert=hubert)).train(False)
    model.trunk.load_from(singles[0])
    for task, single in zip(TASKS, singles, strict=True):
        model.tail(task).load_from(single)
    return model


def measure_length(models: Models, seconds: float, rounds: int, device: str, *, quick: bool = False) -> dict[str, Any]:
    """All paths on one utterance of this length; quick: without those that no figure of the payload needs."""
    sound = material.utterances(1, seconds, seconds)[0]
    audio = audio_of(sound)
    waveform = torch.from_numpy(audio).to(device)
    inputs = normalised(waveform, models.plain.config.do_normalize)  # as `encode` does, for the full models
    request = Utterance(audio, np.zeros((10, models.plain.vector_size), np.float16))

    def paper() -> list[Tensor]:
        return [single(inputs[None]).last_hidden_state[0] for single in models.singles]

    paths: dict[str, Callable[[], object]] = {
        PAPER: paper,
        PLAIN: lambda: tails(models.plain, [waveform]),
        **{name: partial(tails, model, [waveform]) for name, model in models.packed.items()},
        **{f"{name}, with heads": partial(model.analyze, [request]) for name, model in models.packed.items()},
    }
    if quick:
        paths = {name: path for name, path in paths.items() if name == PAPER or name in models.packed}
    expected = torch.stack(paper())  # (3, T, H)
    actual = {name: torch.stack([t.hidden for t in tails(models.packed[name], [waveform])]) for name in models.packed}
    times = timing.interleaved({name: _synchronised(path, device) for name, path in paths.items()}, rounds)
    pooled = expected.mean(dim=1)  # (3, H)
    found = {
        "audio_s": seconds,
        "ms": {name: statistics.median(values) * 1e3 for name, values in times.items()},
        "audio_s_per_s": {name: seconds / statistics.median(values) for name, values in times.items()},
        "ratio": {name: timing.ratio(times, PAPER, name) for name in times},
        "max_diff_fp32": float((actual[FP32] - expected).abs().max()),
    }
    if BF16 in actual:
        found["max_diff_bf16"] = float((actual[BF16] - expected).abs().max())
        error = (actual[BF16].mean(dim=1) - pooled).norm(dim=1) / pooled.norm(dim=1)
        found["pooled_error_bf16"] = float(error.max())
    return found


def tails(model: KibunModel | PackedModel, waveforms: Sequence[Tensor]) -> list[Any]:
    """Frames of all three tasks."""
    frames: Any = model.encode(waveforms)
    return [model.tail(task)(frames) for task in TASKS]


def measure_batches(
    models: Models, sounds: Sequence[material.Pcm], rounds: int, device: str, *, quick: bool = False
) -> dict[str, Any]:
    """Utterances of mixed lengths: one by one, packed together, and padded as a general server pads them.

    The padded batches are exact too (statistics and attention look at real frames only), in order of arrival and sorted
    by length.
    """
    order = np.random.default_rng(0).permutation(len(sounds))
    waveforms = [torch.from_numpy(audio_of(sounds[k])).to(device) for k in order]
    by_length = sorted(waveforms, key=len)

    def in_batches(model: KibunModel | PackedModel, size: int, waves: Sequence[Tensor]) -> Callable[[], object]:
        return lambda: [tails(model, waves[first : first + size]) for first in range(0, len(waves), size)]

    paths = {
        "padded, 8 together": in_batches(models.plain, 8, waveforms),
        "padded, 8 of like length": in_batches(models.plain, 8, by_length),
        "one by one, transformers' modules": in_batches(models.plain, 1, waveforms),
    }
    for name, model in models.packed.items():
        paths |= {f"{how}, {name}": in_batches(model, size, waveforms) for how, size in _BATCHES}
    if quick:
        left_out = ("padded, 8 of like length", "one by one, transformers' modules")
        paths = {name: path for name, path in paths.items() if name not in left_out}
    times = timing.interleaved({name: _synchronised(path, device) for name, path in paths.items()}, rounds)
    seconds = sum(len(waveform) for waveform in waveforms) / SAMPLE_RATE_HZ
    return {
        "utterances": len(sounds),
        "shortest_s": min(map(len, sounds)) / SAMPLE_RATE_HZ,
        "longest_s": max(map(len, sounds)) / SAMPLE_RATE_HZ,
        "audio_s": seconds,
        "audio_s_per_s": {name: seconds / statistics.median(values) for name, values in times.items()},
        "ratio_to_padded": {name: timing.ratio(times, "padded, 8 together", name) for name in times},
        "packing_gain": {
            name.removeprefix("packed, "): timing.ratio(times, f"one by one, {name}", f"8 together, {name}")
            for name in models.packed
        },
        "difference": {
            name.removeprefix("packed, "): batched_difference(model, waveforms[:8])
            for name, model in (*models.packed.items(), *(() if quick else (("padded", models.plain),)))
        },
    }


_BATCHES = (("one by one", 1), ("8 together", 8))


def batched_difference(model: KibunModel | PackedModel, waveforms: Sequence[Tensor]) -> float:
    """Largest difference of any frame of any task between an utterance in a batch and the same one alone."""
    together = tails(model, waveforms)
    worst = 0.0
    for index, waveform in enumerate(waveforms):
        for batched, alone in zip(together, tails(model, [waveform]), strict=True):
            worst = max(worst, float((_row(batched, index) - _row(alone, 0)).abs().max()))
    return worst


def _row(frames: Frames | Packed, index: int) -> Tensor:
    if isinstance(frames, Packed):
        return frames.hidden.split(list(frames.lengths))[index]  # type: ignore[no-untyped-call,no-any-return]
    return frames.hidden[index, : frames.lengths[index]]


def measure_threads(model: PackedModel, sounds: Sequence[material.Pcm], rounds: int) -> dict[str, Any]:
    """Two inference threads of one intra-op thread each, sharing the weights, against one of two intra-op threads."""
    requests = [Utterance(audio_of(sound), np.zeros((0, model.vector_size), np.float16)) for sound in sounds]

    def analyze(request: Utterance) -> None:
        torch.set_num_threads(1)
        model.analyze([request])

    def two_threads() -> None:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(analyze, requests))

    def two_intra_op() -> None:
        torch.set_num_threads(2)
        try:
            for request in requests:
                model.analyze([request])
        finally:
            torch.set_num_threads(1)

    paths = {"two threads of one": two_threads, "one thread of two": two_intra_op}
    times = timing.interleaved(paths, rounds)
    neighbour = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        busy = timing.interleaved(paths, rounds)
    finally:
        neighbour.kill()
        neighbour.wait()
    seconds = sum(len(sound) for sound in sounds) / SAMPLE_RATE_HZ
    return {
        "audio_s_per_s": {name: seconds / statistics.median(values) for name, values in times.items()},
        "audio_s_per_s_beside_a_busy_process": {
            name: seconds / statistics.median(values) for name, values in busy.items()
        },
        "ratio": timing.ratio(times, "one thread of two", "two threads of one"),
        "ratio_beside_a_busy_process": timing.ratio(busy, "one thread of two", "two threads of one"),
    }


def audio_of(sound: material.Pcm) -> npt.NDArray[np.float32]:
    """As the server decodes LINEAR16, (N,)."""
    return sound.astype(np.float32) / np.float32(32768)


def counted_gflop(config: EncoderConfig, seconds: float) -> float:
    """GFLOP of trunk and three tails on one utterance, counted: matrix products, convolutions and attention."""
    length, inputs, flop = round(seconds * SAMPLE_RATE_HZ), 1, 0
    for kernel, stride, channels in zip(config.conv_kernel, config.conv_stride, config.conv_dim, strict=True):
        length = (length - kernel) // stride + 1
        flop += 2 * length * kernel * inputs * channels
        inputs = channels
    size, count = config.hidden_size, frame_count(config, round(seconds * SAMPLE_RATE_HZ))
    flop += 2 * count * inputs * size
    flop += 2 * count * size * size // config.num_conv_pos_embedding_groups * config.num_conv_pos_embeddings
    layer = 2 * count * (4 * size * size + 2 * size * config.intermediate_size) + 4 * count * count * size
    half = config.num_hidden_layers // 2
    return (flop + (half + len(TASKS) * (config.num_hidden_layers - half)) * layer) / 1e9


def _synchronised(path: Callable[[], object], device: str) -> Callable[[], object]:
    if device == "cpu":
        return path

    def run() -> None:
        path()
        torch.cuda.synchronize()

    return run


# ---- shown


def _tables(payload: dict[str, Any]) -> tuple[Table, ...]:
    rows, batch, threads = payload["lengths"], payload["batch"], payload["threads"]
    head = ("", *(f"{row['audio_s']:g} s" for row in rows))
    ratios = Table(
        "Times as fast as three HubertModels in fp32, one utterance at a time, one thread",
        head,
        tuple(Row(name, tuple(Cell(float(row["ratio"][name])) for row in rows)) for name in rows[0]["ratio"]),
        ("with heads: emotion, traits and a history of ten utterances as well, which the three models do without",),
    )
    peak, left_out = payload["gemm_tflops"], payload["bf16_left_out"]
    fp32 = f"largest difference from the HubertModels in any frame: fp32 {payload['max_diff_fp32']:.1e}"
    if left_out is None:
        bf16 = max(row["max_diff_bf16"] for row in rows)
        accuracy = f"{fp32}, bf16 {bf16:.1e} ({payload['pooled_error_bf16']:.2%} of pooled frames)"
    else:
        accuracy = f"{fp32}; bf16 was not measured: {left_out}"
    speed = Table(
        "Audio seconds per core second, and the share of this core's matrix product peak that they take",
        head,
        (
            *(
                Row(name, tuple(Cell(float(row["audio_s_per_s"][name])) for row in rows))
                for name in rows[0]["audio_s_per_s"]
            ),
            *(
                Row(f"share of peak, {path}", tuple(Cell(float(row["share_of_peak"][path])) for row in rows))
                for path in peak
            ),
        ),
        (
            f"peak measured, TFLOP/s: {', '.join(f'{value:.3f} {path}' for path, value in peak.items())}; FLOP counted",
            accuracy,
        ),
    )
    mixed = Table(
        f"{batch['utterances']} utterances of {batch['shortest_s']:.1f} to {batch['longest_s']:.1f} s, one thread",
        ("", "audio s per s", "ratio"),
        tuple(
            Row(name, (Cell(float(value)), Cell(float(batch["ratio_to_padded"][name]))))
            for name, value in batch["audio_s_per_s"].items()
        ),
        (
            "largest difference between alone and together: "
            + ", ".join(f"{path} {value:.1e}" for path, value in batch["difference"].items()),
        ),
    )
    tables = [ratios, speed, mixed]
    if threads:
        alone, busy = threads["audio_s_per_s"], threads["audio_s_per_s_beside_a_busy_process"]
        lines = tuple(Row(name, (Cell(float(alone[name])), Cell(float(busy[name])))) for name in alone)
        note = (
            f"two inference threads sharing weights are {threads['ratio']:.2f} times as fast, "
            f"{threads['ratio_beside_a_busy_process']:.2f} times beside a busy process"
        )
        tables.append(Table("Threads, fp32", ("audio s per s", "alone", "beside a busy process"), lines, (note,)))
    return tuple(tables)


def _draw(payload: dict[str, Any]) -> "Figure":
    from kibun.training.evaluation.plots import COLOURS, MARKERS, canvas, legend_below

    rows = payload["lengths"]
    drawn, axes = canvas((7.2, 4.8))
    for name, colour, marker in zip((PAPER, PLAIN, FP32, BF16), COLOURS, MARKERS, strict=False):
        if name not in rows[0]["ms"]:
            continue
        lengths = [row["audio_s"] for row in rows]
        axes.plot(lengths, [row["audio_s_per_s"][name] for row in rows], marker, ls="-", color=colour, label=name)
    axes.set_xscale("log")
    axes.set_xticks([row["audio_s"] for row in rows], [f"{row['audio_s']:g}" for row in rows])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_xlabel("length of the utterance (s)")
    axes.set_ylabel("s of audio per second")
    axes.set_title("Speech that one thread analyses for all three tasks", loc="left")
    legend_below(drawn, columns=2)
    if payload["bf16_left_out"] is not None:
        axes.text(0.02, 0.02, f"no bf16: {payload['bf16_left_out']}", transform=axes.transAxes, fontsize=9)
    return drawn
