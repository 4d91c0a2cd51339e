"""Public checkpoints that estimate emotion, in layouts that can be described without running their code.

Each on HuBERT, wav2vec 2.0 or WavLM:

- "regression": `classifier.dense`, tanh, `classifier.out_proj` on the mean over frames, as audEERING's
  wav2vec2-large-robust-12-ft-emotion-msp-dim has it (Wagner et al., "Dawn of the transformer era in speech emotion
  recognition", IEEE TPAMI 2023);
- "sequence": transformers' own `...ForSequenceClassification`: `projector`, mean over frames, `classifier`, of the last
  layer or, with `use_weighted_layer_sum`, of a weighted sum of all, as SUPERB's checkpoints have it (Yang et al.,
  Interspeech 2021);

and on WavLM:

- "ser": attentive statistics and a small network, model_type "ser", as 3loi's SER-Odyssey-Baseline-WavLM have it: the
  baselines of the Odyssey 2024 challenge (Goncalves et al., Odyssey 2024). They scale their input by two numbers.

The outputs are either dimensions of 0..1, or categories that `kibun.models.categories` has points for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from kibun.models import fields
from kibun.models._transformers import (
    HubertForSequenceClassification,
    Wav2Vec2ForSequenceClassification,
    WavLMForSequenceClassification,
    modeling_hubert,
    modeling_wav2vec2,
    modeling_wavlm,
)
from kibun.models.building.checkpoint import Checkpoint, find_checkpoint
from kibun.models.categories import NORMS, label_point
from kibun.models.encoders import ENCODERS, EncoderConfig, encoder_config, encoder_of
from kibun.models.files import BundleError
from kibun.models.types import EMOTIONS

Layout = Literal["regression", "sequence", "ser"]

PUBLIC_SCALE = (0.0, 1.0)
_NAMES: Mapping[str, tuple[str, ...]] = {"valence": ("valence",), "arousal": ("arousal", "activation")}
_EXAMPLE = "audeering/wav2vec2-large-robust-12-ft-emotion-msp-dim"
_HEAD: Mapping[str, fields.Rule] = {
    "id2label": fields.Rule(
        "an object that names the outputs 0, 1, …",
        lambda v: fields.NAMES.fits(v) and 0 < len(v) <= 64 and {*v} == {str(row) for row in range(len(v))},
    ),
    "architectures": fields.optional(fields.several(fields.line(255), 0, 16)),
    "classifier_proj_size": fields.whole(1, 8192),
    "use_weighted_layer_sum": fields.FLAG,
    "pooling_mode": fields.one_of("mean"),
    "problem_type": fields.optional(fields.one_of("regression", "single_label_classification")),
}
_SER: Mapping[str, fields.Rule] = {
    "id2label": _HEAD["id2label"],
    "ssl_type": fields.one_of("microsoft/wavlm-large"),
    "num_classes": fields.whole(1, 64),
    "classifier_hidden_layers": fields.whole(1, 16),
    "sampling_rate": fields.Rule("16000", lambda v: v == 16_000),
    "mean": fields.number(-1, 1),
    "std": fields.number(1e-6, 10),
}
# Of the layout "ser", which names its encoder and gives only some of its settings.
_WAVLM_LARGE: Mapping[str, Any] = {
    "model_type": "wavlm",
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
}
_REMEDY = (
    "; its head must be `classifier.dense` and `classifier.out_proj`, or `projector` and `classifier` under an"
    " architecture named ...ForSequenceClassification"
)
_SEQUENCE: Mapping[str, Any] = {
    "hubert": HubertForSequenceClassification,
    "wav2vec2": Wav2Vec2ForSequenceClassification,
    "wavlm": WavLMForSequenceClassification,
}


class _RegressionHead(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.num_labels)


class _AttentiveStatistics(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.sap_linear = nn.Linear(config.hidden_size, config.hidden_size)
        self.attention = nn.Parameter(torch.zeros(config.hidden_size, 1))


class _SerHead(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        size = config.hidden_size
        widths = [2 * size, *[size] * (config.classifier_hidden_layers - 1)]
        self.fc = nn.ModuleList([nn.Sequential(nn.Linear(width, size), nn.LayerNorm(size)) for width in widths])
        self.out = nn.Sequential(nn.Linear(size, config.num_labels))


# They define the names of such a checkpoint's weights; transformers takes care of prefixes and shards.
class _Regression:
    def __init__(self, config: Any) -> None:
        super().__init__(config)  # type: ignore[call-arg]
        setattr(self, self.base_model_prefix, encoder_of(config).model(config))  # type: ignore[attr-defined]
        self.classifier = _RegressionHead(config)
        self.post_init()  # type: ignore[attr-defined]


class _HubertRegression(_Regression, modeling_hubert.HubertPreTrainedModel):  # type: ignore[no-untyped-call]
    pass


class _Wav2Vec2Regression(_Regression, modeling_wav2vec2.Wav2Vec2PreTrainedModel):  # type: ignore[no-untyped-call]
    pass


class _WavLMRegression(_Regression, modeling_wavlm.WavLMPreTrainedModel):  # type: ignore[no-untyped-call]
    pass


class _Ser(modeling_wavlm.WavLMPreTrainedModel):  # type: ignore[no-untyped-call]
    base_model_prefix = "ssl_model"

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.ssl_model = encoder_of(config).model(config)
        self.pool_model = _AttentiveStatistics(config)
        self.ser_model = _SerHead(config)
        self.post_init()  # type: ignore[no-untyped-call]


_REGRESSION: Mapping[str, Any] = {
    "hubert": _HubertRegression,
    "wav2vec2": _Wav2Vec2Regression,
    "wavlm": _WavLMRegression,
}


@dataclass(frozen=True)
class PublicCheckpoint:
    """A loaded checkpoint."""

    name: str
    layout: Layout
    model: Any  # encoder and head, with the checkpoint's own names
    encoder: Any
    config: EncoderConfig  # of the encoder
    rows: Mapping[str, int]  # the output row of each emotion dimension; empty for categories
    labels: tuple[str, ...]  # of all rows
    points: tuple[tuple[float, float], ...] | None  # (valence, arousal) of each category, 1..5; None: dimensions
    do_normalize: bool
    licence: str  # in words
    license: str | None  # as its README names it

    @property
    def weighted(self) -> bool:
        """Whether it reads a weighted sum of all layers."""
        return hasattr(self.model, "layer_weights")


def read_public_checkpoint(source: str | Path) -> PublicCheckpoint:
    """Load a checkpoint. Raises BundleError, which names file and field, or what it lacks."""
    checkpoint = find_checkpoint(source, (*ENCODERS, "ser"), _EXAMPLE)
    ser = checkpoint.config["model_type"] == "ser"
    head = checkpoint.checked(lambda content: fields.check(content, _SER if ser else _HEAD))
    labels = tuple(head.get("id2label", {}).get(str(row), "") for row in range(len(head.get("id2label", {}))))
    if ser and labels and head.get("num_classes", len(labels)) != len(labels):
        raise BundleError(
            f"{checkpoint.config_file}: num_classes is {head['num_classes']}, and id2label names {len(labels)} outputs"
        )
    sequence = any(name.endswith("ForSequenceClassification") for name in head.get("architectures") or ())
    layout: Layout = "ser" if ser else "sequence" if sequence else "regression"
    rows, points = _outputs(checkpoint, labels, classes=layout != "regression")
    if layout != "sequence" and head.get("use_weighted_layer_sum"):
        raise BundleError(
            f"{checkpoint.config_file}: use_weighted_layer_sum is true, allowed is false but for an architecture named"
            " ...ForSequenceClassification"
        )
    config = encoder_config(_ser_settings(checkpoint) if ser else checkpoint.settings())
    kind = _Ser if ser else (_SEQUENCE if sequence else _REGRESSION)[config.model_type]
    extra: dict[str, Any] = {"id2label": dict(enumerate(labels))}
    for name in ("classifier_proj_size", "use_weighted_layer_sum", "classifier_hidden_layers"):
        if name in head:
            extra[name] = head[name]
    if ser:
        extra.setdefault("classifier_hidden_layers", 1)
    remedy = "" if ser else _REMEDY
    loaded: Any = checkpoint.load(kind, encoder_of(config).config(**{**config.to_dict(), **extra}), remedy)
    encoder = getattr(loaded, loaded.base_model_prefix)
    if ser:
        config = _scaled_input(encoder, config, head.get("mean", 0.0), head.get("std", 1.0))
    return PublicCheckpoint(
        name=checkpoint.name,
        layout=layout,
        model=loaded,
        encoder=encoder,
        config=config,
        rows=rows,
        labels=labels,
        points=points,
        do_normalize=False if ser else checkpoint.do_normalize(),
        licence=_licence(checkpoint),
        license=checkpoint.license(),
    )


def _ser_settings(checkpoint: Checkpoint) -> dict[str, Any]:
    """The settings of the encoder that `ssl_type` names, with those that the checkpoint gives itself."""
    if "ssl_type" not in checkpoint.config:
        raise BundleError(f"{checkpoint.config_file}: ssl_type is missing, which names the encoder")
    given = {name: value for name, value in checkpoint.config.items() if name != "model_type"}
    return checkpoint.checked(lambda _content: fields.check_encoder({**_WAVLM_LARGE, **given}))


@torch.no_grad()
def _scaled_input(encoder: Any, config: EncoderConfig, mean: float, deviation: float) -> EncoderConfig:
    """Fold (x - mean) / (deviation + 1e-6) of the input into the first convolution, which then has a bias."""
    scale = 1.0 / (deviation + 1e-6)
    for number, layer in enumerate(encoder.feature_extractor.conv_layers):
        if layer.conv.bias is None:
            layer.conv.bias = nn.Parameter(torch.zeros(layer.conv.out_channels))
        if number == 0:
            layer.conv.weight.mul_(scale)
            layer.conv.bias.sub_(mean * layer.conv.weight.sum(dim=(1, 2)))
    return encoder_config({**config.to_diff_dict(), "model_type": config.model_type, "conv_bias": True})


def _outputs(
    checkpoint: Checkpoint, labels: tuple[str, ...], *, classes: bool
) -> tuple[dict[str, int], tuple[tuple[float, float], ...] | None]:
    """What the outputs are, which only `id2label` shows: the row of each dimension, or a point for each category."""
    known = {label.strip().lower(): row for row, label in enumerate(labels)}
    rows = {
        dimension: next((known[name] for name in names if name in known), None) for dimension, names in _NAMES.items()
    }
    if all(row is not None for row in rows.values()):
        return {dimension: row for dimension, row in rows.items() if row is not None}, None
    points = [label_point(label) for label in labels]
    if classes and len(labels) > 1 and all(point is not None for point in points):
        return {}, tuple(point for point in points if point is not None)
    unknown = [label for label, point in zip(labels, points, strict=True) if point is None]
    file = f"{checkpoint.config_file}: id2label"
    if classes and 0 < len(unknown) < len(labels) and not any(row is not None for row in rows.values()):
        raise BundleError(
            f"{file} names categories that have no point of valence and arousal: {', '.join(unknown)}; those that"
            f" have one are {', '.join(NORMS)}"
        )
    lacking = next(dimension for dimension in EMOTIONS if rows[dimension] is None)
    raise BundleError(
        f"{file} names no output {lacking!r} (it names {', '.join(labels) or 'nothing'}), and only id2label shows which"
        ' output is which: add it, as in {"0": "arousal", "1": "dominance", "2": "valence"}'
    )


def _licence(checkpoint: Checkpoint) -> str:
    """The licence that the checkpoint's README states, or that it is unknown; never a guess."""
    if found := checkpoint.license():
        return found
    if "audeering/" in checkpoint.source.lower():
        return (
            "unknown: see the checkpoint's page (audEERING publishes its own under CC-BY-NC-SA-4.0, no commercial use)"
        )
    return "unknown: see the checkpoint's page"
