"""An encoder split in two: a trunk that all tasks share, and a tail of Transformer layers for each task.

Both consist of transformers' own modules, so any checkpoint of one of `encoders` loads, and the trunk followed by a
tail is bit-equal to `HubertModel`, `Wav2Vec2Model` or `WavLMModel` (tests/models/test_hubert.py).

Ragged batches are exact: the first convolution of HuBERT-base is followed by a GroupNorm over time, so padding would
change the frames of real audio. The convolutional front therefore runs on batches of utterances of equal length only;
padding comes after it, where an attention mask excludes it.

WavLM's table of relative positions lies in its first layer, and all layers use it. The first layer of a tail holds a
copy, which is frozen: so a tail needs the trunk's frames and nothing else, and they can be cached.

Source: split after layer six as in Gao et al., IEEE TAC 2025; encoders, see `encoders`.
"""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from kibun.models.encoders import EncoderConfig, EncoderModel, encoder_of
from kibun.models.frames import Frames

# WavLM's attention gets its padding as truth values and its bias as numbers; torch says so, and does the right thing.
warnings.filterwarnings("ignore", "Support for mismatched key_padding_mask and attn_mask is deprecated")

_ARCHITECTURE = (
    "model_type",
    *("conv_dim", "conv_kernel", "conv_stride", "conv_bias", "feat_extract_norm", "feat_extract_activation"),
    *("feat_proj_layer_norm", "num_conv_pos_embeddings", "num_conv_pos_embedding_groups", "conv_pos_batch_norm"),
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act"),
    *("layer_norm_eps", "do_stable_layer_norm", "num_buckets", "max_bucket_distance"),
)
_TABLE = "attention.rel_attn_embed.weight"  # of WavLM's first layer: (buckets, heads)


class Trunk(nn.Module):
    """Waveform to frames: convolutions, projection, positional convolution, first `layers` Transformer layers."""

    def __init__(self, config: EncoderConfig, layers: int) -> None:
        super().__init__()
        kind = encoder_of(config)
        self.feature_extractor = kind.features(config)
        self.feature_projection = kind.projection(config)
        self.pos_conv_embed = kind.positions(config)
        # The stable variant normalises after the last layer instead, so there the norm belongs to the tail.
        self.layer_norm = None if config.do_stable_layer_norm else _layer_norm(config)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.layers = _layers(config, layers)
        self.keeps_means = False  # `Frames.layer_means`, for a head that reads all layers

    def forward(self, waveforms: Sequence[Tensor]) -> Frames:
        """Frames (B, T, H) of B normalised waveforms (N_i,), 16 kHz, each at least as long as the receptive field."""
        fronts = self._fronts(waveforms)
        lengths = tuple(front.shape[0] for front in fronts)
        frames = Frames(nn.utils.rnn.pad_sequence(fronts, batch_first=True), lengths)  # (B, T, H)
        if self.keeps_means:
            frames = replace(frames, layer_means=frames.mean()[:, None])  # (B, 1, H)
        return _run(self.layers, frames)

    def _fronts(self, waveforms: Sequence[Tensor]) -> list[Tensor]:
        """B tensors (T_i, H); utterances of equal length are computed together."""
        by_length: dict[int, list[int]] = {}
        for index, waveform in enumerate(waveforms):
            by_length.setdefault(waveform.shape[0], []).append(index)
        fronts: dict[int, Tensor] = {}
        for indices in by_length.values():
            front = self._front(torch.stack([waveforms[index] for index in indices]))
            fronts.update(zip(indices, front.unbind(0), strict=True))
        return [fronts[index] for index in range(len(waveforms))]

    def _front(self, waveforms: Tensor) -> Tensor:
        """(B, N) to (B, T, H)."""
        features = self.feature_extractor(waveforms)  # (B, N) -> (B, C, T)
        projected = self.feature_projection(features.transpose(1, 2))  # (B, T, H), or that and the features normalised
        hidden = projected[0] if isinstance(projected, tuple) else projected
        hidden = hidden + self.pos_conv_embed(hidden)  # (B, T, H)
        if self.layer_norm is not None:
            hidden = self.layer_norm(hidden)
        return self.dropout(hidden)  # type: ignore[no-any-return]

    def load_from(self, full: EncoderModel) -> None:
        """Copy the weights of this part from a full model of the same configuration."""
        self.feature_extractor.load_state_dict(full.feature_extractor.state_dict())
        self.feature_projection.load_state_dict(full.feature_projection.state_dict())
        self.pos_conv_embed.load_state_dict(full.encoder.pos_conv_embed.state_dict())
        if self.layer_norm is not None:
            self.layer_norm.load_state_dict(full.encoder.layer_norm.state_dict())
        self.layers.load_state_dict(full.encoder.layers[: len(self.layers)].state_dict())


