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
from typing import Annotated, Any, Literal, cast, get_args, get_origin, get_type_hints

from kibun.models.files import written_atomically
from kibun.models.types import CONDITIONED, EMOTIONS, TRAITS, HeadName, Query

Task = Literal["pr", "ser", "mtl"]
TASKS: tuple[Task, ...] = ("pr", "ser", "mtl")
Source = Literal["truth", "predicted", "mixed", "noisy", "shuffled", "none"]
Setting = Literal["utterance", "average", "conversation", "causal"]
SETTINGS: tuple[Setting, ...] = ("utterance", "average", "conversation", "causal")


class ConfigError(ValueError):
    """A setting cannot be used; the message names it, the allowed values and the fix."""


@dataclasses.dataclass(frozen=True)
class ModelOptions:
    """What is trained."""

    start: Annotated[str, "encoder checkpoint (folder or hub id), bundle or run to start from"] = (
        "facebook/hubert-base-ls960"
    )
    trunk_layers: Annotated[int | None, "Transformer layers of the trunk; default: half of them"] = None
    freeze: Annotated[
        Literal["trunk", "acoustics", "none"],
        "trunk: convolutions, projection, positions and its layers; acoustics: all but what reads traits",
    ] = "trunk"
    keep_heads: Annotated[bool, "where it starts from a bundle: its heads of these tasks too, not new ones"] = False
    head: Annotated[HeadName, "of emotion; mtl: baseline (its default) or regression"] = "ticn-ca"
    query: Annotated[Query, "side of the cross attention that asks"] = "personality"
    condition_on: Annotated[tuple[str, ...], "ser: traits that a conditioned head sees"] = TRAITS
    traits: Annotated[
        tuple[str, ...], "pr, mtl: traits that are estimated; the others stay at the middle of the scale"
    ] = TRAITS
    condition_ff: Annotated[int, "inner size of TICN's Transformer layer"] = 2048
    condition_heads: Annotated[int, "attention heads of the conditioned heads"] = 4
    conversation_size: Annotated[int | None, "size of the conversation head; default: the frames', up to 256"] = None
    head_dropout: Annotated[float, "dropout of the heads in training"] = 0.1


@dataclasses.dataclass(frozen=True)
class TraitOptions:
    """Which traits emotion is conditioned on in training, on dev and on test."""

    source: Annotated[
        Source,
        "ser: where they come from; mixed: truth, heard, and mean ones; none: the mean for everyone",
    ] = "truth"
    run: Annotated[str | None, "predicted, mixed: the run of `kibun train pr` that predicts them"] = None
    setting: Annotated[Setting, "predicted: which of its estimates"] = "conversation"
    sigma: Annotated[float, "noisy: standard deviation of Gaussian noise on each profile's trait"] = 0.0
    truth_first: Annotated[float, "mixed: share of utterances that are given the truth, at the start of training"] = 1.0
    truth_last: Annotated[float, "mixed: that share at the end of training"] = 0.25
    mean_share: Annotated[float, "mixed: share of utterances that are given the mean, as if nothing was heard"] = 0.1


