"""Assembling a bundle from the models of single tasks, which must have bit-equal trunks.

Each task is trained separately, on a frozen trunk. If the trunks are equal to the last bit, one copy serves all tasks;
if not, no bundle is made, and the message names what differs and the fix.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kibun.models.assembly import heard_misfit
from kibun.models.building.cards import assembled_card
from kibun.models.building.checksum import trunk_checksum
from kibun.models.building.parts import Part
from kibun.models.config import KibunConfig
from kibun.models.files import BundleError, joint_license
from kibun.models.hubert import architecture
from kibun.models.model import KibunModel
from kibun.models.types import EMOTIONS

# Settings that valence and arousal must share, and the heads that use them.
_EMOTION_SETTINGS = {
    "emotion_head": "baseline regression concat ca ticn-ca readout",
    "emotion_scale": "baseline regression concat ca ticn-ca readout",
    "emotion_rescaled_from": "baseline regression concat ca ticn-ca readout",
    "readout_pooling": "readout",
    "readout_hidden": "readout",
    "emotion_classes": "readout",
    "emotion_points": "readout",
    "emotion_points_from": "readout",
    "condition_on": "concat ca ticn-ca",
    "condition_source": "concat ca ticn-ca",
    "condition_centre": "concat ca ticn-ca",
    "condition_scale": "concat ca ticn-ca",
    "trait_scale": "concat ca ticn-ca",
    "condition_heads": "ca ticn-ca",
    "cross_attention_query": "ca ticn-ca",
    "condition_ff": "ticn-ca",
}


def assemble(parts: Sequence[Part], *, name: str, version: str = "1") -> KibunModel:
    """Assemble one model from several: one trunk, and each task's tail and head from its own run.

    Args:
        parts: of `load_parts`, at least one.
        name, version: of the bundle.

    Returns:
        A model in evaluation mode whose estimates are those of each run's own model. The evidence is that of
        personality's run. It counts as trained if all parts are, and as synthetic if any is.

    Raises:
        BundleError: the trunks are not bit-equal, or settings that tasks must share differ; the message names which,
            and the fix.
    """
    for other in parts[1:]:
        check_trunks(parts[0], other)
    emotion = [part for part in parts if part.task in EMOTIONS]
    _check_emotion(emotion)
    _check_scales(parts)
    config = KibunConfig(
        **_shared_settings(parts[0]),
        **personality_settings(parts[0] if parts[0].task == "personality" else None)
        | emotion_settings(emotion[0] if emotion else None),
        tasks=[part.task for part in parts],
        tail_of=shared_tails(parts),
        trait_scale=parts[0].config.trait_scale,
        trained=all(part.config.trained for part in parts),
        synthetic_parts=synthetic_parts(parts),
        bundle_name=name,
        bundle_version=version,
        license=joint_license(part.config.license for part in parts),
    )
    model = new_model(config)
    model.trunk.load_state_dict(parts[0].trunk.state_dict())
    copy_tasks(model, parts)
    if misfit := heard_misfit(model):
        fix = "train valence and arousal anew on this personality, with traits.source mixed or predicted"
        raise BundleError(f"{' and '.join(map(str, parts))} do not go together: {misfit}; {fix}")
    model.license_text = joint_license_text(parts)
    model.card = assembled_card(model.config, parts, trunk_checksum(model), model.evidence is not None)
    return model


def synthetic_parts(parts: Sequence[Part]) -> list[str]:
    """What learnt from generated speech: the tasks of such parts, and their trunk."""
    trunk = ["trunk"] if any(part.synthetic_trunk for part in parts) else []
    return [*trunk, *(part.task for part in parts if part.synthetic)]


def joint_license_text(parts: Sequence[Part]) -> str | None:
    """The texts of the parts' licences, each once."""
    texts = dict.fromkeys(part.model.license_text for part in parts if part.model.license_text is not None)
    return ("\n" + "-" * 80 + "\n\n").join(texts) if texts else None


def stored_dtype(parts: Sequence[Part]) -> torch.dtype | None:
    """float16 if all parts are stored in it, which loses nothing; None for float32."""
    return torch.float16 if {part.weights_dtype for part in parts} == {"F16"} else None


def new_model(config: KibunConfig) -> KibunModel:
    """A model whose weights will all be replaced, made without changing the global random state."""
    with torch.random.fork_rng(devices=[]):
        return KibunModel(config).train(False)


def copy_tasks(model: KibunModel, parts: Sequence[Part]) -> None:
    """Copy each part's tail and head into `model`, and the evidence of personality's run."""
    for part in parts:
        model.tail(part.task).load_state_dict(part.tail.state_dict())
        if part.task == "personality":
            model.personality_head.load_state_dict(part.model.personality_head.state_dict())
            model.conversation_head.load_state_dict(part.model.conversation_head.state_dict())
            model.evidence = part.model.evidence
        else:
            model.emotion_heads[part.task].load_state_dict(part.model.emotion_heads[part.task].state_dict())


# ---- settings ------------------------------------------------------------------------------------------------------


def _shared_settings(part: Part) -> dict[str, Any]:
    return {
        "hubert": part.hubert.to_dict(),
        "trunk_layers": part.trunk_layers,
        "do_normalize": part.do_normalize,
        "trunk_from": None if part.own_trunk else part.config.trunk_from,
        "trunk_sha256": None if part.own_trunk else part.config.trunk_sha256,
    }


