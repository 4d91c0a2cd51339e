"""The parts of a bundle: for each task a model, from a training run or from another bundle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import cast

from kibun.models.building.checksum import module_checksum
from kibun.models.building.facts import read_facts
from kibun.models.bundle import load_bundle
from kibun.models.config import KibunConfig
from kibun.models.encoders import EncoderConfig
from kibun.models.files import CONFIG, BundleError, resolve_bundle
from kibun.models.hubert import Tail, Trunk
from kibun.models.model import KibunModel
from kibun.models.settings import TASKS


class Part:
    """One task and the model that it is taken from."""

    def __init__(self, task: str, run: str | Path, loaded: dict[Path, KibunModel]) -> None:
        """Load the model of a task.

        Args:
            run: a run folder of `kibun train`, with its bundle in `bundle/`, or a bundle.
            loaded: models by folder, so that a run named for several tasks is loaded once.
        """
        self.task = task
        self.folder = find_bundle(run)
        if self.folder not in loaded:
            loaded[self.folder] = load_bundle(self.folder, allow_untrained=True)
        self.model = loaded[self.folder]
        self.run = self.folder.parent.name if self.folder.name == "bundle" else self.folder.name
        if task not in self.model.config.tasks:
            raise BundleError(f"{run}: estimates {', '.join(self.model.config.tasks)}, but not {task}")

    @property
    def config(self) -> KibunConfig:
        return self.model.config

    @property
    def synthetic(self) -> bool:
        """Whether this task learnt from generated speech."""
        return self.task in (self.config.synthetic_parts or ())

    @property
    def synthetic_trunk(self) -> bool:
        """Whether the trunk learnt from generated speech, at first or alone."""
        return "trunk" in (self.config.synthetic_parts or ())

    @property
    def own_trunk(self) -> bool:
        """Whether this is personality and has its own trunk in its bundle."""
        return self.task == "personality" and self.model.personality_trunk is not None

    @property
    def trunk(self) -> Trunk:
        """The trunk that the task uses."""
        return cast(Trunk, self.model.personality_trunk) if self.own_trunk else self.model.trunk

    @property
    def hubert(self) -> EncoderConfig:
        config = self.config.personality_hubert_config if self.own_trunk else self.config.hubert_config
        return cast(EncoderConfig, config)

    @property
    def trunk_layers(self) -> int:
        return cast(int, self.config.personality_trunk_layers if self.own_trunk else self.config.trunk_layers)

    @property
    def do_normalize(self) -> bool:
        return self.config.personality_do_normalize if self.own_trunk else self.config.do_normalize

    @property
    def tail(self) -> Tail:
        return self.model.tail(self.task)

    @property
    def trunk_was_trained(self) -> bool | None:
        """Whether the trunk differs from its checkpoint; None if that is not recorded."""
        recorded = None if self.own_trunk else self.config.trunk_sha256
        if recorded is None or self.weights_dtype != "F32":  # rounded, the checksum differs anyway
            return None
        return module_checksum(self.trunk) != recorded

    @property
    def weights_dtype(self) -> str:
        """The precision in which the weights are stored, in safetensors' notation."""
        return read_facts(self.folder).weights_dtype

    def __str__(self) -> str:
        return f"{self.task} ({self.run})"


def find_bundle(run: str | Path) -> Path:
    """The folder of a run's bundle, or of a bundle given by path or name. Raises BundleError if there is none."""
    inner = Path(run) / "bundle"
    if (inner / CONFIG).is_file():
        return resolve_bundle(inner).resolve()
    if Path(run).is_dir() and not (Path(run) / CONFIG).is_file():
        raise BundleError(
            f"{run}: neither a bundle nor a run of `kibun train` with one in bundle/: has its training finished?"
        )
    return resolve_bundle(run).resolve()


def load_parts(runs: Mapping[str, str | Path]) -> list[Part]:
    """Load the model of each task, in the order of TASKS.

    Args:
        runs: for one or more of "personality", "valence" and "arousal", a run folder of `kibun train` or a bundle.

    Raises:
        BundleError: a run cannot be loaded, or lacks its task.
    """
    loaded: dict[Path, KibunModel] = {}
    return [Part(task, runs[task], loaded) for task in TASKS if task in runs]
