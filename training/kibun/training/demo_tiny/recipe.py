"""`kibun train demo-tiny`: from nothing to the bundle, by the steps that a user with a real corpus takes.

    corpus/      rendered with espeak-ng
    trunk/       a small HuBERT from random weights, all tasks on it at once
    pr/ arousal/ valence/   runs of `kibun train` on the frozen trunk, by the TOML files beside them
    demo-tiny/   the bundle of the three, measured as served

Started again, it continues from the step that was interrupted; finished steps are skipped.
"""

import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from kibun.models.building.assemble import assemble
from kibun.models.building.build import save_bundle
from kibun.models.building.parts import load_parts
from kibun.models.bundle import load_bundle
from kibun.models.files import Sidecars, evidence_rows, verify, write_sidecars
from kibun.training.corpora.manifest import MANIFEST_NAME, Item, load_manifest
from kibun.training.demo_tiny.card import make_card
from kibun.training.demo_tiny.config import tiny_config
from kibun.training.demo_tiny.corpus import CorpusOptions, render_corpus
from kibun.training.demo_tiny.evaluate import analyze_causally, ccc_as_served
from kibun.training.demo_tiny.trunk import MIN_SECONDS, TrunkOptions, train_trunk
from kibun.training.filter_bank import new_model
from kibun.training.runs.config import Task, load_config
from kibun.training.runs.run import train_run

NAME = "demo-tiny"
RECIPES = Path(__file__).parent / "recipes"
RUNS: tuple[tuple[str, Task], ...] = (("pr", "pr"), ("arousal", "ser"), ("valence", "ser"))
FIELDS = ("path", "split", "text", "traits", "valence", "arousal", "seconds")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Sizes of the steps. settings: `--set` of all three runs."""

    corpus: CorpusOptions
    trunk: TrunkOptions
    settings: tuple[str, ...] = ()


FULL = Recipe(CorpusOptions(utterances=6000, utterances_per_speaker=10, seed=6), TrunkOptions())
QUICK = Recipe(
    CorpusOptions(utterances=600, utterances_per_speaker=10, seed=6, max_seconds=3.0),
    TrunkOptions(steps=60, evaluations=2, crop_seconds=(1.0, 1.6)),
    ("training.epochs=1", "training.conversation_steps=100"),
)


def make_demo_tiny(
    out: Path,
    recipe: Recipe,
    *,
    version: str,
    seed: int,
    command: str,
    jobs: int = 1,
    report: Callable[[str], None] = lambda _line: None,
) -> dict[str, Any]:
    """Make the bundle OUT/demo-tiny and return its figures on the test split.

    Args:
        seed: of weights, batches and augmentation; the corpus has its own.
        command: the command line, for the card. jobs: processes that render.
        report: called with a line before each step.

    Raises:
        EspeakError: espeak-ng is missing.
        ConfigError, ManifestError, BundleError, ValueError: OUT holds something else, or too little to train with.
    """
    report("corpus")
    manifest = _corpus(out / "corpus", recipe.corpus, jobs)
    items = [item for item in load_manifest(manifest, require=FIELDS) if (item.seconds or 0) >= MIN_SECONDS]
    splits = {split: [item for item in items if item.split == split] for split in ("train", "dev", "test")}
    report("trunk")
    model = new_model(seed, tiny_config(NAME, version))
    train_trunk(model, splits["train"], splits["dev"], dataclasses.replace(recipe.trunk, seed=seed), out / "trunk")
    for name, task in RUNS:
        report(name)
        shutil.copyfile(RECIPES / f"{name}.toml", out / f"{name}.toml")
        settings = [f"version={version!r}", f"training.seed={seed}", *recipe.settings]
        train_run(load_config(task, out / f"{name}.toml", settings), out / name)
    report("bundle")
    corpus = json.loads((manifest.parent / "corpus.json").read_text(encoding="utf-8"))
    return _bundle(out, splits["test"], items, corpus, version, seed, command)


def _corpus(folder: Path, options: CorpusOptions, jobs: int) -> Path:
    """The manifest of the rendered corpus; what is there whole and of the same options is not rendered again."""
    done = folder / "rendered.json"
    wanted = json.dumps(dataclasses.asdict(options))
    if done.is_file():
        if done.read_text(encoding="utf-8") != wanted:
            raise ValueError(f"{folder}: holds a corpus of other options: name another folder")
        return folder / MANIFEST_NAME
    manifest = render_corpus(folder, options, jobs)
    done.write_text(wanted, encoding="utf-8")
    return manifest


def _bundle(
    out: Path,
    test: list[Item],
    items: list[Item],
    corpus: Mapping[str, Any],
    version: str,
    seed: int,
    command: str,
) -> dict[str, Any]:
    """Put the runs together, measure the stored weights as served, and write the card."""
    folder = out / NAME
    if not folder.exists():
        runs = {"personality": out / "pr", "valence": out / "valence", "arousal": out / "arousal"}
        save_bundle(assemble(load_parts(runs), name=NAME, version=version), folder, dtype=torch.float16)
    model = load_bundle(folder)
    rows = analyze_causally(model, test)
    card = make_card(model, rows, items, corpus, command, seed)
    _whole, heading, parts = (model.card or "").partition("## Personality: from")
    note = "\nThe runs that it was assembled from, as they describe themselves (before rounding to float16):\n\n"
    write_sidecars(folder, model.config, Sidecars(model.evidence, card + note + heading + parts, model.license_text))
    verify(folder)
    return {
        "bundle": str(folder),
        "test_ccc": {name: round(value, 4) for name, value in ccc_as_served(rows).items()},
        "expected_error": evidence_rows(model.evidence),
        "bundle_bytes": sum(path.stat().st_size for path in folder.iterdir() if path.is_file()),
    }
