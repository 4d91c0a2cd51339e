"""A bundle around a public emotion checkpoint (`published`), with personality from elsewhere or none.

Outputs are 0..1 there and 1..5 here: 4 y + 1 is folded into the last layer, and the bundle is marked so.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from kibun.models._transformers import quiet
from kibun.models.building.assemble import copy_tasks, new_model, personality_settings, same_bits
from kibun.models.building.cards import DISCLAIMER, facts_of, part_cards, warnings
from kibun.models.building.checksum import trunk_checksum
from kibun.models.building.parts import Part, load_parts
from kibun.models.building.public_checkpoints import PUBLISHED_SCALE, Published, read_published
from kibun.models.conditioning import Baseline, Regression
from kibun.models.config import KibunConfig
from kibun.models.hubert import Trunk, architecture
from kibun.models.model import KibunModel

TAIL = "emotion"


def build_emotion_model(
    checkpoint: str | Path,
    *,
    name: str,
    version: str = "1",
    personality: str | Path | None = None,
    trunk_layers: int | None = None,
) -> KibunModel:
    """Make a model whose emotion is that of a public checkpoint, and whose personality, if any, is another's.

    Args:
        checkpoint: folder, or id on the Hugging Face hub. Its outputs have to be 0..1.
        name, version: what the bundle calls itself.
        personality: run folder of `kibun train pr`, or a bundle; it keeps a trunk of its own unless the checkpoint's
            is bit-equal. None: no personality.
        trunk_layers: layers that count as trunk; half by default. It does not change any estimate.

    Returns:
        A model in evaluation mode. Valence and arousal share a tail.

    Raises:
        BundleError: no such checkpoint, or one of another kind; the message names what is missing.
        ValueError: trunk_layers is impossible.
    """
    with quiet():
        published = read_published(checkpoint)
    parts = [] if personality is None else load_parts({"personality": personality})
    model = new_model(_config(published, parts, name, version, trunk_layers))
    model.trunk.load_from(published.encoder)
    model.tail("valence").load_from(published.encoder)
    for dimension, row in published.rows.items():
        _fill_head(model.emotion_heads[dimension], published, row)
    if model.personality_trunk is not None:
        model.personality_trunk.load_state_dict(parts[0].trunk.state_dict())
    copy_tasks(model, parts)
    model.config.trunk_sha256 = trunk_checksum(model)
    model.card = _card(model.config, published, parts, model.expected_error is not None)
    return model


def _config(published: Published, parts: list[Part], name: str, version: str, trunk_layers: int | None) -> KibunConfig:
    personality = parts[0] if parts else None
    settings: dict[str, Any] = personality_settings(personality)
    if personality is not None:
        settings |= {"trained": personality.config.trained, "synthetic": personality.config.synthetic}
        settings["trait_scale"] = personality.config.trait_scale
        if trunk_layers in (None, personality.trunk_layers) and _same_trunk(published, personality):
            trunk_layers = personality.trunk_layers
        else:
            settings["personality_hubert"] = personality.hubert.to_diff_dict()
            settings["personality_trunk_layers"] = personality.trunk_layers
            settings["personality_do_normalize"] = personality.do_normalize
    return KibunConfig(
        hubert=published.hubert.to_diff_dict(),
        trunk_layers=trunk_layers,
        do_normalize=published.do_normalize,
        trunk_from=published.name,
        tasks=[part.task for part in parts] + ["valence", "arousal"],
        tail_of={"valence": TAIL, "arousal": TAIL},
        emotion_head="regression" if published.projector is None else "baseline",
        emotion_rescaled_from=PUBLISHED_SCALE,
        bundle_name=name,
        bundle_version=version,
        **{"trained": True, **settings},
    )


def _same_trunk(published: Published, personality: Part) -> bool:
    """Whether personality was trained on this very checkpoint, so that one trunk will do."""
    if architecture(published.hubert) != architecture(personality.hubert):
        return False
    if published.do_normalize != personality.do_normalize:
        return False
    with torch.random.fork_rng(devices=[]):
        trunk = Trunk(personality.hubert, personality.trunk_layers)
    trunk.load_from(published.encoder)
    theirs = personality.trunk.state_dict()
    return all(same_bits(value, theirs[name]) for name, value in trunk.state_dict().items())


@torch.no_grad()
def _fill_head(head: nn.Module, published: Published, row: int) -> None:
    """One dimension's head; its last layer gives 4 y + 1 where the checkpoint gives y."""
    if isinstance(head, Regression):
        head.dense.load_state_dict(published.classifier.dense.state_dict())
        weight, bias = published.classifier.out_proj.weight[row], published.classifier.out_proj.bias[row]
    else:
        projector, classifier = cast(nn.Linear, published.projector), published.classifier
        weight = classifier.weight[row] @ projector.weight  # (P,) @ (P, H) -> (H,): two linear maps are one
        bias = classifier.weight[row] @ projector.bias + classifier.bias[row]
    out = cast(nn.Linear, cast(Regression | Baseline, head).out)
    out.weight.copy_(4.0 * weight[None])
    out.bias.copy_(4.0 * bias + 1.0)


def _card(config: KibunConfig, published: Published, parts: list[Part], error_known: bool) -> str:
    trunk = f"{config.trunk_layers} Transformer layers as trunk, {config.tail_layers} as tail"
    if parts:
        where = "a trunk of its own" if config.personality_hubert is not None else "the same trunk"
        personality = f"`{parts[0].run}`, through {where}"
    else:
        personality = "none"
    return (
        f"# {config.bundle_name} (version {config.bundle_version})\n\n{warnings(config, parts)}{DISCLAIMER}\n"
        f"- Emotion: the public checkpoint `{published.name}`, as published, {trunk}, SHA-256 {config.trunk_sha256}\n"
        f"- **Licence of the emotion checkpoint: {published.licence}.** It binds whoever uses this bundle\n"
        "- **Rescaled**: it estimates 0..1; valence and arousal are 4 y + 1 of that, 1..5, limited to the scale. They\n"
        "  were not trained on labels of 1..5, and 3 is the middle of the scale, not a measured neutral\n"
        f"- Personality from: {personality}\n"
        f"{facts_of(config, error_known)}"
        "- Training data, split and evaluation of emotion: see the checkpoint's page; kibun measured none\n"
        + (f"\n{part_cards(parts)}" if parts else "")
    )
