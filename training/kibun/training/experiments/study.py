"""The settings that all runs of a table share, and the configuration of each of its runs.

The settings come from one TOML file, as `kibun train` reads it, without those that the tables vary: task, dimension,
head, traits and seed.
"""

import dataclasses
import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from kibun.models.types import EMOTIONS, TRAITS, HeadName
from kibun.training.corpora.splits import split_names
from kibun.training.runs.config import ConfigError, RunConfig, Task, TraitOptions, load_config

RECIPES = Path(__file__).parent / "recipes"
VARIED = ("task", "dimension", "name", "model.head", "model.condition_on", "model.traits", "training.seed")
LOSO_SPLITS = ("loso_1", "loso_2", "loso_3", "loso_4", "loso_5")
UNCONDITIONED = ("baseline", "regression")
TRUTH = TraitOptions()


@dataclasses.dataclass(frozen=True)
class Place:
    """An emotion dimension, and the splits it is estimated on (None: the manifest's own field)."""

    dimension: str
    splits: str | None


@dataclasses.dataclass(frozen=True)
class Study:
    """The settings that the runs of a table share, its seeds and its emotion dimensions.

    emotion: settings of the runs that estimate emotion; personality: of the runs of `pr`. Both as a run of `pr`.
    """

    emotion: RunConfig
    personality: RunConfig
    seeds: tuple[int, ...] = (0, 1, 2)
    dimensions: tuple[str, ...] = EMOTIONS

    @property
    def places(self) -> list[Place]:
        """Each dimension with the splits of the settings."""
        return [Place(dimension, self.emotion.splits) for dimension in self.dimensions]

    def pr(self, seed: int, splits: str | None) -> RunConfig:
        """A run that estimates personality alone."""
        return _vary(self.personality, "pr", seed, splits)

    def ser(
        self,
        place: Place,
        seed: int,
        head: str,
        condition_on: tuple[str, ...] = TRAITS,
        traits: TraitOptions = TRUTH,
    ) -> RunConfig:
        """A run that estimates emotion alone; a head that sees no traits ignores both options of traits."""
        options: dict[str, Any] = {"model": dataclasses.replace(self.emotion.model, head=cast(HeadName, head))}
        if head not in UNCONDITIONED:
            options["model"] = dataclasses.replace(options["model"], condition_on=condition_on)
            options["traits"] = traits
        return _vary(self.emotion, "ser", seed, place.splits, dimension=place.dimension, **options)

    def mtl(self, place: Place, seed: int, traits: tuple[str, ...] = TRAITS) -> RunConfig:
        """A run that estimates emotion and these traits on one tail."""
        model = dataclasses.replace(self.emotion.model, head="baseline", traits=traits)
        return _vary(self.emotion, "mtl", seed, place.splits, dimension=place.dimension, model=model)


def read_study(
    config: str,
    *,
    personality: str | None = None,
    manifest: Path | None = None,
    settings: Sequence[str] = (),
    seeds: Sequence[int] = (0, 1, 2),
    dimensions: Sequence[str] = EMOTIONS,
) -> Study:
    """Read the shared settings.

    config, personality: TOML file, or the name of a recipe that comes with kibun; `personality` (default: the same)
    is for the runs of `pr`. manifest: replaces the files' own. settings: such as "training.epochs=3", on top of both.

    Raises ConfigError: a file cannot be read or used, sets what the tables vary, or the two are of different corpora.
    """
    base = _shared(config, manifest, settings)
    other = base if personality is None else _shared(personality, manifest, settings)
    if (base.manifest, base.splits) != (other.manifest, other.splits):
        raise ConfigError(
            f"{config} and {personality} have different manifests or splits ({base.manifest}, {base.splits};"
            f" {other.manifest}, {other.splits}): both must be of one corpus, or traits of test speakers leak"
        )
    return Study(base, other, tuple(seeds), tuple(dimensions))


def find_config(name_or_path: str) -> Path:
    """A TOML file by path, or a recipe by name; ConfigError lists the recipes."""
    for path in (Path(name_or_path), RECIPES / f"{name_or_path}.toml"):
        if path.is_file():
            return path
    known = ", ".join(sorted(path.stem for path in RECIPES.glob("*.toml")))
    raise ConfigError(f"{name_or_path}: neither a TOML file nor one of the recipes that come with kibun ({known})")


def find_splits(name_or_path: str) -> str:
    """A splits file by name, as it is, or by path, made absolute; ConfigError where there is none."""
    if name_or_path in split_names():
        return name_or_path
    if Path(name_or_path).is_file():
        return str(Path(name_or_path).resolve())
    known = ", ".join(split_names())
    raise ConfigError(f"{name_or_path}: no splits of this name that come with kibun ({known}), and no such file")


def _shared(config: str, manifest: Path | None, settings: Sequence[str]) -> RunConfig:
    path = find_config(config)
    if manifest is not None:
        settings = [*settings, f"manifest={json.dumps(str(manifest.resolve()), ensure_ascii=False)}"]
    _refuse_varied(path, settings)
    return load_config("pr", path, settings)


def _refuse_varied(path: Path, settings: Sequence[str]) -> None:
    """ConfigError for a setting that the table varies: its value would be ignored."""
    given = {setting.partition("=")[0].strip(): f"--set {setting}" for setting in settings}
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        content = {}  # `load_config` reports what is wrong with it
    for key, value in content.items():
        names = [f"{key}.{name}" for name in value] if isinstance(value, dict) else [key]
        given |= dict.fromkeys(names, str(path))
    for name, where in given.items():
        if name in VARIED or name.startswith("traits."):
            fix = {"dimension": "--dimension", "training.seed": "--seeds"}.get(name, "the command and its options")
            raise ConfigError(f"{where}: {name} is what the table varies; leave it out and use {fix}")


def _vary(settings: RunConfig, task: Task, seed: int, splits: str | None, **changes: Any) -> RunConfig:
    training = dataclasses.replace(settings.training, seed=seed)
    return dataclasses.replace(settings, task=task, splits=splits, training=training, **changes)
