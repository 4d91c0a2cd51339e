"""The runs behind a table: one folder each, named after its configuration, trained once and then only read.

A name describes the run and ends in a digest of all its settings and of the contents of manifest and splits file, so
that another corpus or another setting is another run, and corpora and folders of runs may be moved.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from kibun.models.types import TRAITS
from kibun.training.corpora.manifest import Item
from kibun.training.corpora.splits import resolve_splits
from kibun.training.evaluation.predictions import Estimate, Prediction, align, read_predictions, write_predictions
from kibun.training.experiments.study import UNCONDITIONED
from kibun.training.runs.config import RunConfig, identity
from kibun.training.runs.folder import RUN_CONFIG, is_finished, predictions_file

State = Literal["finished", "begun", "missing"]
TESTED = "tested"  # folder in a run: its predictions of test with other traits


class RunStore:
    """A folder of runs. `log` is called with a line before each run is trained, or tested with other traits."""

    def __init__(self, folder: Path, log: Callable[[str], None] = lambda _line: None) -> None:
        self.folder = folder
        self.log = log
        self._digests: dict[Path, str] = {}

    def name(self, config: RunConfig) -> str:
        """`ser-valence-ticn-ca-OCEAN-paper-seed0-1a2b3c4d5e`: safe as the name of a folder on any file system."""
        words: list[str] = [config.task]
        if config.dimension is not None:
            words.append(config.dimension)
        if config.task == "ser":
            words.append(config.model.head)
            if config.model.head not in UNCONDITIONED:
                words.append(_letters(config.model.condition_on))
                if config.traits.source != "truth":
                    words.append(config.traits.source)
        elif config.model.traits != TRAITS:
            words.append(_letters(config.model.traits))
        if config.splits is not None:
            words.append("".join(c if c.isalnum() or c in "_-" else "_" for c in Path(config.splits).stem))
        return "-".join([*words, f"seed{config.training.seed}", self._digest(config)])

    def folder_of(self, config: RunConfig) -> Path:
        """Absolute path of the run's folder, which need not exist yet."""
        return (self.folder / self.name(config)).resolve()

    def state(self, config: RunConfig) -> State:
        """Whether the run is finished, was begun, or is missing."""
        folder = self.folder_of(config)
        if is_finished(folder):
            return "finished"
        return "begun" if (folder / RUN_CONFIG).is_file() else "missing"

    def train(self, configs: Sequence[RunConfig]) -> None:
        """Train the unfinished ones in this order, resuming any that was interrupted. Raises as `train_run`."""
        from kibun.training.runs.run import train_run

        wanted = {self.name(config): config for config in configs}
        missing = [name for name, config in wanted.items() if self.state(config) != "finished"]
        self.log(f"{len(wanted)} runs: {len(wanted) - len(missing)} finished, {len(missing)} to train")
        for number, name in enumerate(missing, 1):
            self.log(f"run {number} of {len(missing)}: {name}")
            train_run(wanted[name], self.folder_of(wanted[name]))

    def predictions(self, config: RunConfig, items: Sequence[Item]) -> list[Prediction]:
        """A finished run's predictions of these test utterances, in their order.

        Raises PredictionsError where the file is missing or holds other utterances or labels.
        """
        return _in_order(items, predictions_file(self.folder_of(config), "test"))

    def under(
        self, config: RunConfig, items: Sequence[Item], conditions: Mapping[str, NDArray[np.float32]]
    ) -> dict[str, list[Prediction]]:
        """Predictions of a finished run of `ser` for these utterances, given other traits than it was tested with.

        conditions: (N, 5) traits by name. The predictions of each are stored as TESTED/NAME-DIGEST.jsonl in the run's
        folder, DIGEST of the traits; those that are missing are made with a single encoding of each utterance.
        """
        folder = self.folder_of(config) / TESTED
        files = {name: folder / f"{name}-{_sha(traits.tobytes())}.jsonl" for name, traits in conditions.items()}
        if missing := [name for name, file in files.items() if not file.is_file()]:
            self.log(f"testing with {len(missing)} other assignments of traits: {self.name(config)}")
            estimates = self._estimate(config, items, [conditions[name] for name in missing])
            folder.mkdir(exist_ok=True)
            for name, values in zip(missing, estimates, strict=True):
                write_predictions(files[name], _predictions(items, str(config.dimension), values))
        return {name: _in_order(items, file) for name, file in files.items()}

    def _estimate(
        self, config: RunConfig, items: Sequence[Item], conditions: Sequence[NDArray[np.float32]]
    ) -> NDArray[np.float64]:
        from kibun.training.runs.predict import emotion_under
        from kibun.training.runs.run import load_run, use_cached_frames
        from kibun.training.runs.utterances import Utterances

        kibun = load_run(self.folder_of(config)).kibun
        utterances = Utterances(items, conditions[0], min_samples=kibun.min_samples)
        use_cached_frames(config, self.folder_of(config), kibun, [utterances])
        return emotion_under(kibun, utterances, str(config.dimension), conditions)

    def _digest(self, config: RunConfig) -> str:
        content = identity(config)
        content["manifest"] = self._file(config.manifest)
        if config.splits is not None:
            content["splits"] = self._file(resolve_splits(config.splits))
        if config.traits.run is not None:
            content["traits"]["run"] = Path(config.traits.run).name  # which ends in that run's digest
        return _sha(json.dumps(content, sort_keys=True).encode())

    def _file(self, path: Path) -> str:
        if path not in self._digests:
            try:
                self._digests[path] = _sha(path.read_bytes())
            except OSError:
                self._digests[path] = "unreadable"  # reading it as a manifest reports why
        return self._digests[path]


def _letters(traits: Sequence[str]) -> str:
    return "".join(trait[0].upper() for trait in traits)


def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:10]


def _predictions(items: Sequence[Item], dimension: str, values: NDArray[np.float64]) -> list[Prediction]:
    from kibun.training.runs.predict import prediction

    estimates = [dataclasses.replace(Estimate(), **{dimension: float(value)}) for value in values]  # type: ignore[arg-type]
    return [prediction(item, estimate) for item, estimate in zip(items, estimates, strict=True)]


def _in_order(items: Sequence[Item], file: Path) -> list[Prediction]:
    from kibun.training.runs.predict import prediction

    wanted = [prediction(item, Estimate()) for item in items]
    return [there for _, there in align(wanted, read_predictions(file))]
