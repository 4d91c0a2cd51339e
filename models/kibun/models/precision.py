"""The choice between float32 and bfloat16: which one is faster on this machine, and accurate enough for the bundle."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from kibun.models.analysis import NonFiniteError
from kibun.models.packed import HEIGHTS, PackedLinear
from kibun.models.packed_model import PackedModel, pack
from kibun.models.settings import BundleSettings
from kibun.models.types import NEUTRAL_TRAITS, SAMPLE_RATE_HZ, Analysis, Precision, Utterance

if TYPE_CHECKING:
    from kibun.models.model import KibunModel
    from kibun.models.stored import StoredModel

MAX_ERROR = 0.05
"""Points by which an estimate in bfloat16 may differ from float32: 1 % of the trait scale. The error of a good model
against its labels is ten times as large."""

MIN_GAIN = 1.3
"""How many times faster matrix products must be in bfloat16. Measured: 2 on a Zen 4, more with AMX, 0.8 on a Xeon
without it, 0.1 on a CPU without bfloat16: clear differences, so a busy machine decides as an idle one does."""

MIN_SIZE = 256
"""The smallest hidden size for which bfloat16 is tried: a small model spends its time elsewhere."""


@dataclass(frozen=True)
class Choice:
    """What `packed_for` chose."""

    model: PackedModel
    reason: str  # for the operator: the precision, and why
    slower: bool = False  # than float32, as the precision that was asked for does not suit this CPU


def packed_for(load: Callable[[], KibunModel | StoredModel], wanted: Precision, device: str = "cpu") -> Choice:
    """Load a model and pack it for serving, in the precision wanted.

    "auto" chooses bfloat16 for a model of at least MIN_SIZE on a GPU, or on a CPU where bfloat16 is MIN_GAIN times as
    fast (timed now, unless the CPU emulates it), if the estimates of two synthetic utterances then differ by at most
    MAX_ERROR; else float32.

    Args:
        load: loads the model, on the CPU; called again for each form that is tried, as packing uses a model up.
        device: torch's name of it.

    Raises:
        NonFiniteError: bfloat16 was asked for, and the model's output in it contains NaN or infinity.
    """
    model = _load(load, device)
    if wanted == "fp32":
        return Choice(pack(model, torch.float32), "float32, as asked for")
    if wanted == "auto" and model.config.hubert_config.hidden_size < MIN_SIZE:
        return Choice(pack(model, torch.float32), "float32: the model is too small to gain from bfloat16")
    emulated = device == "cpu" and emulates_bfloat16()
    if wanted == "auto" and emulated:
        return Choice(pack(model, torch.float32), f"float32: {EMULATED}")
    gain, slower = "a GPU", False
    if device == "cpu":
        faster = bfloat16_gain(model.config)
        gain, slower = f"{round(faster, 1 if faster >= 0.1 else 2)} times as fast here", faster < 1
        if wanted == "auto" and faster < MIN_GAIN:
            return Choice(pack(model, torch.float32), f"float32: bfloat16 is {gain}")
        if emulated:
            gain = f"{EMULATED} ({gain})"
    expected = check_estimates(pack(model, torch.float32))
    del model
    packed = pack(_load(load, device), torch.bfloat16)
    try:
        error = largest_difference(expected, check_estimates(packed))
    except NonFiniteError:
        if wanted == "bf16":
            raise
        error = float("inf")
    differ = f"check estimates differ by {error:.4f} points"
    if wanted == "auto" and error > MAX_ERROR:
        del packed
        return Choice(pack(_load(load, device), torch.float32), f"float32: in bfloat16, {differ}, above {MAX_ERROR:g}")
    advice = "; --precision auto takes float32" if slower else ""
    return Choice(packed, f"bfloat16: {gain}, {differ}{advice}", slower)


EMULATED = "this CPU has no instructions for bfloat16 and emulates it"

_BFLOAT16_FLAGS = ("avx512_bf16", "amx_bf16", "avx_ne_convert", "avx10_2", "bf16", "sve_bf16")  # x86-64, ARM


def emulates_bfloat16() -> bool:
    """Whether this CPU is known to lack instructions for bfloat16, so that products in it are done in float32.

    That costs more than float32 itself: 0.1 to 0.8 times as fast, measured on CPUs with AVX2 and AVX-512. False where
    torch does not tell (before 2.11, and on other architectures than x86-64 and ARM): then only timing does.
    """
    able = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    told = [able[flag] for flag in _BFLOAT16_FLAGS if flag in able]
    return bool(told) and not any(told)


def bfloat16_gain(config: BundleSettings) -> float:
    """How many times faster the model's most frequent matrix product is in bfloat16 on this CPU, timed now (0.1 s)."""
    hubert = config.hubert_config
    linear = nn.Linear(hubert.hidden_size, hubert.intermediate_size)
    rows = torch.randn(HEIGHTS[0], hubert.hidden_size)
    times = {}
    with torch.inference_mode():
        for dtype in (torch.float32, torch.bfloat16):
            product, x = PackedLinear(linear, dtype=dtype), rows.to(dtype)
            product(x)
            times[dtype] = min(_seconds(lambda: product(x)) for _ in range(5))  # noqa: B023 (called here)
    return times[torch.float32] / times[torch.bfloat16]


def check_estimates(model: KibunModel | PackedModel) -> list[Analysis]:
    """A model's estimates of two synthetic utterances, the second with the first as history."""
    given = None if model.config.supports_personality else NEUTRAL_TRAITS
    first, second = (
        Utterance(_voice(seconds, f0), np.zeros((0, model.vector_size), np.float16), given)
        for seconds, f0 in ((0.7, 120.0), (1.0, 210.0))
    )
    (before,) = model.analyze([first])
    return [before, *model.analyze([replace(second, history=before.vector[None])])]


def largest_difference(expected: Sequence[Analysis], actual: Sequence[Analysis]) -> float:
    """The largest difference between two models' estimates of the same utterances, in points of the scales."""
    return max(
        abs(a - b)
        for one, other in zip(expected, actual, strict=True)
        for a, b in zip(one.numbers(), other.numbers(), strict=True)
    )


def _load(load: Callable[[], KibunModel | StoredModel], device: str) -> KibunModel | StoredModel:
    return nn.Module.to(load(), device)


def _seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def _voice(seconds: float, f0: float) -> NDArray[np.float32]:
    """A vowel with syllables, vibrato and breath, (N,) at 16 kHz: not speech, but neither silence nor noise."""
    time_s = np.arange(round(SAMPLE_RATE_HZ * seconds)) / SAMPLE_RATE_HZ
    phase = 2 * np.pi * f0 * (time_s - 0.03 * np.cos(2 * np.pi * 3 * time_s) / (6 * np.pi))
    harmonics = range(1, int(4_000 / f0))
    formants = {k: sum(1 / (1 + ((k * f0 - centre) / 150) ** 2) for centre in (600, 1_200, 2_500)) for k in harmonics}
    voiced = sum(formants[k] * np.sin(k * phase) for k in harmonics)
    breath = np.random.default_rng(0).standard_normal(len(time_s))
    sound = (0.15 + np.sin(2 * np.pi * 2 * time_s) ** 2) * (voiced + 0.05 * breath)
    return np.asarray(0.3 * sound / np.abs(sound).max(), np.float32)