class Tail(nn.Module):
    """The last `layers` Transformer layers; each task has its own copy."""

    def __init__(self, config: EncoderConfig, layers: int) -> None:
        super().__init__()
        self.layers = _layers(config, layers)
        self.layer_norm = _layer_norm(config) if config.do_stable_layer_norm else None
        if layers < config.num_hidden_layers and (table := _table(self.layers)) is not None:
            table.requires_grad_(False)  # a copy of the trunk's

    def forward(self, frames: Frames) -> Frames:
        """The trunk's frames (B, T, H) to this task's (B, T, H)."""
        frames = _run(self.layers, frames)
        if self.layer_norm is None:
            return frames
        return replace(frames, hidden=self.layer_norm(frames.hidden))

    def load_from(self, full: EncoderModel) -> None:
        """Copy the weights of this part from a full model of the same configuration."""
        state = full.encoder.layers[len(full.encoder.layers) - len(self.layers) :].state_dict()
        if _table(self.layers) is not None:
            state[f"0.{_TABLE}"] = full.encoder.layers.state_dict()[f"0.{_TABLE}"]
        self.layers.load_state_dict(state)
        if self.layer_norm is not None:
            self.layer_norm.load_state_dict(full.encoder.layer_norm.state_dict())


def architecture(config: EncoderConfig) -> dict[str, Any]:
    """The settings that determine what is computed, by name, without those that matter in training only."""
    values = {name: getattr(config, name) for name in _ARCHITECTURE if hasattr(config, name)}
    return {name: list(value) if isinstance(value, list | tuple) else value for name, value in values.items()}


def _layers(config: EncoderConfig, count: int) -> nn.ModuleList:
    kind = encoder_of(config)
    layer = kind.stable_layer if config.do_stable_layer_norm else kind.layer
    if config.model_type == "wavlm":
        return nn.ModuleList([layer(config, has_relative_position_bias=index == 0) for index in range(count)])
    return nn.ModuleList([layer(config) for _ in range(count)])


def _table(layers: nn.ModuleList) -> nn.Parameter | None:
    """WavLM's table of relative positions; None where there is none."""
    embedding = getattr(layers[0].attention, "rel_attn_embed", None) if len(layers) else None
    return None if embedding is None else embedding.weight


def _layer_norm(config: EncoderConfig) -> nn.LayerNorm:
    return nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)


def _run(layers: nn.ModuleList, frames: Frames) -> Frames:
    """Apply Transformer layers with padding masked out, without LayerDrop: a served layer is never dropped."""
    mask, relative = frames.mask, _table(layers) is not None
    bias = None
    if relative:
        bias = mask  # of WavLM: (B, T)
    elif mask is not None:
        lowest = torch.finfo(frames.hidden.dtype).min
        bias = torch.zeros_like(mask, dtype=frames.hidden.dtype).masked_fill(~mask, lowest)[:, None, None, :]
    position = None  # of WavLM: (B heads, T, T), which its first layer makes
    for layer in layers:
        if relative:
            hidden, position = layer(frames.hidden, attention_mask=bias, position_bias=position)  # (B, T, H)
        else:
            hidden = layer(frames.hidden, attention_mask=bias)  # (B, T, H)
        frames = replace(frames, hidden=hidden)
        if frames.layer_means is not None:
            frames = replace(frames, layer_means=torch.cat([frames.layer_means, frames.mean()[:, None]], dim=1))
    return frames
