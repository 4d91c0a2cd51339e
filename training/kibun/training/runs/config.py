"""What a training run is: a TOML file, checked, with the paper's settings as defaults.

    manifest = "manifest.jsonl"        # relative to the TOML file
    splits = "paper"                   # a name, a path, or absent: the manifest's own field `split`
    dimension = "valence"              # ser and mtl: which emotion
    [model]                            # ModelOptions
    [traits]                           # TraitOptions, ser only
    [training]                         # TrainingOptions

Source of the defaults: Gao et al., IEEE TAC 2025, where the text says it; else `docs/training.md`.
"""

import dataclasses
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast, get_args, get_origin, get_type_hints

from kibun.models.conditioning import HEADS
from kibun.models.config import QUERIES
from kibun.models.files import written_atomically
from kibun.models.types import CONDITIONED, EMOTIONS, TRAITS
from kibun.training.losses import SMALLEST_CCC_BATCH

Task = Literal["pr", "ser", "mtl"]
TASKS: tuple[Task, ...] = ("pr", "ser", "mtl")
SOURCES = ("truth", "predicted", "noisy", "shuffled", "none")
SETTINGS = ("utterance", "average", "conversation", "causal")


class ConfigError(ValueError):
    """A setting cannot be used; the message names it, says what is allowed, and the fix."""


@dataclasses.dataclass(frozen=True)
class ModelOptions:
    """What is trained."""

    start: str = "facebook/hubert-base-ls960"  # HuBERT checkpoint (folder or hub id), bundle or run to start from
    trunk_layers: int | None = None  # Transformer layers of the trunk; None: half of them (six of HuBERT-base)
    freeze: str = "trunk"  # "trunk": convolutions, projection, positions and the trunk's layers; "none"
    keep_heads: bool = False  # where `start` is a bundle: its heads of these tasks too, not new ones
    head: str = "ticn-ca"  # emotion head, one of kibun.models.conditioning.HEADS; mtl: baseline or regression
    query: str = "personality"  # side of the cross attention that asks, or "acoustic"
    condition_on: tuple[str, ...] = TRAITS
    condition_ff: int = 2048
    condition_heads: int = 4
    conversation_size: int | None = None
    head_dropout: float = 0.1


@dataclasses.dataclass(frozen=True)
class TraitOptions:
    """Which traits emotion is conditioned on in training, on dev and on test."""

    source: str = "truth"  # one of SOURCES; "none": the centre of the scale for everyone
    run: str | None = None  # source "predicted": the run of `kibun train pr` that predicts them
    setting: str = "conversation"  # source "predicted": one of SETTINGS
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
    schedule: str = "linear"  # or "cosine", "constant"
    loss: str = "mse"  # of emotion; "ccc" needs a micro_batch of 8
    mix: str = "sum"  # L + a CTC; "convex": (1 - a) L + a CTC
    ctc_weight: float = 0.1
    trait_weight: float = 1.0  # mtl: of the trait loss
    evaluations_per_epoch: int = 1
    patience: int = 5  # evaluations without a better dev CCC before training stops
    precision: str = "auto"  # "bf16" on a GPU that has it, else "fp32"
    crop_seconds: float | None = None  # longest piece of an utterance in training
    augment: str = "none"  # "perturb": speed, noise, masks; "rooms": rooms, channels, noise, microphones
    conversation_steps: int = 600  # pr: steps of the conversation head on the cached utterance vectors
    conversation_learning_rate: float = 1e-3
    trunk_cache: str = "auto"  # where the frozen trunk's frames are kept: a folder; "auto": beside the run's; "off"
    trunk_cache_dtype: str = "float32"  # or "float16": half the disk, frames rounded to 11 bits
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
    license: str = "not stated"  # of the data, for the card
    synthetic: bool = False  # trained on generated speech
    model: ModelOptions = dataclasses.field(default_factory=ModelOptions)
    traits: TraitOptions = dataclasses.field(default_factory=TraitOptions)
    training: TrainingOptions = dataclasses.field(default_factory=TrainingOptions)

    def __post_init__(self) -> None:
        _check(self)


