"""The configuration of a training run: a TOML file, checked, with the paper's settings as defaults.

    manifest = "manifest.jsonl"        # relative to the TOML file
    splits = "paper"                   # a name, a path, or absent: the manifest's own field `split`
    dimension = "valence"              # ser and mtl: which emotion
    [model]                            # ModelOptions
    [traits]                           # TraitOptions, ser only
    [training]                         # TrainingOptions

Source of the defaults: Gao et al., IEEE TAC 2025, where the text states them; else `docs/training.md`.
"""

import dataclasses
import json
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, Literal, cast, get_args, get_origin, get_type_hints

from kibun.models.conditioning import HeadName, Query
from kibun.models.files import written_atomically
from kibun.models.types import CONDITIONED, EMOTIONS, TRAITS
from kibun.training.losses import SMALLEST_CCC_BATCH

Task = Literal["pr", "ser", "mtl"]
TASKS: tuple[Task, ...] = ("pr", "ser", "mtl")
Source = Literal["truth", "predicted", "noisy", "shuffled", "none"]
Setting = Literal["utterance", "average", "conversation", "causal"]
SETTINGS: tuple[Setting, ...] = ("utterance", "average", "conversation", "causal")


class ConfigError(ValueError):
    """A setting cannot be used; the message names it, the allowed values and the fix."""


@dataclasses.dataclass(frozen=True)
class ModelOptions:
    """What is trained."""

    start: str = "facebook/hubert-base-ls960"  # HuBERT checkpoint (folder or hub id), bundle or run to start from
    trunk_layers: int | None = None  # Transformer layers of the trunk; None: half of them (six of HuBERT-base)
    freeze: Literal["trunk", "none"] = (
        "trunk"  # "trunk": convolutions, projection, positions and the trunk's layers; "none"
    )
    keep_heads: bool = False  # where `start` is a bundle: its heads of these tasks too, not new ones
    head: HeadName = "ticn-ca"  # of emotion; mtl: baseline or regression
    query: Query = "personality"  # side of the cross attention that asks, or "acoustic"
    condition_on: tuple[str, ...] = TRAITS  # ser: traits that a conditioned head sees
    traits: tuple[str, ...] = TRAITS  # pr, mtl: traits that are estimated; the others stay at the middle of the scale
    condition_ff: int = 2048
    condition_heads: int = 4
    conversation_size: int | None = None
    head_dropout: float = 0.1


@dataclasses.dataclass(frozen=True)
class TraitOptions:
    """Which traits emotion is conditioned on in training, on dev and on test."""

    source: Source = "truth"  # "none": the centre of the scale for everyone
    run: str | None = None  # source "predicted": the run of `kibun train pr` that predicts them
    setting: Setting = "conversation"  # source "predicted": which of its estimates
    sigma: float = 0.0  # source "noisy": standard deviation of Gaussian noise on each profile's trait


@dataclasses.dataclass(frozen=True)
class TrainingOptions:
    """How it is trained."""

    seed: int = 0
    batch: int = 16  # utterances of one optimizer step, over all processes
    micro_batch: int = 2  # utterances of one forward; batch / micro_batch / processes are accumulated
    epochs: int = 30
    max_steps: int | None = None  # optimizer steps, where fewer than the epochs make
    learning_rate: float = 5e-5  # of the HuBERT layers
    head_learning_rate: float = 1e-4
    weight_decay: float = 0.01
    warmup: float = 0.1  # share of all steps
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    loss: Literal["mse", "ccc"] = "mse"  # of emotion; "ccc" needs a micro_batch of 8
    mix: Literal["sum", "convex"] = "sum"  # L + a CTC; "convex": (1 - a) L + a CTC
    ctc_weight: float = 0.1
    trait_weight: float = 0.1  # mtl: of the trait loss
    evaluations_per_epoch: int = 1
    patience: int = 5  # evaluations without a better dev CCC before training stops
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # "auto": bf16 on a GPU that has it, else fp32
    crop_seconds: float | None = None  # longest piece of an utterance in training
    # "perturb": speed, noise, masks; "rooms": rooms, channels, noise, microphones
    augment: Literal["none", "perturb", "rooms"] = "none"
    # pr: the conversation head (setting 3) on the "frozen" vectors of the finished tail, or "through_tail", end to end
    conversation: Literal["frozen", "through_tail"] = "frozen"
    conversation_utterances: int = 16  # "through_tail": most utterances of a conversation in one micro-batch
    conversation_steps: int = 600  # "frozen": steps of the conversation head on the cached utterance vectors
    conversation_learning_rate: float = 1e-3
    trunk_cache: str = "auto"  # folder of the frozen trunk's frames; "auto": beside the run's; "off"
    trunk_cache_dtype: Literal["float32", "float16"] = "float32"  # "float16": half the disk, rounded to 11 bits
    tensorboard: bool = False


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """One run, whole. Paths are absolute."""

    task: Task
    manifest: Path
    splits: str | None = None
    dimension: str | None = None  # "valence" or "arousal"; None for pr
    name: str | None = None  # of the bundle; None: the run folder's
    version: str = "1"
    license: str | None = None  # of the data, for card and bundle; None: as the manifest has it
    synthetic: bool = False  # trained on generated speech
    model: ModelOptions = dataclasses.field(default_factory=ModelOptions)
    traits: TraitOptions = dataclasses.field(default_factory=TraitOptions)
    training: TrainingOptions = dataclasses.field(default_factory=TrainingOptions)

    def __post_init__(self) -> None:
        _check(self)


