"""The folder of a training run: its files, and how to read them.

bundle/              KibunModel of the run's tasks, at the best dev CCC; loads by itself
ctc.safetensors      the CTC head that belongs to it
config.toml          the run, whole
log.jsonl            one line per evaluation
figures.json         dev and test figures of the finished run
predictions-*.jsonl  every utterance of train, dev and test, as the bundle predicts it
heard-*.npz          pr, mtl: the traits that emotion would be conditioned on as served; those of train by models that
                     had not heard their speakers
checkpoint.pt        what training continues from after a kill; removed when the run is finished
"""

import json
import shutil
from pathlib import Path
from typing import Any

from kibun.models.files import CONFIG, read_object, resolve_bundle

BUNDLE, CTC, RUN_CONFIG, LOG, FIGURES = "bundle", "ctc.safetensors", "config.toml", "log.jsonl", "figures.json"
CHECKPOINT, PART = "checkpoint.pt", ".part"


def finish_bundle_swap(run: Path) -> None:
    """Complete a replacement of the bundle that a kill cut off: the new one is written beside the old, then moved.

    The old one is removed only when the new one is whole, and a finished run's new one is whole before its figures are
    written.
    """
    fresh, old = run / (BUNDLE + PART), run / BUNDLE
    if fresh.exists() and (is_finished(run) or not old.exists()):
        shutil.rmtree(old, ignore_errors=True)
        fresh.rename(old)


def predictions_file(run: Path, split: str) -> Path:
    """The file with a run's predictions of a split."""
    return run / f"predictions-{split}.jsonl"


def heard_file(run: Path, split: str) -> Path:
    """The file with the traits of a split, as they would be served to condition emotion."""
    return run / f"heard-{split}.npz"


def bundle_folder(start: str | Path) -> Path | None:
    """The bundle that a run folder, a bundle folder or a bundle's name stands for; None: a checkpoint."""
    run = Path(start)
    if (run / RUN_CONFIG).is_file() and (run / BUNDLE / CONFIG).is_file():
        return run / BUNDLE
    try:
        return resolve_bundle(start)
    except ValueError:
        return None  # not a bundle: loading it as a checkpoint reports what is wrong


def is_finished(run: Path) -> bool:
    """Whether a run has trained to its end."""
    return (run / FIGURES).is_file()


def read_figures(run: Path) -> dict[str, Any]:
    """Figures of a finished run. Raises BundleError where the file is damaged."""
    return read_object(run / FIGURES)


def read_log(run: Path) -> list[dict[str, Any]]:
    """The evaluations of a run so far, in order; a last line that was cut off by a kill is left out."""
    lines = []
    if (run / LOG).is_file():
        for text in (run / LOG).read_text(encoding="utf-8").splitlines():
            try:
                lines.append(dict(json.loads(text)))
            except ValueError:
                break
    return lines
