"""Recipes: which data, which model, which options, and where the bundle goes."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from kibun.models.bundle import KibunModel
from kibun.training.data import Corpus
from kibun.training.manifest import load_manifest
from kibun.training.pack import Provenance, read_corpus_settings, write_bundle
from kibun.training.personality import PersonalityOptions, PersonalityTrainer, TrunkFrames
from kibun.training.tiny import new_tiny_model, tiny_config
from kibun.training.trainer import KibunTrainer, TrainOptions


def train_tiny(
    manifest: Path,
    out: Path,
    work: Path,
    options: TrainOptions,
    personality: PersonalityOptions,
    name: str,
    version: str,
    commands: tuple[str, ...],
    start_from: Path | None = None,
    skip_first_stage: bool = False,
) -> dict[str, Any]:
    """Train from scratch on a corpus of `kibun synth speech` and write the bundle; returns the test figures.

    First everything together, then personality alone on the frozen trunk. ``start_from``: weights to start with,
    such as those that an earlier first stage left in ``WORK/best``, in place of new ones.

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
    if not skip_first_stage:
        trainer = KibunTrainer(model, splits["train"], splits["dev"], work, options)
        trainer.train()
        model = trainer.best_model()
    frames = TrunkFrames(model, splits["train"], personality)
    PersonalityTrainer(model, frames, str(work / "personality"), personality).train()
    settings = read_corpus_settings(manifest)
    origin = Provenance(
        espeak_version=str(settings.get("espeak_ng", "(not recorded)")),
        corpus_seed=int(settings.get("seed", -1)),
        seed=options.seed,
        speakers=len({item.speaker for item in items}),
        utterances=len(items),
        hours=sum(len(audio) for corpus in splits.values() for audio, _item in corpus.examples) / 16_000 / 3600,
        commands=(str(settings.get("command", "(corpus command not recorded)")), *_earlier(start_from), *commands),
    )
    figures = write_bundle(model, splits["test"].examples, origin, out)
    figures["options"] = dataclasses.asdict(options)
    figures["personality_options"] = dataclasses.asdict(personality)
    (work / "figures.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return figures


def _earlier(start_from: Path | None) -> list[str]:
    """The commands that made the weights of ``WORK/best``, as far as they were noted."""
    notes = start_from.parent / "commands.txt" if start_from is not None else None
    return notes.read_text(encoding="utf-8").splitlines() if notes is not None and notes.is_file() else []
