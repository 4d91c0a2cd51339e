"""Bundles around a public emotion checkpoint, with the personality of another model or none.

Where its outputs are dimensions, they are 0..1, kibun's 1..5: 4 y + 1 is folded into the last layer. Where they are
categories, an estimate is the mean of their points of valence and arousal, weighted by their probabilities. Either is
marked in the bundle.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from kibun.models._transformers import quiet
from kibun.models.building.assemble import copy_tasks, joint_license_text, new_model, personality_settings, same_bits
from kibun.models.building.cards import facts_of, head, part_cards
from kibun.models.building.checksum import trunk_checksum
from kibun.models.building.parts import Part, load_parts
from kibun.models.building.public_checkpoints import PUBLIC_SCALE, PublicCheckpoint, read_public_checkpoint
from kibun.models.categories import SOURCE
from kibun.models.conditioning import Baseline, Regression
from kibun.models.config import KibunConfig
from kibun.models.files import joint_license
from kibun.models.hubert import Trunk, architecture
from kibun.models.model import KibunModel
from kibun.models.readout import Readout
from kibun.models.settings import READOUT

TAIL = "emotion"


def build_emotion_model(
    checkpoint: str | Path,
    *,
    name: str,
    version: str = "1",
    personality: str | Path | None = None,
    trunk_layers: int | None = None,
) -> KibunModel:
    """Make a model from a public checkpoint's emotion and, if given, another model's personality.

    Args:
        checkpoint: folder, or id on the Hugging Face hub; its outputs must be dimensions of 0..1, or categories.
        name, version: of the bundle.
        personality: run folder of `kibun train pr`, or a bundle; its own trunk is included unless the checkpoint's is
            bit-equal. None: no personality.
        trunk_layers: layers that count as trunk; half by default. No estimate depends on it.

    Returns:
        A model in evaluation mode. Valence and arousal share a tail.

    Raises:
        BundleError: there is no such checkpoint, or it is of another kind; the message names what is missing.
        ValueError: trunk_layers is impossible.
    """
    with quiet():
        source = read_public_checkpoint(checkpoint)
    parts = [] if personality is None else load_parts({"personality": personality})
    model = new_model(_config(source, parts, name, version, trunk_layers))
    model.trunk.load_from(source.encoder)
    model.tail("valence").load_from(source.encoder)
    for dimension, head_ in model.emotion_heads.items():
        _fill_head(head_, source, source.rows.get(dimension))
    if model.personality_trunk is not None:
        model.personality_trunk.load_state_dict(parts[0].trunk.state_dict())
    copy_tasks(model, parts)
    model.config.trunk_sha256 = trunk_checksum(model)
    model.license_text = joint_license_text(parts)
    model.card = _card(model.config, source, parts, model.evidence is not None)
    return model


def _config(
    source: PublicCheckpoint, parts: list[Part], name: str, version: str, trunk_layers: int | None
) -> KibunConfig:
    personality = parts[0] if parts else None
    settings: dict[str, Any] = personality_settings(personality)
    if personality is not None:
        settings["trained"] = personality.config.trained
        settings["synthetic_parts"] = ["personality"] if personality.synthetic else []
        settings["trait_scale"] = personality.config.trait_scale
        if trunk_layers in (None, personality.trunk_layers) and _same_trunk(source, personality):
            trunk_layers = personality.trunk_layers
        else:
            settings["personality_hubert"] = personality.hubert.to_diff_dict()
            settings["personality_trunk_layers"] = personality.trunk_layers
            settings["personality_do_normalize"] = personality.do_normalize
    return KibunConfig(
        hubert=source.config.to_diff_dict(),
        trunk_layers=trunk_layers,
        do_normalize=source.do_normalize,
        trunk_from=source.name,
        tasks=[part.task for part in parts] + ["valence", "arousal"],
        tail_of={"valence": TAIL, "arousal": TAIL},
        **_head_settings(source),
        bundle_name=name,
        bundle_version=version,
        license=joint_license([source.license, *(part.config.license for part in parts)]),
        **{"trained": True, **settings},
    )


def _same_trunk(source: PublicCheckpoint, personality: Part) -> bool:
    """Whether personality was trained on this checkpoint, so that both can share a trunk."""
    if architecture(source.config) != architecture(personality.hubert):
        return False
    if source.do_normalize != personality.do_normalize:
        return False
    with torch.random.fork_rng(devices=[]):
        trunk = Trunk(personality.hubert, personality.trunk_layers)
    trunk.load_from(source.encoder)
    theirs = personality.trunk.state_dict()
    return all(same_bits(value, theirs[name]) for name, value in trunk.state_dict().items())


def _head_settings(source: PublicCheckpoint) -> dict[str, Any]:
    """The emotion head that can hold the checkpoint's."""
    if source.points is not None:
        outputs: dict[str, Any] = {
            "emotion_classes": source.labels,
            "emotion_points": source.points,
            "emotion_points_from": SOURCE,
        }
    else:
        outputs = {"emotion_rescaled_from": PUBLIC_SCALE}
    if source.layout == "ser":
        layers = len(source.model.ser_model.fc)
        return {"emotion_head": READOUT, "readout_pooling": "attentive", "readout_hidden": layers, **outputs}
    if source.layout == "regression":
        return {"emotion_head": "regression", **outputs}
    if source.points is None and not source.weighted:
        return {"emotion_head": "baseline", **outputs}
    return {"emotion_head": READOUT, "readout_pooling": "layers" if source.weighted else "mean", **outputs}