def emotion_settings(part: Part | None) -> dict[str, Any]:
    """Settings of the emotion heads; empty without emotion."""
    names = [name for name in _EMOTION_SETTINGS if name != "trait_scale"]
    return {} if part is None else {name: getattr(part.config, name) for name in [*names, "head_dropout"]}


def personality_settings(part: Part | None) -> dict[str, Any]:
    """Settings of the personality heads; empty without personality."""
    names = ("conversation_size", "conversation_heads", "familiarity", "condition_centre", "condition_scale")
    return {} if part is None else {name: getattr(part.config, name) for name in names}


def shared_tails(parts: Sequence[Part]) -> dict[str, str] | None:
    """Tail names of tasks that share a tail in their run and so share it in the bundle: their names, joined."""
    groups: dict[tuple[Path, str], list[str]] = {}
    for part in parts:
        groups.setdefault((part.folder, part.config.tail_name(part.task)), []).append(part.task)
    return {task: "_".join(tasks) for tasks in groups.values() if len(tasks) > 1 for task in tasks} or None


# ---- checks --------------------------------------------------------------------------------------------------------


def _check_emotion(parts: Sequence[Part]) -> None:
    """Raise BundleError if valence and arousal have different head settings: a bundle stores one set."""
    if len(parts) < 2:
        return
    first, second = parts
    for name, heads in _EMOTION_SETTINGS.items():
        values = [getattr(part.config, name) for part in parts]
        if first.config.emotion_head in heads.split() and values[0] != values[1]:
            raise BundleError(
                f"{name} is {values[0]!r} in {first} and {values[1]!r} in {second}: one bundle has one;"
                " train both with the same settings"
            )


def _check_scales(parts: Sequence[Part]) -> None:
    """Raise BundleError if trait scales differ: emotion is conditioned on the traits that personality estimates."""
    for part in parts[1:]:
        scales = parts[0].config.trait_scale, part.config.trait_scale
        if scales[0] != scales[1]:
            raise BundleError(f"trait_scale is {scales[0]} in {parts[0]} and {scales[1]} in {part}: they must be equal")


def check_trunks(first: Part, second: Part) -> None:
    """Raise BundleError, with the reason, unless the trunks of two parts have equal settings and bit-equal weights."""
    if first.trunk is second.trunk:
        return
    head = f"{first} and {second} cannot share a trunk: "
    for name, ours, theirs in _differing_settings(first, second):
        fix = "build both from the same checkpoint with the same settings"
        raise BundleError(f"{head}{name} is {ours!r} in the first and {theirs!r} in the second; {fix}")
    ours, theirs = first.trunk.state_dict(), second.trunk.state_dict()
    if (only := ours.keys() ^ theirs.keys()) or any(ours[name].shape != theirs[name].shape for name in ours):
        raise BundleError(f"{head}their tensors differ in name or shape ({', '.join(sorted(only)[:3])})")
    differing = [name for name in ours if not same_bits(ours[name], theirs[name])]
    if differing:
        largest = max(float((ours[name].double() - theirs[name].double()).abs().max()) for name in differing)
        count = f"{len(differing)} of its {len(ours)} tensors differ"
        raise BundleError(
            f"{head}{count}, {differing[0]} first (by up to {largest:.3g}); {_why(first, second, differing)}"
        )


def _differing_settings(first: Part, second: Part) -> Iterator[tuple[str, Any, Any]]:
    """Settings of the trunk that differ: (name, first's value, second's value)."""
    for name in ("trunk_layers", "do_normalize"):
        if getattr(first, name) != getattr(second, name):
            yield name, getattr(first, name), getattr(second, name)
    ours, theirs = (architecture(part.hubert) for part in (first, second))
    yield from ((f"hubert.{name}", ours[name], theirs[name]) for name in ours if ours[name] != theirs[name])


def _why(first: Part, second: Part, differing: Sequence[str]) -> str:
    """The most likely cause, from what the bundles record, else from which tensors differ."""
    trained = [part for part in (first, second) if part.trunk_was_trained]
    if trained:
        whose = " and ".join(f"{part.task}'s" for part in trained)
        return f"{whose} trunk was trained: freeze it, and train {' and '.join(part.task for part in trained)} again"
    if first.weights_dtype != second.weights_dtype:
        stored = " and ".join(f"{part.task}'s as {part.weights_dtype}" for part in (first, second))
        return f"they are stored differently, {stored}: store both in the same precision"
    if first.trunk_was_trained is False and second.trunk_was_trained is False:
        origins = " and ".join(f"{part.config.trunk_from} ({part.config.trunk_sha256:.12})" for part in (first, second))
        return f"they come from different checkpoints, {origins}: train both from one"
    if any(name.startswith("feature_extractor.") for name in differing):
        return (
            "the convolutions differ too: they come from different checkpoints, or one trunk was trained from the"
            " first layer on; train both from one checkpoint, with the trunk frozen"
        )
    return (
        f"the convolutions are equal, so the checkpoint is the same, and one trunk was trained from {differing[0]} on:"
        " freeze it, and train again"
    )


def same_bits(ours: Tensor, theirs: Tensor) -> bool:
    """Whether two tensors have the same bits: here NaN equals NaN, and 0.0 differs from -0.0."""
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return False
    raw = [tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for tensor in (ours, theirs)]
    return torch.equal(*raw)