def load_config(task: Task | None, path: Path, settings: Sequence[str] = ()) -> RunConfig:
    """Read a TOML file, with settings such as "training.seed=1" on top. task: None where the file says it.

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
    """What tells two runs apart: plain content, without what decides only where frames are kept."""
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
    """Values of a dataclass's fields, each of its type; a list becomes the tuple, an int the float that is wanted."""
    hints = get_type_hints(kind)
    checked: dict[str, Any] = {}
    for key, value in values.items():
        if key not in hints:
            raise ConfigError(f"{where}{key} is no setting; known: {', '.join(hints)}")
        wanted = [hint for hint in get_args(hints[key]) or (hints[key],) if hint is not type(None)]
        if get_origin(hints[key]) is tuple:
            fits = isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)
            checked[key], names = tuple(value) if fits else value, ["list of strings"]
        elif float in wanted and isinstance(value, int) and not isinstance(value, bool):
            checked[key], fits, names = float(value), True, []
        else:
            allowed = str if Path in wanted else wanted[0]
            fits, names = type(value) is allowed, [getattr(allowed, "__name__", str(allowed))]
            checked[key] = value
        if not fits:
            raise ConfigError(f"{where}{key} is {value!r}, must be a {names[0]}")
    return checked


def _check(config: RunConfig) -> None:
    model, traits, training = config.model, config.traits, config.training
    _one_of("task", config.task, TASKS)
    if config.task == "pr" and config.dimension is not None:
        raise ConfigError("dimension is for ser and mtl; a run of pr estimates the five traits")
    if config.task != "pr":
        _one_of("dimension", config.dimension, EMOTIONS)
    _one_of("model.freeze", model.freeze, ("trunk", "none"))
    _one_of("model.head", model.head, HEADS if config.task != "mtl" else ("baseline", "regression"))
    _one_of("model.query", model.query, QUERIES)
    for trait in model.condition_on:
        _one_of("model.condition_on", trait, TRAITS)
    _one_of("traits.source", traits.source, SOURCES)
    _one_of("traits.setting", traits.setting, SETTINGS)
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
    _one_of("training.schedule", training.schedule, ("linear", "cosine", "constant"))
    _one_of("training.loss", training.loss, ("mse", "ccc"))
    _one_of("training.mix", training.mix, ("sum", "convex"))
    _one_of("training.precision", training.precision, ("auto", "fp32", "bf16"))
    _one_of("training.augment", training.augment, ("none", "perturb", "rooms"))
    _one_of("training.trunk_cache_dtype", training.trunk_cache_dtype, ("float32", "float16"))
    if not training.trunk_cache:
        raise ConfigError("training.trunk_cache is empty, allowed are 'auto', 'off' and the path of a folder")
    if training.loss == "ccc" and training.micro_batch < SMALLEST_CCC_BATCH:
        raise ConfigError(
            f"training.loss = 'ccc' needs training.micro_batch >= {SMALLEST_CCC_BATCH}, is {training.micro_batch}:"
            " the concordance of a few utterances is degenerate; use 'mse', or a larger micro_batch"
        )
    if training.batch % training.micro_batch:
        raise ConfigError(f"training.batch is {training.batch}, not a multiple of micro_batch {training.micro_batch}")
    for name in ("batch", "micro_batch", "epochs", "evaluations_per_epoch", "patience", "conversation_steps"):
        if getattr(training, name) < 1:
            raise ConfigError(f"training.{name} is {getattr(training, name)}, must be 1 or more")
    if training.max_steps is not None and training.max_steps < 1:
        raise ConfigError(f"training.max_steps is {training.max_steps}, must be 1 or more")
    for name in ("learning_rate", "head_learning_rate", "conversation_learning_rate"):
        if getattr(training, name) <= 0:
            raise ConfigError(f"training.{name} is {getattr(training, name)}, must be above 0")
    for name in ("weight_decay", "trait_weight"):
        if getattr(training, name) < 0:
            raise ConfigError(f"training.{name} is {getattr(training, name)}, must be 0 or more")
    for name in ("ctc_weight", "warmup"):
        if not 0 <= getattr(training, name) <= 1:
            raise ConfigError(f"training.{name} is {getattr(training, name)}, allowed are 0..1")
    if training.crop_seconds is not None and training.crop_seconds < 0.5:
        raise ConfigError(f"training.crop_seconds is {training.crop_seconds}, must be 0.5 or more")


def _one_of(name: str, value: Any, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name} is {value!r}, allowed are {', '.join(allowed)}")