def load_config(task: Task | None, path: Path, settings: Sequence[str] = ()) -> RunConfig:
    """Read a TOML file, with settings such as "training.seed=1" on top. task: None where the file names it.

    Raises:
        ConfigError: the file cannot be read, or a setting is unknown or impossible.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not TOML: {error}") from error
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise ConfigError(f"--set {setting}: write it as section.name=value, training.seed=1 for one")
        section, _, field = key.strip().rpartition(".")
        target = content.setdefault(section, {}) if section else content
        target[field] = _value(text.strip())
    if task is None and content.get("task") not in TASKS:
        raise ConfigError(f"{path}: task is {content.get('task')!r}, allowed are {', '.join(TASKS)}")
    return from_dict(task or content["task"], content, path.resolve().parent)


def from_dict(task: Task, content: Mapping[str, Any], folder: Path) -> RunConfig:
    """Check plain content; relative paths are relative to `folder`. Raises ConfigError."""
    sections = {"model": ModelOptions, "traits": TraitOptions, "training": TrainingOptions}
    values: dict[str, Any] = {}
    for key, value in content.items():
        if key in sections:
            if not isinstance(value, Mapping):
                raise ConfigError(f"[{key}] must be a section of settings, is {value!r}")
            values[key] = sections[key](**_typed(sections[key], value, f"{key}."))
        elif key != "task":
            values[key] = value
    if content.get("task", task) != task:
        raise ConfigError(f"task is {content['task']!r} in the file: run `kibun train {content['task']}` with it")
    if "manifest" not in values:
        raise ConfigError("manifest is missing: the path of a manifest.jsonl, as `kibun train prepare` makes it")
    nested = {key: values.pop(key) for key in sections if key in values}
    values = _typed(RunConfig, values, "")
    values["manifest"] = folder / values["manifest"]
    if (splits := values.get("splits")) and (folder / splits).is_file():
        values["splits"] = str(folder / splits)
    if "model" in nested and (local := folder / nested["model"].start).exists():
        nested["model"] = dataclasses.replace(nested["model"], start=str(local))
    if "training" in nested and nested["training"].trunk_cache not in ("auto", "off", ""):
        nested["training"] = dataclasses.replace(
            nested["training"], trunk_cache=str(folder / nested["training"].trunk_cache)
        )
    if "traits" in nested and nested["traits"].run is not None:
        nested["traits"] = dataclasses.replace(nested["traits"], run=str(folder / nested["traits"].run))
    return RunConfig(task=task, **values, **nested)


def as_dict(config: RunConfig) -> dict[str, Any]:
    """Plain content that `from_dict` reads; None is left out."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items() if item is not None}
        if isinstance(value, tuple):
            return list(value)
        return str(value) if isinstance(value, Path) else value

    return cast(dict[str, Any], plain(dataclasses.asdict(config)))


def identity(config: RunConfig) -> dict[str, Any]:
    """The settings that distinguish runs, as plain content: all but those that only decide where frames are cached."""
    content = as_dict(config)
    del content["training"]["trunk_cache"]
    if config.training.trunk_cache_dtype == "float32":  # computed or read, the same values
        del content["training"]["trunk_cache_dtype"]
    return content


def write_config(config: RunConfig, path: Path) -> None:
    """Write TOML that `load_config` reads to the same configuration."""
    content = as_dict(config)
    sections = {key: value for key, value in content.items() if isinstance(value, dict)}
    lines = [f"{key} = {json.dumps(value)}" for key, value in content.items() if key not in sections]
    for name, section in sections.items():
        lines += ["", f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in section.items())]
    with written_atomically(path) as draft:  # other processes of the run may be reading already
        draft.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _value(text: str) -> Any:
    """The value of a `--set`: TOML where it is TOML, else the text itself."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _typed(kind: type, values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Values of a dataclass's fields, each of its type."""
    hints = get_type_hints(kind)
    for key in values:
        if key not in hints:
            raise ConfigError(f"{where}{key} is no setting; known: {', '.join(hints)}")
    return {key: _converted(f"{where}{key}", hints[key], value) for key, value in values.items()}