@dataclasses.dataclass(frozen=True)
class TrainingOptions:
    """How it is trained."""

    seed: Annotated[int, "of weights, batches and dropout"] = 0
    batch: Annotated[int, "utterances of one optimizer step, over all processes"] = 16
    micro_batch: Annotated[int, "utterances of one forward; batch / micro_batch / processes are accumulated"] = 2
    epochs: Annotated[int, "passes over the training utterances, at most"] = 30
    max_steps: Annotated[int | None, "optimizer steps, where fewer than the epochs make"] = None
    learning_rate: Annotated[float, "of the HuBERT layers"] = 5e-5
    head_learning_rate: Annotated[float, "of the heads"] = 1e-4
    weight_decay: Annotated[float, "of weights, not of biases and norms"] = 0.01
    warmup: Annotated[float, "share of all steps in which the learning rate rises"] = 0.1
    schedule: Annotated[Literal["linear", "cosine", "constant"], "of the learning rate after that"] = "linear"
    loss: Annotated[Literal["mse", "ccc"], "of emotion; ccc needs a micro_batch of 8"] = "mse"
    mix: Annotated[Literal["sum", "convex"], "L + a CTC; convex: (1 - a) L + a CTC"] = "sum"
    ctc_weight: Annotated[float, "of the CTC loss, a"] = 0.1
    trait_weight: Annotated[float, "mtl: of the trait loss"] = 0.1
    evaluations_per_epoch: Annotated[int, "evaluations on dev in an epoch"] = 1
    patience: Annotated[int, "evaluations without a better dev CCC before training stops"] = 5
    precision: Annotated[Literal["auto", "fp32", "bf16"], "of training; auto: bf16 on a GPU that has it, else fp32"] = (
        "auto"
    )
    crop_seconds: Annotated[float | None, "longest piece of an utterance in training; default: whole ones"] = None
    augment: Annotated[
        Literal["none", "perturb", "rooms"],
        "of the audio; perturb: speed, noise, masks; rooms: rooms, channels, noise, microphones",
    ] = "none"
    conversation: Annotated[
        Literal["frozen", "through_tail"],
        "pr: setting 3 on the frozen vectors of the finished tail, or end to end through the tail",
    ] = "frozen"
    conversation_utterances: Annotated[int, "through_tail: most utterances of a conversation in one micro-batch"] = 16
    conversation_steps: Annotated[int, "frozen: steps of the conversation head on the cached vectors"] = 600
    conversation_learning_rate: Annotated[float, "frozen: of the conversation head"] = 1e-3
    calibrate: Annotated[bool, "pr, mtl: half of dev's speakers choose nothing and measure expected_error"] = True
    calibrate_augment: Annotated[
        Literal["none", "rooms"], "pr, mtl: measure it on utterances as they are, and also through rooms and channels"
    ] = "none"
    trunk_cache: Annotated[str, "folder of the frozen trunk's frames; auto: beside the run's; off"] = "auto"
    trunk_cache_dtype: Annotated[
        Literal["float32", "float16"], "of these frames; float16: half the disk, rounded to 11 bits"
    ] = "float32"
    tensorboard: Annotated[bool, "write events for TensorBoard, too"] = False


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """One run, whole. Paths are absolute."""

    task: Task
    manifest: Annotated[Path, "manifest.jsonl, as `kibun train prepare` makes it"]
    splits: Annotated[str | None, "name or CSV of the splits; default: the manifest's own"] = None
    dimension: Annotated[str | None, "ser, mtl: valence or arousal"] = None
    name: Annotated[str | None, "of the bundle; default: the run folder's"] = None
    version: Annotated[str, "of the bundle"] = "1"
    license: Annotated[str | None, "of the data, for card and bundle; default: the manifest's"] = None
    synthetic: Annotated[bool, "trained on generated speech"] = False
    model: ModelOptions = dataclasses.field(default_factory=ModelOptions)
    traits: TraitOptions = dataclasses.field(default_factory=TraitOptions)
    training: TrainingOptions = dataclasses.field(default_factory=TrainingOptions)

    def __post_init__(self) -> None:
        _check(self)


SECTIONS = {"model": ModelOptions, "traits": TraitOptions, "training": TrainingOptions}


@dataclasses.dataclass(frozen=True)
class SettingFlag:
    """A setting as a flag of `kibun train`. name: as in the file, with its section, "training.epochs"."""

    name: str
    hint: Any  # its type, without None
    default: Any
    help: str

    def value(self, text: str) -> Any:
        """The plain content that a text stands for: words between commas are a list, numbers as in TOML."""
        if get_origin(self.hint) is tuple:
            return [word.strip() for word in text.split(",")]
        return _value(text) if self.hint in (int, float, bool) else text


def setting_flags() -> list[SettingFlag]:
    """All settings of a run, in the order of the file, but its task."""
    flags = []
    for section, kind in {"": RunConfig, **SECTIONS}.items():
        hints = get_type_hints(kind, include_extras=True)
        for field in dataclasses.fields(kind):
            if field.name != "task" and not (kind is RunConfig and field.name in SECTIONS):
                hint, text = get_args(hints[field.name])
                default = None if field.default is dataclasses.MISSING else field.default
                name = f"{section}.{field.name}" if section else field.name
                flags.append(SettingFlag(name, _without_none(hint), default, text))
    return flags


