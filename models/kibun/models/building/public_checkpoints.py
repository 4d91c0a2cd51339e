"""Public checkpoints that estimate emotion as dimensions, in transformers' layout.

Two layouts are supported, each on wav2vec 2.0 or HuBERT, which have the same architecture, so that trunk and tail can
hold the weights of either:

- a regression head `classifier.dense`, tanh, `classifier.out_proj` on the mean over frames, as audEERING's
  wav2vec2-large-robust-12-ft-emotion-msp-dim has it (Wagner et al., "Dawn of the transformer era in speech emotion
  recognition", IEEE TPAMI 2023);
- transformers' own `...ForSequenceClassification`: `projector`, mean over frames, `classifier`: one linear map.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from kibun.models import fields
from kibun.models._transformers import (
    HubertForSequenceClassification,
    HubertModel,
    Wav2Vec2ForSequenceClassification,
    Wav2Vec2Model,
    modeling_hubert,
    modeling_wav2vec2,
)
from kibun.models.building.checkpoint import Checkpoint, find_checkpoint
from kibun.models.encoders import EncoderConfig, encoder_config, encoder_of
from kibun.models.files import BundleError

PUBLIC_SCALE = (0.0, 1.0)
_NAMES: Mapping[str, tuple[str, ...]] = {"valence": ("valence",), "arousal": ("arousal", "activation")}
_EXAMPLE = "audeering/wav2vec2-large-robust-12-ft-emotion-msp-dim"
_HEAD: Mapping[str, fields.Rule] = {
    "id2label": fields.Rule(
        "an object that names the outputs 0, 1, …",
        lambda v: fields.NAMES.fits(v) and 0 < len(v) <= 1000 and {*v} == {str(row) for row in range(len(v))},
    ),
    "architectures": fields.optional(fields.several(fields.line(255), 0, 16)),
    "classifier_proj_size": fields.whole(1, 8192),
    "use_weighted_layer_sum": fields.Rule("false", lambda v: v is False),
    "pooling_mode": fields.one_of("mean"),
}
_REMEDY = (
    "; its head must be `classifier.dense` and `classifier.out_proj`, or `projector` and `classifier` under an"
    " architecture named ...ForSequenceClassification"
)


class _RegressionHead(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.num_labels)


class _Wav2Vec2Regression(modeling_wav2vec2.Wav2Vec2PreTrainedModel):  # type: ignore[no-untyped-call]
    """Defines the names of such a checkpoint's weights; transformers takes care of prefixes and shards."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.wav2vec2 = Wav2Vec2Model(config)
        self.classifier = _RegressionHead(config)
        self.post_init()  # type: ignore[no-untyped-call]


class _HubertRegression(modeling_hubert.HubertPreTrainedModel):  # type: ignore[no-untyped-call]
    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.hubert = HubertModel(config)
        self.classifier = _RegressionHead(config)
        self.post_init()  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class PublicCheckpoint:
    """A loaded checkpoint: encoder, head, the output row of each emotion dimension, and its licence."""

    name: str
    encoder: Any  # HubertModel or Wav2Vec2Model
    config: EncoderConfig  # of the encoder
    classifier: Any
    projector: nn.Linear | None
    rows: Mapping[str, int]
    do_normalize: bool
    licence: str  # in words
    license: str | None  # as its README names it


def read_public_checkpoint(source: str | Path) -> PublicCheckpoint:
    """Load a checkpoint. Raises BundleError, which names file and field, or what it lacks."""
    checkpoint = find_checkpoint(source, ("wav2vec2", "hubert"), _EXAMPLE)
    settings, head = checkpoint.settings(), checkpoint.checked(lambda content: fields.check(content, _HEAD))
    rows = _rows(checkpoint, head.get("id2label", {}))
    hubert = checkpoint.config["model_type"] == "hubert"
    projected = any(name.endswith("ForSequenceClassification") for name in head.get("architectures") or ())
    if projected:
        kind: Any = HubertForSequenceClassification if hubert else Wav2Vec2ForSequenceClassification
    else:
        kind = _HubertRegression if hubert else _Wav2Vec2Regression
    outputs: dict[str, Any] = {"id2label": {int(row): label for row, label in head["id2label"].items()}}
    if "classifier_proj_size" in head:
        outputs["classifier_proj_size"] = head["classifier_proj_size"]
    config = encoder_config(settings)
    loaded: Any = checkpoint.load(kind, encoder_of(config).config(**{**config.to_dict(), **outputs}), _REMEDY)
    return PublicCheckpoint(
        name=checkpoint.name,
        encoder=loaded.hubert if hubert else loaded.wav2vec2,
        config=config,
        classifier=loaded.classifier,
        projector=loaded.projector if projected else None,
        rows=rows,
        do_normalize=checkpoint.do_normalize(),
        licence=_licence(checkpoint),
        license=checkpoint.license(),
    )


def _rows(checkpoint: Checkpoint, id2label: Mapping[str, str]) -> dict[str, int]:
    """The output row of each emotion dimension, which only `id2label` shows."""
    labels = {label.strip().lower(): int(row) for row, label in id2label.items()}
    rows = {}
    for dimension, names in _NAMES.items():
        found = [labels[name] for name in names if name in labels]
        if not found:
            listed = ", ".join(id2label.values()) or "nothing"
            raise BundleError(
                f"{checkpoint.config_file}: id2label names no output {dimension!r} (it names {listed}), and only"
                " id2label shows which output is which: add it, as in"
                ' {"0": "arousal", "1": "dominance", "2": "valence"}'
            )
        rows[dimension] = found[0]
    return rows


def _licence(checkpoint: Checkpoint) -> str:
    """The licence that the checkpoint's README states, or that it is unknown; never a guess."""
    if found := checkpoint.license():
        return found
    if "audeering/" in checkpoint.source.lower():
        return (
            "unknown: see the checkpoint's page (audEERING publishes its own under CC-BY-NC-SA-4.0, no commercial use)"
        )
    return "unknown: see the checkpoint's page"
