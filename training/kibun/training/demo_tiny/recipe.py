"""The recipe of `kibun train tiny`: a small HuBERT from scratch, which the runs of `kibun train pr|ser` start from."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from kibun.models.bundle import KibunModel
from kibun.models.types import SAMPLE_RATE_HZ
from kibun.training.corpora.manifest import load_manifest
from kibun.training.demo_tiny.config import new_tiny_model, tiny_config
from kibun.training.demo_tiny.data import Corpus
from kibun.training.demo_tiny.pack import Provenance, read_corpus_settings, write_bundle
from kibun.training.demo_tiny.trainer import KibunTrainer, TrainOptions


def train_tiny(
    manifest: Path,
    out: Path,
    work: Path,
    options: TrainOptions,
    name: str,
    version: str,
    commands: tuple[str, ...],
    start_from: Path | None = None,
) -> dict[str, Any]:
    """Train all tasks together on a corpus of `kibun synth speech` and write a bundle; returns the test figures.

    ``start_from``: an earlier bundle of this size, or the weights that training cut off left in ``WORK/best``, to
    start with in place of new weights.

    Raises:
        ManifestError: the manifest or its audio cannot be used.
        ValueError: too few speakers for a batch, or a split without utterances.
    """
    items = load_manifest(manifest, require=("path", "split", "text", "traits", "valence", "arousal"))
    splits = {split: Corpus([item for item in items if item.split == split]) for split in ("train", "dev", "test")}
    for split, corpus in splits.items():
        if not len(corpus):
            raise ValueError(f"{manifest}: split {split!r} has no utterance of a second or more: render more speakers")
    model = new_tiny_model(options.seed, tiny_config(name, version))
    if start_from is not None:
        model.load_state_dict(KibunModel.from_pretrained(start_from).state_dict())
    work.mkdir(parents=True, exist_ok=True)
    (work / "commands.txt").write_text("\n".join([*_earlier(start_from), *commands]) + "\n", encoding="utf-8")
    trainer = KibunTrainer(model, splits["train"], splits["dev"], work, options)
    trainer.train()
    model = trainer.best_model()
    settings = read_corpus_settings(manifest)
    origin = Provenance(
        espeak_version=str(settings.get("espeak_ng", "(not recorded)")),
        corpus_seed=int(settings.get("seed", -1)),
        seed=options.seed,
        speakers=len({item.speaker for item in items}),
        utterances=len(items),
        hours=sum(len(audio) for corpus in splits.values() for audio, _item in corpus.examples) / SAMPLE_RATE_HZ / 3600,
        commands=(str(settings.get("command", "(corpus command not recorded)")), *_earlier(start_from), *commands),
    )
    figures = write_bundle(model, splits["test"].examples, origin, out)
    figures["options"] = dataclasses.asdict(options)
    (work / "figures.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return figures


def _earlier(start_from: Path | None) -> list[str]:
    """The commands that made the weights of ``WORK/best``, as far as they were noted."""
    notes = start_from.parent / "commands.txt" if start_from is not None else None
    return notes.read_text(encoding="utf-8").splitlines() if notes is not None and notes.is_file() else []