@torch.no_grad()
def _fill_head(head: nn.Module, source: PublicCheckpoint, row: int | None) -> None:
    """Copy the checkpoint's head for one dimension, which is this row of its outputs; None: for all categories."""
    theirs = source.model
    if isinstance(head, Regression):
        head.dense.load_state_dict(theirs.classifier.dense.state_dict())
        last = theirs.classifier.out_proj
        weight, bias = last.weight, last.bias  # (C, H), (C,)
    elif source.layout == "ser":
        readout = cast(Readout, head)
        readout.project.load_state_dict(theirs.pool_model.sap_linear.state_dict())
        readout.attention.copy_(theirs.pool_model.attention[:, 0])
        for ours, layer in zip(readout.hidden, theirs.ser_model.fc, strict=True):
            ours.load_state_dict(layer.state_dict())
        weight, bias = theirs.ser_model.out[0].weight, theirs.ser_model.out[0].bias
    else:
        projector, classifier = theirs.projector, theirs.classifier
        weight = classifier.weight @ projector.weight  # (C, P) @ (P, H) -> (C, H): two linear maps are one
        bias = classifier.weight @ projector.bias + classifier.bias
        if source.weighted:
            cast(Readout, head).layer_weights.copy_(theirs.layer_weights)
    out = cast(Regression | Baseline | Readout, head).out
    if row is not None:  # y of 0..1 becomes 4 y + 1
        weight, bias = 4.0 * weight[row][None], 4.0 * bias[row] + 1.0
    out.weight.copy_(weight)
    out.bias.copy_(bias)


def _card(config: KibunConfig, source: PublicCheckpoint, parts: list[Part], error_known: bool) -> str:
    trunk = f"{config.trunk_layers} Transformer layers as trunk, {config.tail_layers} as tail"
    if parts:
        where = "its own trunk" if config.personality_hubert is not None else "the same trunk"
        personality = f"`{parts[0].run}`, with {where}"
    else:
        personality = "none"
    return (
        f"{head(config, parts)}"
        f"- Emotion: the public checkpoint `{source.name}`, as published, {trunk}, SHA-256 {config.trunk_sha256}\n"
        f"- **Licence of the emotion checkpoint: {source.licence}.** It applies to every use of this bundle\n"
        f"{_outputs(config)}"
        f"- Personality from: {personality}\n"
        f"{facts_of(config, error_known)}"
        "- Training data, split and evaluation of emotion: see the checkpoint's page; kibun measured none\n"
        + (f"\n{part_cards(parts)}" if parts else "")
    )


def _outputs(config: KibunConfig) -> str:
    """Lines on what the checkpoint's outputs are, and what became of them."""
    if config.emotion_classes is None:
        return (
            "- **Rescaled**: it estimates 0..1; valence and arousal are 4 y + 1 of that, 1..5, limited to the scale.\n"
            "  They were not trained on labels of 1..5, and 3 is the middle of the scale, not a measured neutral\n"
        )
    points = zip(config.emotion_classes, cast(tuple[tuple[float, float], ...], config.emotion_points), strict=True)
    listed = ", ".join(f"{name} {valence:.2f} / {arousal:.2f}" for name, (valence, arousal) in points)
    return (
        "- **From categories**: valence and arousal are the means of the categories' points, weighted by their\n"
        "  probabilities. It never heard a rating of valence or arousal: no estimate is outside these points, and how\n"
        "  far it moves is the table's doing\n"
        f"- Points (valence / arousal): {listed}. Source: {config.emotion_points_from}\n"
    )
