"""What all runs of one table share, and the configuration of each run that a table asks for.

The settings come from one TOML file, as `kibun train` reads it, without what the tables vary: task, dimension, head,
traits and seed.
"""

import dataclasses
import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kibun.models.types import EMOTIONS, TRAITS
from kibun.training.corpora.splits import SPLIT_FILES
from kibun.training.runs.config import ConfigError, RunConfig, Task, TraitOptions, as_dict, from_dict, load_config

RECIPES = Path(__file__).parent / "recipes"
VARIED = ("task", "dimension", "name", "model.head", "model.condition_on", "training.seed")
UNCONDITIONED = ("baseline", "regression")
TRUTH = TraitOptions()
SHUFFLED = TraitOptions(source="shuffled")


@dataclasses.dataclass(frozen=True)
class Place:
    """Where an emotion is estimated: which one, and by which splits (None: the manifest's own field)."""

    dimension: str
    splits: str | None


@dataclasses.dataclass(frozen=True)
class Study:
    """The settings that the runs of a table share, its seeds and its emotion dimensions.

    emotion: settings of the runs that estimate emotion; personality: of those of `pr`. Both as a run of `pr`.
    """

    emotion: RunConfig
    personality: RunConfig
    seeds: tuple[int, ...] = (0, 1, 2)
    dimensions: tuple[str, ...] = EMOTIONS

    @property
    def places(self) -> list[Place]:
        """One for each dimension, by the settings' own splits."""
        return [Place(dimension, self.emotion.splits) for dimension in self.dimensions]

    def pr(self, seed: int, splits: str | None) -> RunConfig:
        """Personality alone."""
        return _vary("pr", self.personality, seed, splits)

    def ser(
        self,
        place: Place,
        seed: int,
        head: str,
        condition_on: Sequence[str] = TRAITS,
        traits: TraitOptions = TRUTH,
    ) -> RunConfig:
        """Emotion alone; what a head without traits is conditioned on is left as the default."""
        model = {"head": head} if head in UNCONDITIONED else {"head": head, "condition_on": list(condition_on)}
        source = {} if head in UNCONDITIONED else {"traits": dataclasses.asdict(traits)}
        return _vary("ser", self.emotion, seed, place.splits, dimension=place.dimension, model=model, **source)

    def mtl(self, place: Place, seed: int) -> RunConfig:
        """Emotion and personality on one tail."""
        model = {"head": "baseline"}
        return _vary("mtl", self.emotion, seed, place.splits, dimension=place.dimension, model=model)


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
    is for the runs of `pr`. manifest: instead of the files' own. settings: as "training.epochs=3", on top of both.

    Raises ConfigError: what cannot be read or used, a setting that the tables vary, files of two corpora.
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
    """A TOML file by path, or a recipe by name; ConfigError says which recipes there are."""
    for path in (Path(name_or_path), RECIPES / f"{name_or_path}.toml"):
        if path.is_file():
            return path
    known = ", ".join(sorted(path.stem for path in RECIPES.glob("*.toml")))
    raise ConfigError(f"{name_or_path}: neither a TOML file nor one of the recipes that come with kibun ({known})")


def find_splits(name_or_path: str) -> str:
    """A splits file by name, as it is, or by path, made absolute; ConfigError where there is none."""
    if (SPLIT_FILES / f"{name_or_path}.csv").is_file():
        return name_or_path
    if Path(name_or_path).is_file():
        return str(Path(name_or_path).resolve())
    known = ", ".join(sorted(path.stem for path in SPLIT_FILES.glob("*.csv")))
    raise ConfigError(f"{name_or_path}: no splits of this name that come with kibun ({known}), and no such file")


def _shared(config: str, manifest: Path | None, settings: Sequence[str]) -> RunConfig:
    path = find_config(config)
    if manifest is not None:
        settings = [*settings, f"manifest={json.dumps(str(manifest.resolve()), ensure_ascii=False)}"]
    _refuse_varied(path, settings)
    return load_config("pr", path, settings)


def _refuse_varied(path: Path, settings: Sequence[str]) -> None:
    """ConfigError for what the table itself says: a value that would be ignored is an error."""
    given = {setting.partition("=")[0].strip(): f"--set {setting}" for setting in settings}
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        content = {}  # `load_config` says what is wrong with it
    for key, value in content.items():
        names = [f"{key}.{name}" for name in value] if isinstance(value, dict) else [key]
        given |= dict.fromkeys(names, str(path))
    for name, where in given.items():
        if name in VARIED or name.startswith("traits."):
            fix = {"dimension": "--dimension", "training.seed": "--seeds"}.get(name, "the command and its options")
            raise ConfigError(f"{where}: {name} is what the table varies; leave it out, {fix} says it")


def _vary(task: Task, settings: RunConfig, seed: int, splits: str | None, **changes: Any) -> RunConfig:
    content = as_dict(settings)
    content["task"], content["splits"] = task, splits
    content["training"]["seed"] = seed
    for key, value in changes.items():
        content[key] = {**content[key], **value} if isinstance(value, dict) else value
    plain = {
        key: {k: v for k, v in value.items() if v is not None} if isinstance(value, dict) else value
        for key, value in content.items()
        if value is not None
    }
    return from_dict(task, plain, Path("/"))
