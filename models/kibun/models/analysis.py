"""The one call that is served: checked utterances in, estimates within their scales out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kibun.models.config import KibunConfig
from kibun.models.personality import round_to_stored
from kibun.models.types import TRAITS, Analysis, ConditionSource, Traits, Utterance


class Model(Protocol):
    """What `analyze` runs: a `KibunModel`, or a `PackedModel`; each has its own kind of frames."""

    @property
    def config(self) -> KibunConfig: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def training(self) -> bool: ...
    @property
    def batches(self) -> bool:
        """Whether utterances of mixed lengths cost no more together than alone."""
        ...

    @property
    def min_samples(self) -> int: ...
    @property
    def vector_size(self) -> int: ...
    def encode(self, waveforms: Sequence[Tensor]) -> Any: ...
    def personality_frames(self, waveforms: Sequence[Tensor], frames: Any) -> Any: ...
    def vectors(self, frames: Any) -> Tensor: ...
    def utterance_traits(self, vectors: Tensor) -> Tensor: ...
    def conversation_traits(self, vectors: Tensor) -> Tensor: ...
    def emotion(self, frames: Any, traits: Tensor | None) -> dict[str, Tensor]: ...


class NonFiniteError(ArithmeticError):
    """The model made a NaN or an infinity of finite audio."""


@torch.inference_mode()
def analyze(model: Model, requests: Sequence[Utterance]) -> list[Analysis]:
    """Estimate traits and emotion of each utterance; they may belong to different speakers.

    Estimates are limited to their scales here, not in training, and emotion is conditioned on the limited traits: those
    reported as `condition_traits`. The same utterance gives the same answer alone and among others: bit for bit on a
    CPU; elsewhere to about 1e-5 of the float32 vector, before it is rounded to float16. Several threads may call at
    once.

    Raises:
        ValueError: an utterance is malformed (the message names its index and field); nothing was computed.
        NonFiniteError: the weights made NaN or infinity of finite audio.
        RuntimeError: the model is in training mode.
    """
    if model.training:
        raise RuntimeError("the model is in training mode, where dropout makes it random: call eval() first")
    for index, request in enumerate(requests):
        _check(model, index, request)
    return [analysis for batch in _batches(model, requests) for analysis in _analyze_batch(model, batch)]


def _batches(model: Model, requests: Sequence[Utterance]) -> Iterator[Sequence[Utterance]]:
    """One by one where padding mixed lengths costs more than batching gains; else all at once."""
    if not model.batches:
        yield from ([request] for request in requests)
    elif requests:
        yield requests


def _analyze_batch(model: Model, requests: Sequence[Utterance]) -> list[Analysis]:
    waveforms = [_on_device(request.audio, model.device) for request in requests]
    frames = model.encode(waveforms)  # (B, T, H)
    estimates: list[dict[str, Any]] = [{"vector": np.zeros(0, np.float16)} for _ in requests]
    if model.config.supports_personality:
        heard = model.personality_frames(waveforms, frames)
        vectors = _finite(model.vectors(heard), "the utterance vector")  # (B, H)
        for request, vector, estimate in zip(requests, vectors, estimates, strict=True):
            estimate.update(_personality(model, request, vector))
    for request, estimate in zip(requests, estimates, strict=True):
        estimate.update(_condition(model, request, estimate))
        if not request.personality:
            estimate.update(utterance_traits=None, average_traits=None, conversation_traits=None)
    if wanted := [row for row, request in enumerate(requests) if request.emotion and model.config.emotions]:
        traits = None
        if model.config.conditioned:
            traits = torch.tensor([estimates[row]["condition_traits"] for row in wanted], device=model.device)  # (W, 5)
        for name, values in model.emotion(frames.rows(wanted), traits).items():
            limited = _finite(values, name).clamp(*model.config.emotion_scale)  # (W,)
            for row, value in zip(wanted, limited.tolist(), strict=True):
                estimates[row][name] = value
    return [Analysis(**estimate) for estimate in estimates]


def _on_device(audio: NDArray[np.float32], device: torch.device) -> Tensor:
    """A copy, (N,), as torch warns of arrays that it may not write to, such as those in shared memory.

    For a GPU in pinned memory, so that the transfer of one batch runs beside the arithmetic of another.
    """
    waveform = torch.from_numpy(audio.copy())
    return waveform if device.type == "cpu" else waveform.pin_memory().to(device, non_blocking=True)


def _personality(model: Model, request: Utterance, vector: Tensor) -> dict[str, Any]:
    """Settings 1 to 3 from the vector as it will be kept, and those of the history."""
    vector = round_to_stored(vector)  # (H,)
    history = torch.from_numpy(np.asarray(request.history, np.float32)).to(vector)
    heard = torch.cat([history.reshape(-1, len(vector)), vector[None]])  # (K + 1, H)
    each = model.utterance_traits(heard)  # (K + 1, 5)
    return {
        "vector": vector.to(torch.float16).cpu().numpy(),
        "utterance_traits": _traits(model, each[-1]),
        "average_traits": _traits(model, each.mean(dim=0)),
        "conversation_traits": _traits(model, model.conversation_traits(heard[None])[0]),
    }


def _condition(model: Model, request: Utterance, estimate: dict[str, Any]) -> dict[str, Any]:
    """The traits that emotion is conditioned on: the given ones, else what the configuration names."""
    if not (request.emotion and model.config.conditioned):
        return {}
    if request.given_traits is not None:
        return {"condition_traits": tuple(map(float, request.given_traits)), "condition_source": "given"}
    source = cast(ConditionSource, model.config.condition_source)
    return {"condition_traits": estimate[f"{source}_traits"], "condition_source": source}


def _traits(model: Model, values: Tensor) -> Traits:
    limited = _finite(values, "the traits").clamp(*model.config.trait_scale)
    return cast(Traits, tuple(limited.tolist()))


def _finite(values: Tensor, what: str) -> Tensor:
    if not bool(torch.isfinite(values).all()):
        raise NonFiniteError(f"{what} came out as NaN or infinity: the weights or the precision are at fault")
    return values


def _check(model: Model, index: int, request: Utterance) -> None:
    where, audio, history = f"utterance {index}", request.audio, request.history
    if audio.ndim != 1 or audio.dtype != np.float32:
        raise ValueError(f"{where}: audio is {audio.dtype} {audio.shape}, it has to be float32 (samples,), mono 16 kHz")
    if len(audio) < model.min_samples:
        raise ValueError(f"{where}: audio has {len(audio)} samples, at least {model.min_samples} are needed")
    if not np.isfinite(audio).all():
        raise ValueError(f"{where}: audio contains NaN or infinity")
    fits = history.ndim == 2 and history.shape[1] == model.vector_size and history.dtype == np.float16
    if not fits and not (history.ndim == 2 and len(history) == 0):
        wanted = f"float16 (utterances, {model.vector_size})"
        raise ValueError(f"{where}: history is {history.dtype} {history.shape}, it has to be {wanted}")
    if not np.isfinite(history).all():
        raise ValueError(f"{where}: history contains NaN or infinity")
    low, high = model.config.trait_scale
    given = request.given_traits
    if given is not None and (len(given) != len(TRAITS) or not all(low <= value <= high for value in given)):
        raise ValueError(f"{where}: given_traits is {given}, it has to be {len(TRAITS)} numbers {low:g}..{high:g}")
    if given is None and request.emotion and model.config.conditioned and not model.config.supports_personality:
        raise ValueError(f"{where}: this model has no personality tail, so emotion needs given_traits")


__all__ = ["NonFiniteError", "analyze"]
