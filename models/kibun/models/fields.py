"""What the fields of a configuration may be, so that one that others wrote is checked before anything is built from it.

Every check raises ValueError, which names the field, its value and what is allowed. Nothing here needs torch.
"""

import json
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from kibun.models.encoder_settings import EncoderSettings
from kibun.models.types import EMOTIONS, TRAITS


@dataclass(frozen=True)
class Rule:
    """What a value may be, in words and as a test, and what it is stored as."""

    allowed: str
    fits: Callable[[Any], bool]
    to: Callable[[Any], Any] = lambda value: value


def whole(low: int, high: int) -> Rule:
    return Rule(f"a whole number from {low} to {high}", lambda v: type(v) is int and low <= v <= high)


def number(low: float, high: float) -> Rule:
    return Rule(f"a number from {low:g} to {high:g}", lambda v: _is_number(v) and low <= v <= high, float)


def one_of(*values: str) -> Rule:
    return Rule(f"one of {', '.join(map(json.dumps, values))}", lambda v: isinstance(v, str) and v in values)


def line(most: int) -> Rule:
    return Rule(
        f"one line of 1 to {most} characters",
        lambda v: isinstance(v, str) and 0 < len(v) <= most and v.isprintable(),
    )


def several(rule: Rule, low: int, high: int) -> Rule:
    return Rule(
        f"a list of {low} to {high} values, each {rule.allowed}",
        lambda v: isinstance(v, list | tuple) and low <= len(v) <= high and all(map(rule.fits, v)),
    )


def optional(rule: Rule) -> Rule:
    return Rule(f"null or {rule.allowed}", lambda v: v is None or rule.fits(v))


FLAG = Rule("true or false", lambda v: isinstance(v, bool))
OBJECT = Rule("an object", lambda v: isinstance(v, dict))
NAMES = Rule("an object of names", lambda v: isinstance(v, dict) and all(isinstance(k, str) for k in (*v, *v.values())))
SCALE = Rule(
    "a list of two numbers from -1000 to 1000, the lower one first",
    lambda v: several(number(-1000, 1000), 2, 2).fits(v) and v[0] < v[1],
)
SHA256 = Rule(
    "64 hexadecimal digits",
    lambda v: isinstance(v, str) and len(v) == 64 and not set(v) - set("0123456789abcdef"),
)

# The largest of these encoders has 48 layers of 1,280; nothing beyond these limits is a model that could be served.
_SIZE, _DROPOUT = whole(1, 8192), number(0, 1)
_ACTIVATION = one_of(
    "gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "quick_gelu", "relu", "silu", "swish", "tanh"
)

_ENCODER: Mapping[str, Rule] = {
    "conv_dim": several(_SIZE, 1, 16),
    "conv_kernel": several(whole(1, 4096), 1, 16),
    "conv_stride": several(whole(1, 4096), 1, 16),
    "conv_bias": FLAG,
    "feat_extract_norm": one_of("group", "layer"),
    "feat_extract_activation": _ACTIVATION,
    "num_conv_pos_embeddings": whole(1, 4096),
    "num_conv_pos_embedding_groups": _SIZE,
    "hidden_size": _SIZE,
    "num_hidden_layers": whole(1, 100),
    "num_attention_heads": whole(1, 1024),
    "intermediate_size": whole(1, 65_536),
    "hidden_act": _ACTIVATION,
    "layer_norm_eps": number(1e-12, 1),
    "do_stable_layer_norm": FLAG,
    "hidden_dropout": _DROPOUT,
    "attention_dropout": _DROPOUT,
    "activation_dropout": _DROPOUT,
    "feat_proj_dropout": _DROPOUT,
}
ENCODERS: Mapping[str, Mapping[str, Rule]] = {
    "hubert": {**_ENCODER, "feat_proj_layer_norm": FLAG, "conv_pos_batch_norm": FLAG},
    "wav2vec2": _ENCODER,
    "wavlm": {**_ENCODER, "num_buckets": whole(4, 65_536), "max_bucket_distance": whole(2, 65_536)},
}
"""By model_type, the settings of an encoder that are used; all others of a checkpoint's config.json are left alone."""

