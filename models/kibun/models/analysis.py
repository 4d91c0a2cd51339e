"""The one call that is served: checked utterances in, estimates within their scales out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol, Self, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kibun.models import evidence
from kibun.models.personality import round_to_stored
from kibun.models.settings import BundleSettings
from kibun.models.types import TRAITS, Analysis, ConditionSource, Evidence, Traits, Utterance


class EncoderFrames(Protocol):
    """Encoder frames of B utterances: `frames.Frames`, padded to (B, T, H), or `packed.Packed`, (T_1 + … + T_B, H)."""

    def rows(self, indices: Sequence[int]) -> Self:
        """The frames of some of the utterances, in the order of `indices`."""
        ...


F = TypeVar("F", bound=EncoderFrames)


class Model(Protocol[F]):
    """What `analyze` runs: a `KibunModel` with `Frames`, or a `PackedModel` with `Packed`."""

    @property
    def config(self) -> BundleSettings:
        """Scales, tasks and the source of the conditioning traits."""
        ...

    @property
    def evidence(self) -> Sequence[Evidence] | None:
        """What conversation-level traits are worth, by number of utterances; None: unknown."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the weights are and waveforms must be."""
        ...

    @property
    def training(self) -> bool:
        """Whether dropout is on."""
        ...

    @property
    def batches(self) -> bool:
        """Whether utterances of mixed lengths cost no more together than alone."""
        ...

    @property
    def min_samples(self) -> int:
        """The fewest samples, at 16 kHz, that an utterance may have."""
        ...

    @property
    def vector_size(self) -> int:
        """D of the utterance vectors; 0 for a model without personality."""
        ...

    def encode(self, waveforms: Sequence[Tensor]) -> F:
        """The shared trunk's frames of B waveforms (N_i,) at 16 kHz."""
        ...

    def personality_frames(self, waveforms: Sequence[Tensor], frames: F) -> F:
        """The frames that `vectors` needs of B waveforms (N_i,): `frames` themselves, or another trunk's."""
        ...

    def vectors(self, frames: F) -> Tensor:
        """Utterance vectors (B, D), not yet rounded."""
        ...

    def utterance_traits(self, vectors: Tensor) -> Tensor:
        """Setting 1: (..., D) vectors to (..., 5) traits, not limited to the scale."""
        ...

    def conversation_traits(self, vectors: Tensor) -> Tensor:
        """Setting 3: (B, K, D) vectors to (B, 5) traits, not limited to the scale."""
        ...

    def familiarity(self, vectors: Tensor) -> float:
        """How much a speaker's vectors (K, D) are like those of training, 0..1; 1 where the model does not know."""
        ...

    def emotion(self, frames: F, traits: Tensor | None) -> dict[str, Tensor]:
        """Each emotion dimension (B,) from `encode`'s frames and (B, 5) traits, not limited to the scale."""
        ...


class NonFiniteError(ArithmeticError):
    """The model's output for finite audio contains NaN or infinity."""


@torch.inference_mode()
def analyze(model: Model[F], requests: Sequence[Utterance]) -> list[Analysis]:
    """Estimate traits and emotion of each utterance; they may belong to different speakers.

    Estimates are clamped to their scales here, not in training. Emotion is conditioned on the clamped traits, drawn to
    the population's mean by what they are worth (`kibun.models.evidence`) in a voice as familiar as this one, and
    reported so as `condition_traits`, with the weights that were used as `condition_weight`. An
    utterance gives the same result alone and in a batch: bit for bit on a CPU; elsewhere to about 1e-5 of the float32
    vector, before it is rounded to float16. Several threads may call this at once.

    Raises:
        ValueError: an utterance is malformed (the message names its index and field); nothing has been computed.
        NonFiniteError: the model's output contains NaN or infinity.
        RuntimeError: the model is in training mode.
    """
    if model.training:
        raise RuntimeError("the model is in training mode, where dropout makes it random: call eval() first")
    for index, request in enumerate(requests):
        _check(model, index, request)
    return [analysis for batch in _batches(model, requests) for analysis in _analyze_batch(model, batch)]


def _batches(model: Model[Any], requests: Sequence[Utterance]) -> Iterator[Sequence[Utterance]]:
    """One utterance at a time where padding costs more than batching gains, else all of them at once."""
    if not model.batches:
        yield from ([request] for request in requests)
    elif requests:
        yield requests


