"""The model card of one run: data and its licence, split, seed, figures, limits."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kibun.models.bundle import KibunModel
from kibun.models.types import TRAITS
from kibun.training.corpora.manifest import Item
from kibun.training.runs.config import RunConfig

CARD = """\
# {name} (version {version})

{synthetic}Apparent, enacted personality as raters perceive it in speech; not a diagnosis, and no basis for a decision
about anyone.

- Task: {task}, head {head}{condition}
- Started from: `{start}`; trunk {frozen}, {trunk_layers} layers shared, {tail_layers} of the task
- Data: `{manifest}`, licence {license}; {counts}
- Split: {splits}{warnings}
- Seed: {seed}; best of {evaluations} evaluations on dev, at step {best_step}
- Loss: {loss}, with {ctc_weight:g} of CTC ({mix}); learning rates {learning_rate:g} and {head_learning_rate:g} (heads)

| output | dev CCC | test CCC |
|---|---|---|
{rows}

One run: no spread over seeds. {wer}{settings}
"""
SYNTHETIC = "**A synthetic model: trained on generated speech, it tells you nothing about real people.** "
TRAIT_SETTINGS = (
    "Setting 1 per utterance; 2 and 3 per conversation; causal 3 after each utterance, from the utterances so far,"
    " as it is served."
)
SETTINGS = {"utterance": "setting 1", "average": "setting 2", "conversation": "setting 3", "causal": "causal 3"}


def run_card(
    config: RunConfig, model: KibunModel, figures: Mapping[str, Any], items: Mapping[str, Sequence[Item]]
) -> str:
    """Markdown; figures as `runs.train_run` returns them."""
    condition = ""
    if config.task == "ser" and model.config.conditioned:
        source = config.traits.source
        detail = {"predicted": f" ({config.traits.setting})", "noisy": f" (sigma {config.traits.sigma:g})"}.get(
            source, ""
        )
        condition = f", conditioned on {', '.join(model.config.condition_on)}: {source}{detail}"
    wer = [f"{split} {figures[split]['wer']:.1%}" for split in ("dev", "test") if "wer" in figures[split]]
    return CARD.format(
        name=model.config.bundle_name,
        version=model.config.bundle_version,
        synthetic=SYNTHETIC if model.config.synthetic else "",
        task=config.task + (f" ({config.dimension})" if config.dimension else ""),
        head=config.model.head if config.task != "pr" else "linear, conversation head",
        condition=condition,
        start=Path(config.model.start).name if Path(config.model.start).exists() else config.model.start,
        frozen="frozen" if config.model.freeze == "trunk" else "trained",
        trunk_layers=model.config.trunk_layers,
        tail_layers=model.config.tail_layers,
        manifest=config.manifest.name,
        license=config.license,
        counts=", ".join(_count(split, some) for split, some in items.items()),
        splits=config.splits or "the manifest's own",
        warnings="".join(f"; {warning}" for warning in figures["warnings"]),
        seed=config.training.seed,
        evaluations=figures["evaluations"],
        best_step=figures["best_step"],
        loss=config.training.loss,
        ctc_weight=config.training.ctc_weight,
        mix=config.training.mix,
        learning_rate=config.training.learning_rate,
        head_learning_rate=config.training.head_learning_rate,
        rows="\n".join(_rows(figures)),
        settings=TRAIT_SETTINGS if model.config.supports_personality else "",
        wer=f"WER of the CTC head: {', '.join(wer)}. " if wer else "",
    )


def _count(split: str, items: Sequence[Item]) -> str:
    speakers = len({item.speaker for item in items})
    return f"{split} {len(items):,} utterances of {speakers} speakers"


def _rows(figures: Mapping[str, Any]) -> list[str]:
    dev, test = figures["dev"], figures["test"]
    rows = [f"| {name} | {dev[name]:.3f} | {test[name]:.3f} |" for name in ("valence", "arousal") if name in dev]
    for setting, label in SETTINGS.items():
        if setting in dev:
            rows += [
                f"| {trait}, {label} | {dev[setting][trait]:.3f} | {test[setting][trait]:.3f} |" for trait in TRAITS
            ]
    return rows