def _converted(name: str, hint: Any, value: Any) -> Any:
    """A value as a field of this type has it: a list becomes the tuple, an int the float that is wanted."""
    hint = _without_none(hint)
    if get_origin(hint) is Literal:
        return value  # `_check` looks at it
    if get_origin(hint) is tuple:
        if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
            return tuple(value)
        raise ConfigError(f"{name} is {value!r}, must be a list of strings")
    if hint is float and type(value) is int:
        return float(value)
    wanted = str if hint is Path else hint
    if type(value) is not wanted:
        raise ConfigError(f"{name} is {value!r}, must be a {wanted.__name__}")
    return value


def _without_none(hint: Any) -> Any:
    """X of X | None; other types as they are."""
    return next(arg for arg in get_args(hint) if arg is not NoneType) if NoneType in get_args(hint) else hint


BOUNDS: tuple[tuple[str, Callable[[float], bool], str], ...] = (
    (
        "batch micro_batch epochs evaluations_per_epoch patience conversation_steps conversation_utterances max_steps",
        lambda value: value >= 1,
        "must be 1 or more",
    ),
    ("learning_rate head_learning_rate conversation_learning_rate", lambda value: value > 0, "must be above 0"),
    ("weight_decay trait_weight", lambda value: value >= 0, "must be 0 or more"),
    ("ctc_weight warmup", lambda value: 0 <= value <= 1, "allowed are 0..1"),
    ("crop_seconds", lambda value: value >= 0.5, "must be 0.5 or more"),
)
"""Numbers of [training]: names, the condition on each, and its wording."""


def _check(config: RunConfig) -> None:
    model, traits, training = config.model, config.traits, config.training
    if config.task == "pr" and config.dimension is not None:
        raise ConfigError("dimension is for ser and mtl; a run of pr estimates the five traits")
    if config.task != "pr":
        _one_of("dimension", config.dimension, EMOTIONS)
    for where, section in (("", config), ("model.", model), ("traits.", traits), ("training.", training)):
        for name, hint in get_type_hints(type(section)).items():
            if get_origin(hint) is Literal:
                _one_of(f"{where}{name}", getattr(section, name), get_args(hint))
    if config.task == "mtl":
        _one_of("model.head", model.head, ("baseline", "regression"))
    for name, some in (("model.condition_on", model.condition_on), ("model.traits", model.traits)):
        if not some or list(some) != [trait for trait in TRAITS if trait in some]:
            raise ConfigError(f"{name} is {list(some)}, allowed are one or more of {', '.join(TRAITS)}, in this order")
    if config.task == "ser" and model.traits != TRAITS:
        raise ConfigError("model.traits is for pr and mtl, which estimate traits; ser has model.condition_on")
    if (traits.source == "predicted") != (traits.run is not None):
        raise ConfigError('traits.run and traits.source = "predicted" go together: name the run of `kibun train pr`')
    if (traits.source == "noisy") != (traits.sigma > 0):
        raise ConfigError('traits.sigma (above 0) and traits.source = "noisy" go together')
    if traits != TraitOptions() and (config.task != "ser" or model.head not in CONDITIONED):
        what = f"model.head = {model.head!r}" if config.task == "ser" else config.task
        heads = ", ".join(CONDITIONED)
        raise ConfigError(
            f"[traits] is for ser with a head that looks at traits ({heads}), not for {what}: leave it out"
        )
    if not training.trunk_cache:
        raise ConfigError("training.trunk_cache is empty, allowed are 'auto', 'off' and the path of a folder")
    for names, holds, text in BOUNDS:
        for name in names.split():
            value = getattr(training, name)
            if value is not None and not holds(value):
                raise ConfigError(f"training.{name} is {value}, {text}")
    if training.loss == "ccc" and training.micro_batch < SMALLEST_CCC_BATCH:
        raise ConfigError(
            f"training.loss = 'ccc' needs training.micro_batch >= {SMALLEST_CCC_BATCH}, is {training.micro_batch}:"
            " the concordance of a few utterances is degenerate; use 'mse', or a larger micro_batch"
        )
    if training.conversation == "through_tail" and config.task != "pr":
        raise ConfigError(f"training.conversation = 'through_tail' is for pr, not for {config.task}: leave it out")
    if training.batch % training.micro_batch:
        raise ConfigError(f"training.batch is {training.batch}, not a multiple of micro_batch {training.micro_batch}")


def _one_of(name: str, value: Any, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name} is {value!r}, allowed are {', '.join(allowed)}")
