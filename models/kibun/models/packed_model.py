"""The whole model in the form that is served: `packed`'s trunk and tails, the heads as they are."""

import ctypes
import gc
import mmap
import sys
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from kibun.models.analysis import analyze
from kibun.models.hubert import Frames, Tail, normalised
from kibun.models.layers import ScaleLinear
from kibun.models.model import KibunModel, own_weights
from kibun.models.packed import HeadLinear, Packed, PackedTail, PackedTrunk
from kibun.models.types import Analysis, Utterance

_MADV_PAGEOUT = 21  # Linux 5.4


class PackedModel:
    """A KibunModel taken apart and put together for serving; `analyze` is the same call with the same meaning.

    The steps are those of `KibunModel`, for `kibun.models.analysis`. Any number of threads may call them at once.
    """

    training = False
    batches = True  # utterances of mixed lengths cost no more together than alone

    def __init__(self, model: KibunModel, dtype: torch.dtype = torch.float32) -> None:
        """Packs `model`, which loses its trunk and tails on the way, so that weights are never there twice.

        Answers differ from the model's by rounding: float32 by about 1e-5 on the frames; bfloat16: see `precision`.

        Raises:
            ValueError: dtype is neither float32 nor bfloat16.
        """
        if dtype not in (torch.float32, torch.bfloat16):
            raise ValueError(f"dtype is {dtype}, allowed are torch.float32 and torch.bfloat16")
        model.train(False).requires_grad_(False)
        self.config, self.dtype, self.device = model.config, dtype, model.device
        self.expected_error, self.card = model.expected_error, model.card
        self.min_samples, self.vector_size = model.min_samples, model.vector_size
        self._trunk = PackedTrunk(model.trunk, dtype)
        _page_out(model.trunk)
        del model.trunk
        self._personality_trunk: PackedTrunk | None = None
        if model.personality_trunk is not None:
            self._personality_trunk = PackedTrunk(model.personality_trunk, dtype)
            _page_out(model.personality_trunk)
            model.personality_trunk = None
        self._tails: dict[str, PackedTail] = {}
        for name in list(model.tails):
            self._tails[name] = PackedTail(cast(Tail, model.tails[name]), dtype)
            _page_out(model.tails[name])
            del model.tails[name]
        self._emotion_heads = {name: _pack_head(head, dtype) for name, head in model.emotion_heads.items()}
        self.utterance_traits, self.conversation_traits = model.utterance_traits, model.conversation_traits
        # What was not packed may still lie in the mapped file of a bundle.
        parts = (self._trunk, self._personality_trunk, *self._tails.values(), model)
        for part in parts:
            if part is not None:
                own_weights(part)
        gc.collect()  # a convolution with weight norm refers to itself, and each weight holds the whole mapped file

    def analyze(self, requests: Sequence[Utterance]) -> list[Analysis]:
        """Estimate traits and emotion of each utterance; see `kibun.models.analysis.analyze`."""
        return analyze(self, requests)

    def encode(self, waveforms: Sequence[Tensor]) -> Packed:
        """Normalise B waveforms (N_i,) at 16 kHz as the checkpoint wants and run the trunk."""
        return self._encode(self._trunk, waveforms, self.config.do_normalize)

    def personality_frames(self, waveforms: Sequence[Tensor], frames: Packed) -> Packed:
        """What `vectors` reads: `frames` of the same waveforms, or those of personality's own trunk if it has one."""
        if self._personality_trunk is None:
            return frames
        return self._encode(self._personality_trunk, waveforms, self.config.personality_do_normalize)

    def tail(self, task: str) -> PackedTail:
        """The tail of "personality", "valence" or "arousal"; KeyError for a task that the bundle lacks."""
        return self._tails[self.config.tail_name(task)]

    def vectors(self, frames: Packed) -> Tensor:
        """Utterance vectors (B, H), not yet rounded."""
        return cast(Packed, self.tail("personality")(frames)).mean()

    def emotion(self, frames: Packed, traits: Tensor | None) -> dict[str, Tensor]:
        """Each emotion dimension (B,) from the trunk's frames and (B, 5) traits, not limited to the scale."""
        heard: dict[str, list[Frames]] = {}  # by tail: dimensions that share one run it once
        estimates = {}
        for name, head in self._emotion_heads.items():
            tail = self.config.tail_name(name)
            if tail not in heard:
                heard[tail] = cast(Packed, self._tails[tail](frames)).parts()
            sizes = [len(part.lengths) for part in heard[tail]]
            conditions = [None] * len(sizes) if traits is None else torch.split(traits, sizes)
            each = [head(part, condition) for part, condition in zip(heard[tail], conditions, strict=True)]
            estimates[name] = torch.cat(each)
        return estimates

    def _encode(self, trunk: PackedTrunk, waveforms: Sequence[Tensor], normalise: bool) -> Packed:
        return cast(Packed, trunk([normalised(waveform, normalise) for waveform in waveforms]))


def _page_out(part: nn.Module) -> None:
    """Let go of the memory of weights that are packed now, where they are pages of a mapped file (Linux only)."""
    if sys.platform != "linux":
        return
    libc, page = ctypes.CDLL(None), mmap.PAGESIZE
    for weight in part.parameters():
        first = -(-weight.data_ptr() // page) * page
        size = (weight.data_ptr() + weight.nbytes - first) // page * page
        if weight.device.type == "cpu" and size > 0:
            # Clean pages of a file are read again if need be; other pages keep what they hold. An old kernel refuses.
            libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(size), _MADV_PAGEOUT)


def _pack_head(head: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Its wide Linears; not the last one, and not those that read a few traits: they cost nothing."""
    for parent in list(head.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear) and not isinstance(child, ScaleLinear) and child.in_features > 5:
                setattr(parent, name, HeadLinear(child, dtype))
    return head
