"""The encoders that a trunk and its tails can be cut from: HuBERT, wav2vec 2.0 and WavLM, as transformers has them.

The three share one plan: convolutions, a projection, a positional convolution, Transformer layers. HuBERT and wav2vec
2.0 differ in their training only. WavLM's attention also has a bias by relative position, from a table in the first
layer that all layers share, and each layer scales it by gates of its own.

Source: Hsu et al., "HuBERT", IEEE/ACM TASLP 2021; Baevski et al., "wav2vec 2.0", NeurIPS 2020; Chen et al., "WavLM",
IEEE JSTSP 2022.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

from kibun.models._transformers import (
    HubertConfig,
    HubertModel,
    Wav2Vec2Config,
    Wav2Vec2Model,
    WavLMConfig,
    WavLMModel,
    modeling_hubert,
    modeling_wav2vec2,
    modeling_wavlm,
)

EncoderConfig: TypeAlias = HubertConfig | Wav2Vec2Config | WavLMConfig
EncoderModel: TypeAlias = HubertModel | Wav2Vec2Model | WavLMModel


@dataclass(frozen=True)
class EncoderKind:
    """transformers' classes of one kind of encoder, and of its parts."""

    title: str
    config: Any
    model: Any
    features: Any
    projection: Any
    positions: Any
    layer: Any
    stable_layer: Any  # normalises before attention and feed-forward, not after them


def _encoder(title: str, prefix: str, config: Any, modeling: Any) -> EncoderKind:
    return EncoderKind(
        title,
        config,
        getattr(modeling, f"{prefix}Model"),
        getattr(modeling, f"{prefix}FeatureEncoder"),
        getattr(modeling, f"{prefix}FeatureProjection"),
        getattr(modeling, f"{prefix}PositionalConvEmbedding"),
        getattr(modeling, f"{prefix}EncoderLayer"),
        getattr(modeling, f"{prefix}EncoderLayerStableLayerNorm"),
    )


ENCODERS: Mapping[str, EncoderKind] = {
    "hubert": _encoder("HuBERT", "Hubert", HubertConfig, modeling_hubert),
    "wav2vec2": _encoder("wav2vec 2.0", "Wav2Vec2", Wav2Vec2Config, modeling_wav2vec2),
    "wavlm": _encoder("WavLM", "WavLM", WavLMConfig, modeling_wavlm),
}
"""By `model_type`; the same names as `fields.ENCODERS`."""


def encoder_of(config: EncoderConfig) -> EncoderKind:
    """The kind that a configuration describes."""
    return ENCODERS[config.model_type]


def encoder_config(settings: Mapping[str, Any] | EncoderConfig) -> EncoderConfig:
    """The configuration that settings describe, by their `model_type`; without one, a HuBERT's.

    Raises:
        ValueError: another model_type.
    """
    if isinstance(settings, HubertConfig | Wav2Vec2Config | WavLMConfig):
        return settings
    kind = settings.get("model_type", "hubert")
    if kind not in ENCODERS:
        raise ValueError(f"hubert.model_type is {kind!r}, allowed are {', '.join(map(repr, ENCODERS))}")
    others = {name: value for name, value in settings.items() if name != "model_type"}
    return cast(EncoderConfig, ENCODERS[kind].config(**others))
