"""`kibun train voices`: manifests in; out a bundle for valence and arousal, and its figures on voices it never heard.

    without-CORPUS/   a net that has not heard this corpus, and its figures on it; one for each of two or more
    held-out/         a net that has not heard the speakers of the manifests' test split, and its figures on them
    net/              the net that is shipped: trained on all speakers
    NAME/             its bundle, with all figures in the card

They differ in whom they hear and, to save time, in how long they are trained. Nothing is chosen by any of the figures:
training ends after a fixed number of steps. Started again, it continues from the step that was interrupted.
"""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from kibun.models._transformers import quiet
from kibun.models.building.build import save_bundle
from kibun.models.bundle import load_bundle
from kibun.models.files import Sidecars, joint_license, write_sidecars, written_atomically
from kibun.training.corpora.manifest import Item, license_of
from kibun.training.errors import ManifestError
from kibun.training.runs.folder import BUNDLE, CHECKPOINT, FIGURES
from kibun.training.runs.loop import Plan, new_accelerator, train
from kibun.training.voices.batches import BatchOptions, VoiceBatches
from kibun.training.voices.card import make_card
from kibun.training.voices.corpora import VoiceCorpus
from kibun.training.voices.measure import Figures, by_corpus, estimate, figures_of
from kibun.training.voices.task import LossOptions, VoicesTask, new_net

MEASURED = "measured.json"


@dataclasses.dataclass(frozen=True)
class VoicesOptions:
    """How a net is trained."""

    steps: int = 2400
    check_steps: int = 600  # of the nets that leave voices out: enough to tell, in a quarter of the time
    warmup: float = 0.08
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    dropout: float = 0.1
    start: str | None = "demo-tiny"  # bundle whose trunk and arousal tail a net begins with; None: random weights
    batch: BatchOptions = dataclasses.field(default_factory=BatchOptions)
    losses: LossOptions = dataclasses.field(default_factory=LossOptions)


FULL = VoicesOptions()
QUICK = VoicesOptions(steps=40, check_steps=40, batch=BatchOptions(crop_seconds=(1.0, 1.4)))


@dataclasses.dataclass(frozen=True)
class LeftOut:
    """A net of the recipe, whom it hears, and whom it is measured on. name: of its folder. unheard: for people."""

    name: str
    train: tuple[VoiceCorpus, ...]
    test: tuple[Item, ...] = ()
    unheard: str = ""


def make_voices(
    out: Path,
    corpora: Sequence[VoiceCorpus],
    options: VoicesOptions,
    *,
    name: str,
    version: str,
    seed: int,
    command: str,
    license_text: str | None = None,
    measure: bool = True,
    report: Callable[[str], None] = lambda _line: None,
) -> dict[str, Any]:
    """Make the bundle OUT/NAME and return its figures on voices that the nets behind them never heard.

    Args:
        corpora: of `read_corpora`. seed: of weights, batches and augmentation. command: the command line, for the card.
        license_text: goes into the bundle as LICENSE.
        measure: whether to train the nets that leave speakers and corpora out; each takes as long as the bundle's own.
        report: called with a line before each step.

    Raises ManifestError, BundleError, ValueError: too little to train with, or OUT holds something else.
    """
    if all(corpus.synthetic for corpus in corpora):
        raise ManifestError("give at least one manifest of recordings: a net of generated speech is demo-tiny's recipe")
    begun_with = load_bundle(options.start).config.license if options.start else None  # refused before OUT is written
    settings: dict[str, Any] = {"seed": seed, "corpora": {corpus.name: len(corpus.items) for corpus in corpora}}
    settings |= dataclasses.asdict(options)
    _same_settings(out, settings)
    figures: dict[str, Figures] = {}
    for fold in folds(corpora) if measure else []:
        report(fold.name)
        figures |= _measured(fold, options, seed, out / fold.name)
    report("net")
    _train(LeftOut("net", tuple(corpora)), options, options.steps, seed, out / "net")
    report("bundle")
    model = load_bundle(out / "net" / BUNDLE)
    model.config.bundle_name, model.config.bundle_version = name, version
    data = license_of(item for corpus in corpora for item in corpus.items)
    model.config.license = joint_license([begun_with or data, data])
    model.license_text = license_text
    model.card = make_card(model, corpora, figures, command, f"{_training(options)}, seed {seed}", options.check_steps)
    folder = out / name
    if not folder.exists():
        save_bundle(model, folder, dtype=torch.float16)
    elif load_bundle(folder).card != model.card:  # it has been measured since
        write_sidecars(folder, model.config, Sidecars(model.evidence, model.card, model.license_text))
    return {
        "bundle": str(folder),
        "figures": {label: each.as_json() for label, each in figures.items()},
        "bundle_bytes": sum(path.stat().st_size for path in folder.iterdir() if path.is_file()),
    }


