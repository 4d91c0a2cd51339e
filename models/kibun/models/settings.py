"""What a bundle states in its config.json, as plain data, without torch and transformers.

`config.KibunConfig` is the same as a configuration of transformers, for training and for saving.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from kibun.models.encoder_settings import EncoderSettings, receptive_field
from kibun.models.fields import check_bundle
from kibun.models.files import CONFIG, BundleError, read_object
from kibun.models.types import (
    CONDITIONED,
    EMOTION_SCALE,
    EMOTIONS,
    HEADS,
    POOLINGS,
    SAMPLE_RATE_HZ,
    TRAIT_SCALE,
    TRAITS,
)

TASKS = ("personality", *EMOTIONS)
CONDITION_SOURCES = ("utterance", "average", "conversation")
QUERIES = ("personality", "acoustic")
READOUT = "readout"

S = TypeVar("S", bound="BundleSettings")


@dataclass(kw_only=True, repr=False)
class BundleSettings:
    """All settings that are stored with the weights; unknown or impossible values raise ValueError."""

    # The encoder. Its model_type says of which kind it is, one of `encoders.ENCODERS`; without one it is a HuBERT.
    hubert: Any = None  # None: HuBERT-base
    trunk_layers: int | None = None  # Transformer layers that all tasks share; None: half of them
    tasks: list[str] | tuple[str, ...] = TASKS
    tail_of: dict[str, str] | None = None  # task -> name of its tail; other tasks have their own tail
    trunk_from: str | None = None  # checkpoint that the trunk was copied from; None: not recorded
    trunk_sha256: str | None = None  # checksum.trunk_checksum of the trunk as copied; differs once it is trained

    # A separate encoder for personality, where the other tasks' trunk is of another kind; None: the shared one
    personality_hubert: dict[str, Any] | None = None
    personality_trunk_layers: int | None = None  # None: half of its layers
    personality_do_normalize: bool = True

    # Emotion heads (conditioning.py)
    emotion_head: str = "ticn-ca"  # or another of HEADS, or "readout" (readout.py): a public checkpoint's own
    readout_pooling: str = "mean"  # or another of POOLINGS
    readout_hidden: int = 0  # hidden layers
    emotion_classes: list[str] | tuple[str, ...] | None = None  # categories that a readout tells apart
    emotion_points: list[Any] | tuple[Any, ...] | None = None  # (valence, arousal) of each, on emotion_scale
    emotion_points_from: str | None = None  # whose points they are, in words
    condition_on: list[str] | tuple[str, ...] = TRAITS  # traits that a conditioned head uses
    condition_heads: int = 4
    condition_ff: int = 2048
    cross_attention_query: str = "personality"  # or "acoustic"
    condition_source: str = "conversation"  # predicted traits that emotion is conditioned on if none are given
    # Mean and standard deviation of each trait in the population (the training speakers), on trait_scale: heads read
    # (trait - centre) / scale, and what is known of a trait too little is drawn to the centre (evidence.py). None: the
    # middle of the scale, and a sixth of its range. `fields.OLDER` are those of older bundles.
    condition_centre: list[float] | tuple[float, ...] | None = None
    condition_scale: list[float] | tuple[float, ...] | None = None

    # Conversation head (personality.py)
    conversation_size: int | None = None  # None: the hidden size, at most 256
    conversation_heads: int = 4
    familiarity: bool = False  # whether heard traits count less, the less a voice is like those of training

    head_dropout: float = 0.1

    # Input
    sampling_rate: int = SAMPLE_RATE_HZ
    do_normalize: bool = True  # zero mean and unit variance per utterance

    # What the estimates are
    trait_scale: list[float] | tuple[float, float] = TRAIT_SCALE
    emotion_scale: list[float] | tuple[float, float] = EMOTION_SCALE
    emotion_rescaled_from: list[float] | tuple[float, float] | None = None  # the scale that training labels had
    bundle_name: str = "unnamed"
    bundle_version: str = "1"
    license: str | None = None  # of the weights, as an SPDX expression; None: not stated
    # Which of the tasks learnt from generated speech, and "trunk" if that did, at first or alone. None: where synthetic
    # is set all tasks, and the trunk unless it was copied from a checkpoint; else none.
    synthetic_parts: list[str] | tuple[str, ...] | None = None
    synthetic: bool = False  # a task learnt from generated speech: every user interface must show this
    trained: bool = False  # False: the heads are random, and the server refuses it by default

    def __post_init__(self) -> None:
        self.hubert = self._encoder(self.hubert or {})
        self._settle()

    def _encoder(self, settings: dict[str, Any]) -> Any:
        return EncoderSettings.of(settings)

    def _settle(self) -> None:
        """Fill in what depends on other settings, and check all of them."""
        hubert = self.hubert_config
        self.tasks = tuple(self.tasks)
        self.condition_on = tuple(self.condition_on)
        if self.emotion_classes is not None and self.emotion_points is not None:
            self.emotion_classes = tuple(self.emotion_classes)
            self.emotion_points = tuple(tuple(map(float, point)) for point in self.emotion_points)
        self.trait_scale = (float(self.trait_scale[0]), float(self.trait_scale[1]))
        self.emotion_scale = (float(self.emotion_scale[0]), float(self.emotion_scale[1]))
        low, high = self.trait_scale
        self.condition_centre = _five(self.condition_centre, (low + high) / 2)
        self.condition_scale = _five(self.condition_scale, (high - low) / 6)
        if self.synthetic_parts is None:
            trunk = ("trunk",) if self.trunk_from is None else ()
            self.synthetic_parts = (*trunk, *self.tasks) if self.synthetic else ()
        self.synthetic_parts = tuple(self.synthetic_parts)
        self.synthetic |= any(task in self.synthetic_parts for task in self.tasks)
        if self.trunk_layers is None:
            self.trunk_layers = hubert.num_hidden_layers // 2
        if self.emotion_rescaled_from is not None:
            low, high = self.emotion_rescaled_from
            self.emotion_rescaled_from = (float(low), float(high))
        if self.personality_hubert is not None and self.personality_trunk_layers is None:
            self.personality_trunk_layers = self.personality_hubert_config.num_hidden_layers // 2
        if self.conversation_size is None:
            self.conversation_size = min(self.personality_hubert_config.hidden_size, 256)
        self._check()

    def _check(self) -> None:
        hubert = self.hubert_config
        if not 0 <= cast(int, self.trunk_layers) <= hubert.num_hidden_layers:
            raise ValueError(
                f"trunk_layers is {self.trunk_layers}, allowed are 0..{hubert.num_hidden_layers} (num_hidden_layers)"
            )
        if not self.tasks or len(set(self.tasks)) < len(self.tasks) or not set(self.tasks) <= set(TASKS):
            raise ValueError(f"tasks is {list(self.tasks)}, allowed are one or more of {list(TASKS)}, each once")
        self._check_parts()
        parts = cast(tuple[str, ...], self.synthetic_parts)
        if not set(parts) <= {"trunk", *self.tasks} or (self.synthetic and not set(parts) - {"trunk"}):
            wanted = 'names of its tasks and "trunk"' + (", a task among them, as it is synthetic" * self.synthetic)
            raise ValueError(f"synthetic_parts is {list(parts)}, allowed are {wanted}")
        if self.condition_source not in CONDITION_SOURCES:
            raise ValueError(f"condition_source is {self.condition_source!r}, allowed are {CONDITION_SOURCES}")
        if self.cross_attention_query not in QUERIES:
            raise ValueError(f"cross_attention_query is {self.cross_attention_query!r}, allowed are {QUERIES}")
        for name in ("condition_centre", "condition_scale"):
            numbers = cast(tuple[float, ...], getattr(self, name))
            least = 0 if name == "condition_scale" else -math.inf
            if len(numbers) != len(TRAITS) or not all(math.isfinite(number) and number > least for number in numbers):
                wanted = f"{len(TRAITS)} finite numbers" + (" above 0" if name == "condition_scale" else "")
                raise ValueError(f"{name} is {list(numbers)}, allowed are {wanted}, one for each trait")
        if self.sampling_rate != SAMPLE_RATE_HZ:
            raise ValueError(f"sampling_rate is {self.sampling_rate}, only {SAMPLE_RATE_HZ} Hz is supported")
        for name, size, heads in (
            ("condition_heads", hubert.hidden_size, self.condition_heads),
            ("conversation_heads", cast(int, self.conversation_size), self.conversation_heads),
        ):
            if heads < 1 or size % heads:
                raise ValueError(f"{name} is {heads}, which does not divide {size}")

    def _check_parts(self) -> None:
        if self.emotion_head not in (*HEADS, READOUT):
            raise ValueError(f"emotion_head is {self.emotion_head!r}, allowed are {(*HEADS, READOUT)}")
        if self.readout_pooling not in POOLINGS:
            raise ValueError(f"readout_pooling is {self.readout_pooling!r}, allowed are {POOLINGS}")
        self._check_classes()
        on = list(self.condition_on)
        if not on or on != [trait for trait in TRAITS if trait in on]:
            raise ValueError(f"condition_on is {on}, allowed are one or more of {list(TRAITS)}, in this order")
        tail_of = self.tail_of or {}
        if not set(tail_of) <= set(self.tasks) or not all(str(name).isidentifier() for name in tail_of.values()):
            raise ValueError(f"tail_of is {tail_of}, allowed are names of tails for tasks of {list(self.tasks)}")
        if self.personality_hubert is None:
            return
        if not self.supports_personality:
            raise ValueError("personality_hubert is set, but 'personality' is not among the tasks")
        if [self.tail_name(task) for task in self.tasks].count(self.tail_name("personality")) > 1:
            raise ValueError("tail_of: personality has its own encoder, so no other task can share its tail")
        layers = self.personality_hubert_config.num_hidden_layers
        if not 0 <= cast(int, self.personality_trunk_layers) <= layers:
            raise ValueError(f"personality_trunk_layers is {self.personality_trunk_layers}, allowed are 0..{layers}")

    def _check_classes(self) -> None:
        classes, points = self.emotion_classes or (), self.emotion_points or ()
        if len(classes) != len(points):
            raise ValueError(f"emotion_points has {len(points)} points, allowed is one for each of emotion_classes")
        if classes and self.emotion_head != READOUT:
            raise ValueError(f"emotion_classes needs emotion_head {READOUT!r}, which is {self.emotion_head!r}")
        low, high = self.emotion_scale
        for name, point in zip(classes, points, strict=True):
            if len(point) != len(EMOTIONS) or not all(low <= value <= high for value in point):
                raise ValueError(f"emotion_points of {name!r} is {point}, allowed are two numbers {low:g}..{high:g}")

    @property
    def hubert_config(self) -> Any:
        """The shared encoder's settings: `EncoderSettings`, or a configuration of transformers."""
        return self.hubert

    @property
    def personality_hubert_config(self) -> Any:
        """Those of the encoder that personality uses: its own, or the shared one."""
        return self.hubert_config if self.personality_hubert is None else self._encoder(self.personality_hubert)

    def tail_name(self, task: str) -> str:
        """Name of the tail that a task uses."""
        return (self.tail_of or {}).get(task, task)

    @property
    def conditioned(self) -> bool:
        """Whether emotion is conditioned on traits, and so needs them."""
        return bool(self.emotions) and self.emotion_head in CONDITIONED

    @property
    def tail_layers(self) -> int:
        """Transformer layers of each task's tail on the shared trunk."""
        return cast(int, self.hubert_config.num_hidden_layers) - cast(int, self.trunk_layers)

    @property
    def personality_tail_layers(self) -> int:
        """Transformer layers of the personality tail."""
        if self.personality_hubert is None:
            return self.tail_layers
        layers = cast(int, self.personality_hubert_config.num_hidden_layers)
        return layers - cast(int, self.personality_trunk_layers)

    @property
    def emotions(self) -> tuple[str, ...]:
        """The emotion dimensions that the bundle estimates, in the order of EMOTIONS."""
        return tuple(name for name in EMOTIONS if name in self.tasks)

    @property
    def supports_personality(self) -> bool:
        """Whether there is a personality tail, and with it utterance vectors."""
        return "personality" in self.tasks

    @property
    def min_samples(self) -> int:
        """The fewest samples, at 16 kHz, that make one frame for every task."""
        return max(receptive_field(self.hubert_config), receptive_field(self.personality_hubert_config))


def _five(numbers: Sequence[float] | None, default: float) -> tuple[float, ...]:
    return (default,) * len(TRAITS) if numbers is None else tuple(float(number) for number in numbers)


def read_settings(folder: Path) -> BundleSettings:
    """The settings of a bundle folder. Raises BundleError, which names file and field.

    What is not a setting of a bundle is left out.
    """
    return read_as(BundleSettings, folder)


def read_as(kind: type[S], folder: Path) -> S:
    """`read_settings`, as a BundleSettings or a KibunConfig."""
    file = folder / CONFIG
    content = read_object(file)
    try:
        return kind(**check_bundle(content))
    except ValueError as error:
        raise BundleError(f"{file}: {error}") from error


def check_trained(folder: Path, settings: BundleSettings) -> None:
    """Raise BundleError for a bundle whose heads are random."""
    if not settings.trained:
        raise BundleError(
            f"{folder}: this bundle is untrained, its estimates mean nothing; train it, or pass --allow-untrained"
            " (allow_untrained=True) to try things out"
        )
