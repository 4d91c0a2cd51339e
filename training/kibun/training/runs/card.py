"""The model card of one run: data and its licence, split, seed, figures, limits."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kibun.models import provenance
from kibun.models.bundle import KibunModel
from kibun.models.types import TRAITS
from kibun.training.corpora.manifest import Item, license_of
from kibun.training.runs.config import RunConfig

CARD = """\
# {bundle.bundle_name} (version {bundle.bundle_version})

{synthetic}Apparent, enacted personality as raters perceive it in speech; not a diagnosis, and no basis for a decision
about anyone.

- Task: {task}, head {head}{condition}
- Started from: `{start}`; trunk {frozen}, {bundle.trunk_layers} layers shared, {bundle.tail_layers} of the task
- Data: `{config.manifest.name}`, licence {license}; {counts}
- Split: {splits}{warnings}{calibration}
- Seed: {training.seed}; best of {figures[evaluations]} evaluations on dev, at step {figures[best_step]}
- Loss: {training.loss}, with {training.ctc_weight:g} of CTC ({training.mix}); \
learning rates {training.learning_rate:g} and {training.head_learning_rate:g} (heads)

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
SETTING_LABELS = {"utterance": "setting 1", "average": "setting 2", "conversation": "setting 3", "causal": "causal 3"}


def run_card(
    config: RunConfig, model: KibunModel, figures: Mapping[str, Any], items: Mapping[str, Sequence[Item]]
) -> str:
    """Markdown; figures as `runs.train_run` returns them."""
    condition = ""
    if config.task == "ser" and model.config.conditioned:
        source = config.traits.source
        traits = config.traits
        detail = {
            "predicted": f" ({traits.setting})",
            "noisy": f" (sigma {traits.sigma:g})",
            "mixed": f" (truth for {traits.truth_first:.0%} of the utterances, falling to {traits.truth_last:.0%}, the"
            f" mean for {traits.mean_share:.0%}, else as heard after a random number of utterances; dev and test as"
            " served)",
        }.get(source, "")
        condition = f", conditioned on {', '.join(model.config.condition_on)}: {source}{detail}"
    through = " (trained through the tail)" if config.training.conversation == "through_tail" else ""
    estimated = ""
    if config.task != "ser" and config.model.traits != TRAITS:
        estimated = (
            f"; of the traits it estimates {', '.join(config.model.traits)} only, the others are always the middle of"
            " the scale. Therefore it is marked as untrained, and not served by default"
        )
    wer = [f"{split} {figures[split]['wer']:.1%}" for split in ("dev", "test") if "wer" in figures[split]]
    return CARD.format(
        config=config,
        training=config.training,
        bundle=model.config,
        figures=figures,
        synthetic=_synthetic(model),
        task=config.task + (f" ({config.dimension})" if config.dimension else ""),
        head=config.model.head if config.task != "pr" else f"linear, conversation head{through}",
        condition=condition + estimated,
        start=Path(config.model.start).name if Path(config.model.start).exists() else config.model.start,
        frozen={"trunk": "frozen", "acoustics": "frozen, as is all but what reads traits", "none": "trained"}[
            config.model.freeze
        ],
        license=data_license(config, items),
        counts=", ".join(_count(split, some) for split, some in items.items()),
        splits=config.splits or "the manifest's own",
        warnings="".join(f"; {warning}" for warning in figures["warnings"]),
        calibration=f"; {figures['calibration']}" if model.evidence else "",
        rows="\n".join(_rows(figures)),
        settings=TRAIT_SETTINGS if model.config.supports_personality else "",
        wer=f"WER of the CTC head: {', '.join(wer)}. " if wer else "",
    )


def _synthetic(model: KibunModel) -> str:
    if model.config.synthetic:
        return SYNTHETIC
    learnt = provenance.describe(model.config.tasks, model.config.synthetic_parts or ())
    return f"{learnt.capitalize()}. " if learnt else ""


def data_license(config: RunConfig, items: Mapping[str, Sequence[Item]]) -> str:
    """The licence of the data: as the configuration sets it, else as the manifest has it."""
    return config.license or license_of(item for some in items.values() for item in some)


def _count(split: str, items: Sequence[Item]) -> str:
    speakers = len({item.speaker for item in items})
    return f"{split} {len(items):,} utterances of {speakers} speakers"


def _rows(figures: Mapping[str, Any]) -> list[str]:
    dev, test = figures["dev"], figures["test"]
    rows = [f"| {name} | {dev[name]:.3f} | {test[name]:.3f} |" for name in ("valence", "arousal") if name in dev]
    for setting, label in SETTING_LABELS.items():
        if setting in dev:
            rows += [
                f"| {trait}, {label} | {dev[setting][trait]:.3f} | {test[setting][trait]:.3f} |"
                for trait in TRAITS
                if trait in dev[setting]
            ]
    return rows