def _training(options: VoicesOptions) -> str:
    begun = f"the trunk of {options.start} {load_bundle(options.start).config.bundle_version}" if options.start else ""
    return f"{options.steps:,} steps from {begun or 'random weights'}"


def folds(corpora: Sequence[VoiceCorpus]) -> list[LeftOut]:
    """Each corpus of recordings left out, where another is left; and the speakers of the test splits."""
    found = []
    recorded = [corpus for corpus in corpora if not corpus.synthetic]
    for out in recorded if len(recorded) > 1 else []:
        rest = tuple(corpus for corpus in corpora if corpus is not out)
        found.append(LeftOut(f"without-{out.name}", rest, out.items, "corpus not heard"))
    test = tuple(item for corpus in recorded for item in corpus.items if item.split == "test")
    if test:
        kept = [(corpus, tuple(item for item in corpus.items if item.split != "test")) for corpus in corpora]
        train = tuple(dataclasses.replace(corpus, items=items) for corpus, items in kept if items)
        found.append(LeftOut("held-out", train, test, "speakers not heard"))
    return found


def _same_settings(out: Path, settings: dict[str, Any]) -> None:
    """Write what the folder is made with, or raise ValueError where it was begun with something else."""
    file, wanted = out / "settings.json", json.dumps(settings, indent=2) + "\n"
    if not file.is_file():
        out.mkdir(parents=True, exist_ok=True)
        with written_atomically(file) as draft:
            draft.write_text(wanted, encoding="utf-8")
    elif file.read_text(encoding="utf-8") != wanted:
        raise ValueError(f"{out}: was begun with other corpora, seed or options ({file}): name another folder")


def _measured(fold: LeftOut, options: VoicesOptions, seed: int, folder: Path) -> dict[str, Figures]:
    """Figures of a net on voices that it never heard, by corpus."""
    _train(fold, options, options.check_steps, seed, folder)
    file = folder / MEASURED
    if not file.is_file():
        model = load_bundle(folder / BUNDLE)
        found = {}
        for corpus, rows in by_corpus(fold.test).items():
            items = [fold.test[row] for row in rows]
            found[f"{corpus}, {fold.unheard}"] = figures_of(items, estimate(model, items)).as_json()
        with written_atomically(file) as draft:
            draft.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    stored = json.loads(file.read_text(encoding="utf-8"))
    return {label: Figures.from_json(content) for label, content in stored.items()}


def _train(fold: LeftOut, options: VoicesOptions, steps: int, seed: int, folder: Path) -> None:
    """Train a net in `folder`, from its last checkpoint if there is one; FOLDER/bundle is the average at the end."""
    if (folder / FIGURES).is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    batches = VoiceBatches([corpus.items for corpus in fold.train], options.batch, seed)
    kibun = new_net(seed, options.dropout, load_bundle(options.start) if options.start else None)
    task, accelerator = VoicesTask(kibun, options.losses, options.batch.per_speaker), new_accelerator()
    learnt = [parameter for parameter in task.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [each for each in learnt if each.ndim > 1], "weight_decay": options.weight_decay},
        {"params": [each for each in learnt if each.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, options.learning_rate, betas=(0.9, 0.98))
    optimizer.register_step_post_hook(lambda *_: task.average.update(kibun))

    def save() -> None:
        task.average.model.config.trained = True
        with quiet():
            task.average.model.save_pretrained(folder / BUNDLE)

    plan = Plan(
        model=task,
        optimizer=optimizer,
        batch=batches.draw,
        per_step=1,
        steps=steps,
        evaluate_every=max(1, steps // 8),
        evaluate=lambda: {"score": float(task.average.updates)},  # the last is kept: nothing is chosen
        save=save,
        schedule="cosine",
        warmup=options.warmup,
        seed=seed,
    )
    train(plan, folder, accelerator)
    (folder / FIGURES).write_text(
        json.dumps({"trained_steps": steps, **dataclasses.asdict(options)}, indent=2) + "\n", encoding="utf-8"
    )
    (folder / CHECKPOINT).unlink()
