"""Public checkpoints that estimate emotion as dimensions, in transformers' layout.

Two layouts are supported, each on wav2vec 2.0 or HuBERT, which have the same architecture, so that trunk and tail can
hold the weights of either:

- a regression head `classifier.dense`, tanh, `classifier.out_proj` on the mean over frames, as audEERING's
  wav2vec2-large-robust-12-ft-emotion-msp-dim has it (Wagner et al., "Dawn of the transformer era in speech emotion
  recognition", IEEE TPAMI 2023);
- transformers' own `...ForSequenceClassification`: `projector`, mean over frames, `classifier`: one linear map.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kibun.models._transformers import (
    HubertConfig,
    HubertForSequenceClassification,
    HubertModel,
    HubertPreTrainedModel,
    Wav2Vec2Config,
    Wav2Vec2ForSequenceClassification,
    Wav2Vec2Model,
    Wav2Vec2PreTrainedModel,
    cached_file,
)
from kibun.models.building.build import checkpoint_name, read_any_config, read_do_normalize
from kibun.models.files import BundleError
from kibun.models.hubert import architecture

PUBLIC_SCALE = (0.0, 1.0)
_NAMES = {"valence": ("valence",), "arousal": ("arousal", "activation")}
# from_pretrained creates it if a checkpoint lacks it; no layer of ours uses it.
_UNUSED = ("masked_spec_embed",)


class _RegressionHead(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.num_labels)


class _Wav2Vec2Regression(Wav2Vec2PreTrainedModel):  # type: ignore[no-untyped-call]
    """Defines the names of such a checkpoint's weights; transformers takes care of prefixes and shards."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.wav2vec2 = Wav2Vec2Model(config)
        self.classifier = _RegressionHead(config)
        self.post_init()  # type: ignore[no-untyped-call]


class _HubertRegression(HubertPreTrainedModel):  # type: ignore[no-untyped-call]
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
    hubert: HubertConfig  # of the encoder
    classifier: Any
    projector: nn.Linear | None
    rows: Mapping[str, int]
    do_normalize: bool
    licence: str


def read_public_checkpoint(checkpoint: str | Path) -> PublicCheckpoint:
    """Load a checkpoint. Raises BundleError, which names what it lacks."""
    config = read_any_config(checkpoint)
    _check_config(checkpoint, config)
    rows = _rows(checkpoint, config)
    hubert = isinstance(config, HubertConfig)
    projected = any(str(name).endswith("ForSequenceClassification") for name in config.architectures or ())
    if projected:
        kind: Any = HubertForSequenceClassification if hubert else Wav2Vec2ForSequenceClassification
    else:
        kind = _HubertRegression if hubert else _Wav2Vec2Regression
    loaded = _load(kind, checkpoint)
    return PublicCheckpoint(
        name=checkpoint_name(checkpoint),
        encoder=loaded.hubert if hubert else loaded.wav2vec2,
        hubert=_hubert_config(config),
        classifier=loaded.classifier,
        projector=loaded.projector if projected else None,
        rows=rows,
        do_normalize=read_do_normalize(checkpoint),
        licence=_licence(checkpoint),
    )


def _hubert_config(config: Any) -> HubertConfig:
    """The HuBERT configuration equivalent to a wav2vec 2.0 one; settings that only HuBERT has are at their defaults."""
    dropouts = ("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout")
    names = [*architecture(HubertConfig()), *dropouts]
    return HubertConfig(**{name: getattr(config, name) for name in names if hasattr(config, name)})


def _check_config(checkpoint: str | Path, config: Any) -> None:
    if not isinstance(config, HubertConfig | Wav2Vec2Config):
        raise BundleError(
            f"{checkpoint}: config.json has model_type {config.model_type!r}, only 'wav2vec2' and 'hubert' are"
            " supported, for example audeering/wav2vec2-large-robust-12-ft-emotion-msp-dim"
        )
    for name, allowed in (
        ("add_adapter", False),
        ("adapter_attn_dim", None),
        ("use_weighted_layer_sum", False),
        ("pooling_mode", "mean"),
    ):
        value = getattr(config, name, allowed)
        if value != allowed:
            raise BundleError(f"{checkpoint}: {name} is {value!r} in config.json, only {allowed!r} is supported")


def _rows(checkpoint: str | Path, config: Any) -> dict[str, int]:
    """The output row of each emotion dimension, which only `id2label` shows."""
    labels = {str(label).strip().lower(): int(row) for row, label in (config.id2label or {}).items()}
    rows = {}
    for dimension, names in _NAMES.items():
        found = [labels[name] for name in names if name in labels]
        if not found:
            listed = ", ".join(map(str, (config.id2label or {}).values())) or "nothing"
            raise BundleError(
                f"{checkpoint}: config.json's id2label names no output {dimension!r} (it names {listed}), and only"
                " id2label shows which output is which: add it, as in"
                ' {"0": "arousal", "1": "dominance", "2": "valence"}'
            )
        rows[dimension] = found[0]
    return rows


def _load(kind: Any, checkpoint: str | Path) -> Any:
    try:
        model, info = kind.from_pretrained(
            checkpoint, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
        )
    except Exception as error:  # OSError, and types of safetensors and pickle
        raise BundleError(f"{checkpoint}: the weights do not load: {error}") from error
    lacking = {*info["missing_keys"], *(key[0] for key in info["mismatched_keys"])}  # key: name, shape, shape
    missing = sorted(name for name in lacking if not name.endswith(_UNUSED))
    if missing:
        raise BundleError(
            f"{checkpoint}: lacks {len(missing)} weights that its config.json requires, or has them in another shape,"
            f" {missing[0]} first; its head must be `classifier.dense` and `classifier.out_proj`, or `projector` and"
            " `classifier` under an architecture named ...ForSequenceClassification"
        )
    return model.eval()


def _licence(checkpoint: str | Path) -> str:
    """The licence in the front matter of the checkpoint's README, or that it is unknown; never a guess."""
    file = cached_file(str(checkpoint), "README.md", _raise_exceptions_for_missing_entries=False)
    text = Path(file).read_text(encoding="utf-8", errors="replace") if file else ""
    matter = re.match(r"---\s*\n(.*?)\n---\s*(\n|\Z)", text, re.DOTALL)
    found = re.search(r"^license:[ \t]*(?:\n[ \t]*-[ \t]*)?([^\s#]+)", matter[1], re.MULTILINE) if matter else None
    if found:
        return found[1].strip("'\"")
    if "audeering/" in str(checkpoint).lower():
        return (
            "unknown: see the checkpoint's page (audEERING publishes its own under CC-BY-NC-SA-4.0, no commercial use)"
        )
    return "unknown: see the checkpoint's page"