# Settings that would add layers, which nothing here runs.
_ADDITIONS: Mapping[str, Rule] = {
    "add_adapter": Rule("false", lambda v: v is False),
    "adapter_attn_dim": Rule("null", lambda v: v is None),
}

# What a checkpoint leaves out has transformers' default: that of the base model, the same for all kinds.
_BASE: Mapping[str, Any] = asdict(EncoderSettings())
_LARGEST_STRIDE = 16_000  # of all convolutions together: a frame a second

PREPROCESSOR: Mapping[str, Rule] = {
    "feature_extractor_type": one_of("Wav2Vec2FeatureExtractor"),
    "feature_size": whole(1, 1),
    "sampling_rate": whole(1, 1_000_000),
    "do_normalize": FLAG,
}

BUNDLE: Mapping[str, Rule] = {
    "hubert": OBJECT,
    "trunk_layers": whole(0, 100),
    "tasks": several(one_of("personality", *EMOTIONS), 1, 3),
    "tail_of": optional(NAMES),
    "trunk_from": optional(line(4096)),
    "trunk_sha256": optional(SHA256),
    "personality_hubert": optional(OBJECT),
    "personality_trunk_layers": optional(whole(0, 100)),
    "personality_do_normalize": FLAG,
    "emotion_head": line(64),
    "readout_pooling": line(64),
    "readout_hidden": whole(0, 16),
    "emotion_classes": optional(several(line(255), 1, 64)),
    "emotion_points": optional(several(several(number(-1000, 1000), len(EMOTIONS), len(EMOTIONS)), 1, 64)),
    "emotion_points_from": optional(line(1000)),
    "condition_on": several(one_of(*TRAITS), 1, 5),
    "condition_heads": whole(1, 1024),
    "condition_ff": whole(1, 65_536),
    "cross_attention_query": line(64),
    "condition_source": line(64),
    "condition_centre": several(number(-1000, 1000), 5, 5),
    "condition_scale": several(number(1e-3, 1000), 5, 5),
    "conversation_size": optional(_SIZE),
    "conversation_heads": whole(1, 1024),
    "familiarity": FLAG,
    "head_dropout": _DROPOUT,
    "sampling_rate": whole(1, 1_000_000),
    "do_normalize": FLAG,
    "trait_scale": SCALE,
    "emotion_scale": SCALE,
    "emotion_rescaled_from": optional(SCALE),
    "bundle_name": line(255),
    "bundle_version": line(255),
    "license": optional(line(1000)),
    "synthetic": FLAG,
    "synthetic_parts": several(one_of("trunk", "personality", *EMOTIONS), 0, 4),
    "trained": FLAG,
}
"""The settings of a bundle; those that only a few can have are named by `BundleSettings`, which checks them too."""

OLDER: Mapping[str, Any] = {"condition_centre": [0.0] * len(TRAITS), "condition_scale": [1.0] * len(TRAITS)}
"""What settings that older bundles lack are in those: their heads read raw trait values."""

# Without these a bundle says nothing about itself; the others have defaults.
_REQUIRED = (
    *("bundle_name", "bundle_version", "hubert", "trunk_layers", "tasks", "trained", "synthetic", "sampling_rate"),
    *("do_normalize", "condition_source", "trait_scale", "emotion_scale"),
)

ERRORS: Mapping[str, Rule] = {trait: number(0, 1000) for trait in TRAITS}
WEIGHTS: Mapping[str, Rule] = {trait: number(0, 1) for trait in TRAITS}
EVIDENCE: Mapping[str, Rule] = {
    "utterance_count": whole(1, 1_000_000),
    **ERRORS,
    # Not in bundles of before they were measured.
    "error_of_mean": optional(OBJECT),
    "weight": optional(OBJECT),
}
"""A row of expected_error.json: the error of each trait beside what it was measured after."""


def check(content: Mapping[str, Any], rules: Mapping[str, Rule], prefix: str = "") -> dict[str, Any]:
    """Those fields of `content` that have a rule, each of which it meets.

    Raises ValueError for one that does not, named with `prefix` before it.
    """
    for name, rule in rules.items():
        if name in content and not rule.fits(content[name]):
            raise ValueError(f"{prefix}{name} is {shown(content[name])}, allowed is {rule.allowed}")
    return {name: rule.to(content[name]) for name, rule in rules.items() if name in content}