def load_config(
    task: Task | None, path: Path | None, settings: Sequence[str] = (), flags: Mapping[str, Any] | None = None
) -> RunConfig:
    """Read a TOML file, with other settings on top.

    Args:
        task: None where the file names it.
        path: None: there is none, and relative paths are relative to the working directory.
        settings: texts such as "training.seed=1", with paths relative to the file. They go on top of the flags.
        flags: plain content by name, {"training.seed": 1}, with paths relative to the working directory.

    Raises:
        ConfigError: the file cannot be read, or a setting is unknown or impossible.
    """
    content = _read(path) if path is not None else {}
    own: dict[str, Any] = {}
    for name, value in (flags or {}).items():
        _put(own, name, value)
    for name, value in absolute(own, Path.cwd()).items():
        content[name] = {**content.get(name, {}), **value} if name in SECTIONS else value
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise ConfigError(f"--set {setting}: write it as section.name=value, training.seed=1 for one")
        _put(content, key.strip(), _value(text.strip()))
    if task is None and content.get("task") not in TASKS:
        raise ConfigError(f"{path}: task is {content.get('task')!r}, allowed are {', '.join(TASKS)}")
    return from_dict(task or content["task"], content, path.resolve().parent if path is not None else Path.cwd())


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not TOML: {error}") from error


def _put(content: dict[str, Any], name: str, value: Any) -> None:
    section, _, field = name.rpartition(".")
    target = content.setdefault(section, {}) if section else content
    target[field] = value


def absolute(content: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Plain content with its relative paths relative to `folder`; names of splits, bundles and the hub stay."""
    found = {key: dict(value) if isinstance(value, Mapping) else value for key, value in content.items()}

    def change(section: str, name: str, applies: Callable[[str], bool]) -> None:
        target = found.get(section, {}) if section else found
        if isinstance(target, dict) and isinstance(target.get(name), str) and applies(target[name]):
            target[name] = str(folder / target[name])

    change("", "manifest", lambda _text: True)
    change("", "splits", lambda text: (folder / text).is_file())
    change("model", "start", lambda text: (folder / text).exists())
    change("training", "trunk_cache", lambda text: text not in ("auto", "off", ""))
    change("traits", "run", lambda _text: True)
    return found


def from_dict(task: Task, content: Mapping[str, Any], folder: Path) -> RunConfig:
    """Check plain content; relative paths are relative to `folder`. Raises ConfigError."""
    if content.get("task", task) != task:
        raise ConfigError(f"task is {content['task']!r} in the file: run `kibun train {content['task']}` with it")
    values: dict[str, Any] = {}
    sections: dict[str, Any] = {}
    for key, value in absolute(content, folder).items():
        if key not in SECTIONS:
            values[key] = value
        elif isinstance(value, Mapping):
            sections[key] = SECTIONS[key](**_typed(SECTIONS[key], value, f"{key}."))
        else:
            raise ConfigError(f"[{key}] must be a section of settings, is {value!r}")
    values.pop("task", None)
    if task == "mtl" and "head" not in content.get("model", {}):
        sections["model"] = dataclasses.replace(sections.get("model", ModelOptions()), head="baseline")
    if "manifest" not in values:
        raise ConfigError("manifest is missing: the path of a manifest.jsonl, as `kibun train prepare` makes it")
    return RunConfig(task=task, **_typed(RunConfig, values, ""), **sections)


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
        raise ConfigError(f"{name} is {value!r}, must be {_KINDS[wanted]}")
    return Path(value) if hint is Path else value


_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


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
    from kibun.training.losses import SMALLEST_CCC_BATCH  # and with it torch, which help needs not

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
    if (traits.source in ("predicted", "mixed")) != (traits.run is not None):
        raise ConfigError(
            'traits.run goes with traits.source = "predicted" or "mixed": name the run of `kibun train pr`'
        )
    for name in ("truth_first", "truth_last", "mean_share"):
        if not 0 <= getattr(traits, name) <= 1:
            raise ConfigError(f"traits.{name} is {getattr(traits, name)}, allowed are 0..1")
    if model.freeze == "acoustics" and (config.task != "ser" or model.head not in CONDITIONED or not model.keep_heads):
        raise ConfigError(
            'model.freeze = "acoustics" is for ser with a head that looks at traits and with model.keep_heads = true:'
            " what stays as it is must have been trained"
        )
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
