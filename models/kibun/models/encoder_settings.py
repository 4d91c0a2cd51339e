"""The settings of an encoder that determine what it computes, with the defaults of HuBERT-base. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol


class Convolutions(Protocol):
    """What the length of frames depends on: `EncoderSettings`, or a configuration of transformers."""

    @property
    def conv_kernel(self) -> Sequence[int]:
        """Samples, or frames of the one before, that each convolution reads at a time."""
        ...

    @property
    def conv_stride(self) -> Sequence[int]:
        """How far each convolution moves from one of its frames to the next."""
        ...


@dataclass(frozen=True, kw_only=True)
class EncoderSettings:
    """An encoder of one of `fields.ENCODERS`, without what matters in training only.

    Names and defaults are those of transformers' configurations (tests/models/test_stored.py).
    """

    model_type: str = "hubert"
    conv_dim: Sequence[int] = (512, 512, 512, 512, 512, 512, 512)
    conv_kernel: Sequence[int] = (10, 3, 3, 3, 3, 2, 2)
    conv_stride: Sequence[int] = (5, 2, 2, 2, 2, 2, 2)
    conv_bias: bool = False
    feat_extract_norm: str = "group"
    feat_extract_activation: str = "gelu"
    feat_proj_layer_norm: bool = True
    num_conv_pos_embeddings: int = 128
    num_conv_pos_embedding_groups: int = 16
    conv_pos_batch_norm: bool = False
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-5
    do_stable_layer_norm: bool = False
    num_buckets: int = 320  # of a WavLM, as is the next
    max_bucket_distance: int = 800

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> EncoderSettings:
        """Those of `settings` that are used; the others are left alone."""
        return cls(**{name: settings[name] for name in _NAMES if name in settings})


_NAMES = tuple(field.name for field in fields(EncoderSettings))


def frame_count(config: Convolutions, samples: int) -> int:
    """Number of frames that the convolutions make of `samples` samples; 0 if these are too few for one frame."""
    count = samples
    for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
        count = (count - kernel) // stride + 1 if count >= kernel else 0
    return count


def receptive_field(config: Convolutions) -> int:
    """The fewest samples that make one frame: 400 (25 ms) for HuBERT-base."""
    samples = 1
    for kernel, stride in zip(reversed(config.conv_kernel), reversed(config.conv_stride), strict=True):
        samples = (samples - 1) * stride + kernel
    return samples
