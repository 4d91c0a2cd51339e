"""The whole model in the form that is served: the trunk and tails of `packed`, with the heads of the plain model."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor, nn

from kibun.models.analysis import analyze
from kibun.models.frames import Frames, normalised
from kibun.models.layers import ScaleLinear
from kibun.models.packed import HeadLinear, Packed, PackedTail, PackedTrunk
from kibun.models.settings import BundleSettings
from kibun.models.types import Analysis, Evidence, Utterance
from kibun.models.weights import Apply, in_threads, own_weights

if TYPE_CHECKING:
    from kibun.models.assembly import Assembly
    from kibun.models.model import KibunModel
    from kibun.models.stored import StoredModel

P = TypeVar("P", bound=nn.Module)


def pack(model: KibunModel | StoredModel, dtype: torch.dtype = torch.float32) -> PackedModel:
    """Convert a model to its served form, using it up: it loses each trunk and tail as soon as that is packed.

    So the weights are never in memory twice. Answers differ from the model's by rounding: by about 1e-5 on the frames
    in float32; for bfloat16 see `precision`.

    Raises:
        ValueError: dtype is neither float32 nor bfloat16.
    """
    if dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"dtype is {dtype}, allowed are torch.float32 and torch.bfloat16")
    model.train(False).requires_grad_(False)
    device = model.device
    with in_threads() as apply:
        trunk = _pack_part(PackedTrunk, model.trunk, dtype, apply)
        del model.trunk
        personality_trunk = None
        if model.personality_trunk is not None:
            personality_trunk = _pack_part(PackedTrunk, model.personality_trunk, dtype, apply)
            model.personality_trunk = None
        tails = {name: _pack_part(PackedTail, model.tails.pop(name), dtype, apply) for name in list(model.tails)}
    for head in model.emotion_heads.values():
        _pack_head(head, dtype)
    own_weights(model)
    gc.collect()  # a convolution with weight norm refers to itself, and each weight holds the mapped file of its part
    return PackedModel(
        config=model.config,
        dtype=dtype,
        device=device,
        min_samples=model.min_samples,
        vector_size=model.vector_size,
        evidence=model.evidence,
        card=model.card,
        trunk=trunk,
        personality_trunk=personality_trunk,
        tails=tails,
        heads=model,
    )


@dataclass(eq=False)
class PackedModel:
    """What `pack` makes of a model; `analyze` is the same call with the same meaning.

    The steps are those of `KibunModel`, for `kibun.models.analysis`. Any number of threads may call them at once.
    """

    training = False
    batches = True  # utterances of mixed lengths cost no more together than alone

    config: BundleSettings
    dtype: torch.dtype  # of the matrix products
    device: torch.device
    min_samples: int
    vector_size: int
    evidence: tuple[Evidence, ...] | None
    card: str | None
    trunk: PackedTrunk
    personality_trunk: PackedTrunk | None
    tails: dict[str, PackedTail]
    heads: Assembly  # what packing left of the model

    def analyze(self, requests: Sequence[Utterance]) -> list[Analysis]:
        """Estimate traits and emotion of each utterance; see `kibun.models.analysis.analyze`."""
        return analyze(self, requests)

    def encode(self, waveforms: Sequence[Tensor]) -> Packed:
        """Normalise B waveforms (N_i,) at 16 kHz as the checkpoint expects and run the trunk: (T_1 + … + T_B, H)."""
        return _encode(self.trunk, waveforms, self.config.do_normalize)

    def personality_frames(self, waveforms: Sequence[Tensor], frames: Packed) -> Packed:
        """The frames (T_1 + … + T_B, H) that `vectors` needs of B waveforms (N_i,).

        Those are `frames`, the shared trunk's, unless personality has its own trunk, which is run then.
        """
        if self.personality_trunk is None:
            return frames
        return _encode(self.personality_trunk, waveforms, self.config.personality_do_normalize)

    def tail(self, task: str) -> PackedTail:
        """The tail of "personality", "valence" or "arousal"; KeyError for a task that the bundle lacks."""
        return self.tails[self.config.tail_name(task)]

    def vectors(self, frames: Packed) -> Tensor:
        """Utterance vectors (B, D) from a trunk's frames: the mean over the personality tail's, not yet rounded."""
        return cast(Packed, self.tail("personality")(frames)).mean()

    def utterance_traits(self, vectors: Tensor) -> Tensor:
        """Setting 1: (..., D) vectors to (..., 5) traits, not limited to the scale."""
        return self.heads.utterance_traits(vectors)

    def conversation_traits(self, vectors: Tensor) -> Tensor:
        """Setting 3: (B, K, D) vectors to (B, 5) traits, not limited to the scale."""
        return self.heads.conversation_traits(vectors)

    def familiarity(self, vectors: Tensor) -> float:
        """How much a speaker's vectors (K, D) are like those of training, 0..1; 1 where the bundle does not know."""
        return self.heads.familiarity(vectors)

    def emotion(self, frames: Packed, traits: Tensor | None) -> dict[str, Tensor]:
        """Each emotion dimension (B,) from the trunk's frames and (B, 5) traits, not limited to the scale."""
        by_tail: dict[str, list[Frames]] = {}  # dimensions that share a tail run it once
        estimates = {}
        for name, head in self.heads.emotion_heads.items():
            tail = self.config.tail_name(name)
            if tail not in by_tail:
                by_tail[tail] = cast(Packed, self.tails[tail](frames)).parts()
            sizes = [len(part.lengths) for part in by_tail[tail]]
            conditions = [None] * len(sizes) if traits is None else torch.split(traits, sizes)
            each = [head(part, condition) for part, condition in zip(by_tail[tail], conditions, strict=True)]
            estimates[name] = torch.cat(each)
        return estimates


def _encode(trunk: PackedTrunk, waveforms: Sequence[Tensor], normalise: bool) -> Packed:
    return cast(Packed, trunk([normalised(waveform, normalise) for waveform in waveforms]))


def _pack_part(kind: Callable[[Any, torch.dtype, Apply], P], part: nn.Module, dtype: torch.dtype, apply: Apply) -> P:
    """Pack a trunk or tail; nothing of it is needed afterwards, so that its mapped file can go."""
    packed = kind(part, dtype, apply)
    own_weights(packed)
    return packed


def _pack_head(head: nn.Module, dtype: torch.dtype) -> None:
    """Replace its wide Linears; not the last one, and not those that read a few traits: these cost nothing."""
    for parent in list(head.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear) and not isinstance(child, ScaleLinear) and child.in_features > 5:
                setattr(parent, name, HeadLinear(child, dtype))