def _analyze_batch(model: Model[F], requests: Sequence[Utterance]) -> list[Analysis]:
    waveforms = [_on_device(request.audio, model.device) for request in requests]
    frames = model.encode(waveforms)
    estimates: list[dict[str, Any]] = [{"vector": np.zeros(0, np.float16)} for _ in requests]
    if model.config.supports_personality:
        personality_frames = model.personality_frames(waveforms, frames)
        vectors = _finite(model.vectors(personality_frames), "the utterance vector")  # (B, D)
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
            clamped = _finite(values, name).clamp(*model.config.emotion_scale)  # (W,)
            for row, value in zip(wanted, clamped.tolist(), strict=True):
                estimates[row][name] = value
    return [Analysis(**estimate) for estimate in estimates]


def _on_device(audio: NDArray[np.float32], device: torch.device) -> Tensor:
    """Copy samples (N,) to the device.

    Even a CPU gets a copy, as torch warns about read-only arrays. A GPU gets it from pinned memory, so that the
    transfer of one batch overlaps with the arithmetic of another.
    """
    waveform = torch.from_numpy(audio.copy())
    return waveform if device.type == "cpu" else waveform.pin_memory().to(device, non_blocking=True)


def _personality(model: Model[Any], request: Utterance, vector: Tensor) -> dict[str, Any]:
    """Settings 1 to 3 from the vector (D,) as it will be stored, and the vectors (K, D) of the history."""
    vector = round_to_stored(vector)  # (D,)
    history = torch.from_numpy(np.asarray(request.history, np.float32)).to(vector).reshape(-1, len(vector))  # (K, D)
    vectors = torch.cat([history, vector[None]])  # (K + 1, D)
    # Its own apart, as the last bit of a row may depend on how many rows there are: on how much was said before.
    own = model.utterance_traits(vector[None])  # (1, 5)
    each = torch.cat([model.utterance_traits(history), own])  # (K + 1, 5)
    return {
        "vector": vector.to(torch.float16).cpu().numpy(),
        "utterance_traits": _traits(model, own[0]),
        "average_traits": _traits(model, each.mean(dim=0)),
        "conversation_traits": _traits(model, model.conversation_traits(vectors[None])[0]),
        "familiarity": model.familiarity(vectors),
    }


def _condition(model: Model[Any], request: Utterance, estimate: dict[str, Any]) -> dict[str, Any]:
    """The traits that emotion is conditioned on: given ones if any, else those that the configuration names.

    Given ones count in full, heard ones as much as they are worth, and less in a voice unlike those of training.
    """
    familiarity = estimate.pop("familiarity", 1.0)
    if not (request.emotion and model.config.conditioned):
        return {}
    if request.given_traits is not None:
        return {"condition_traits": tuple(map(float, request.given_traits)), "condition_source": "given"}
    source = cast(ConditionSource, model.config.condition_source)
    traits = estimate[f"{source}_traits"]
    if source != "conversation":  # which is what evidence is measured of
        return {"condition_traits": traits, "condition_source": source}
    weights = familiarity * np.array(evidence.weight(model.evidence, len(request.history) + 1))
    traits = tuple(evidence.shrunk(traits, weights, cast(Traits, model.config.condition_centre)).tolist())
    return {"condition_traits": traits, "condition_source": source, "condition_weight": tuple(weights.tolist())}


def _traits(model: Model[Any], values: Tensor) -> Traits:
    """(5,) values, clamped to the scale."""
    return cast(Traits, tuple(_finite(values, "the traits").clamp(*model.config.trait_scale).tolist()))


def _finite(values: Tensor, what: str) -> Tensor:
    """The values unchanged. Raises NonFiniteError."""
    if not bool(torch.isfinite(values).all()):
        raise NonFiniteError(f"{what} came out as NaN or infinity: the weights or the precision are at fault")
    return values


def _check(model: Model[Any], index: int, request: Utterance) -> None:
    """Raise ValueError for a malformed utterance."""
    where = f"utterance {index}"
    try:
        request.check(vector_size=model.vector_size, min_samples=model.min_samples)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    low, high = model.config.trait_scale
    given = request.given_traits
    if given is not None and (len(given) != len(TRAITS) or not all(low <= value <= high for value in given)):
        raise ValueError(f"{where}: given_traits is {given}, it has to be {len(TRAITS)} numbers {low:g}..{high:g}")
    if given is None and request.emotion and model.config.conditioned and not model.config.supports_personality:
        raise ValueError(f"{where}: this model has no personality tail, so emotion needs given_traits")