def check_encoder(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The settings of an encoder that are used, its model_type among them, which is "hubert" if there is none.

    Raises ValueError for one that is impossible, or that others exclude.
    """
    kind = content.get("model_type", "hubert")
    check({"model_type": kind}, {"model_type": one_of(*ENCODERS)}, prefix)
    check(content, _ADDITIONS, prefix)
    known = {"model_type": kind, **check(content, ENCODERS[kind], prefix)}
    of = {**_BASE, **known}
    lengths = {name: len(of[name]) for name in ("conv_dim", "conv_kernel", "conv_stride")}
    if len(set(lengths.values())) > 1:
        text = ", ".join(f"{prefix}{name} has {length}" for name, length in lengths.items())
        raise ValueError(f"{text} values: one for each convolution is needed, so as many in each")
    if math.prod(of["conv_stride"]) > _LARGEST_STRIDE:
        raise ValueError(
            f"{prefix}conv_stride is {shown(of['conv_stride'])}: together that is {math.prod(of['conv_stride'])}"
            f" samples a frame, allowed are up to {_LARGEST_STRIDE}"
        )
    for name in ("num_attention_heads", "num_conv_pos_embedding_groups"):
        if of["hidden_size"] % of[name]:
            raise ValueError(f"{prefix}{name} is {of[name]}, which does not divide hidden_size {of['hidden_size']}")
    if kind == "wavlm" and of["max_bucket_distance"] <= of["num_buckets"] // 4:
        raise ValueError(
            f"{prefix}max_bucket_distance is {of['max_bucket_distance']}, allowed is more than a quarter of num_buckets"
            f" {of['num_buckets']}: the distances up to that have a bucket each"
        )
    return known


def weight_count(hubert: Mapping[str, Any]) -> int:
    """The weights of an encoder's convolutions and layers, by far the most of all that such a model has."""
    of = {**_BASE, **hubert}
    size, inputs = of["hidden_size"], [1, *of["conv_dim"]]
    convolutions = sum(map(math.prod, zip(inputs, of["conv_dim"], of["conv_kernel"], strict=False)))
    positions = size * size // of["num_conv_pos_embedding_groups"] * of["num_conv_pos_embeddings"]
    layers = of["num_hidden_layers"] * (4 * size * size + 2 * size * of["intermediate_size"])
    return int(convolutions + positions + layers)


def check_preprocessor(content: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a preprocessor_config.json that are used. Raises ValueError."""
    return check(content, PREPROCESSOR)


def check_bundle(content: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a bundle, its encoders' included. Raises ValueError for one that is missing or impossible."""
    for name in _REQUIRED:
        if name not in content:
            raise ValueError(f"{name} is missing: this is not the whole configuration of a kibun bundle")
    if (lacking := sorted(OLDER.keys() - content.keys())) and len(lacking) < len(OLDER):
        raise ValueError(
            f"{lacking[0]} is missing: a bundle has {' and '.join(OLDER)}, or neither if it is an older one"
        )
    known = {**OLDER, **check(content, BUNDLE)}
    if "synthetic_parts" not in known:
        generated = [*([] if known.get("trunk_from") else ["trunk"]), *known["tasks"]]
        known["synthetic_parts"] = generated if known["synthetic"] else []
    for name in ("hubert", "personality_hubert"):
        if known.get(name) is not None:
            known[name] = check_encoder(known[name], f"{name}.")
    for trunk, hubert in (("trunk_layers", "hubert"), ("personality_trunk_layers", "personality_hubert")):
        layers = {**_BASE, **(known.get(hubert) or {})}["num_hidden_layers"]
        if (known.get(trunk) or 0) > layers:
            raise ValueError(f"{trunk} is {known[trunk]}, allowed are 0 to {layers} ({hubert}.num_hidden_layers)")
    return known


def shown(value: Any) -> str:
    """A value as JSON, cut where it is long."""
    text = json.dumps(value, default=repr)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _is_number(value: Any) -> bool:
    # A whole number in JSON may be too large for a float, on which math.isfinite would raise.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
