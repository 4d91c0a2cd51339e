"""Model cards of bundles made from other models: facts about the whole, then each part's own card."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kibun.models.files import NOT_STATED

if TYPE_CHECKING:
    from kibun.models.building.parts import Part
    from kibun.models.config import KibunConfig

DISCLAIMER = (
    "Traits are apparent, enacted personality as raters perceive it in speech; they are not a diagnosis, and no basis\n"
    "for a decision about anyone.\n"
)


def assembled_card(config: KibunConfig, parts: Sequence[Part], checksum: str, error_known: bool) -> str:
    """The card of a bundle assembled from runs, on one trunk with this checksum."""
    origin = f" from `{config.trunk_from}`" if config.trunk_from else ""
    return (
        f"{head(config, parts)}"
        f"- Assembled from: {', '.join(f'{part.task} of `{part.run}`' for part in parts)}\n"
        f"- Trunk{origin}: {config.trunk_layers} Transformer layers shared, {config.tail_layers} per task, bit-equal in"
        f" all parts, SHA-256 {checksum}\n"
        f"{facts_of(config, error_known)}\n"
        f"{part_cards(parts)}"
    )


def facts_of(config: KibunConfig, error_known: bool) -> str:
    """Lines on licence, input, scales and conditioning, from the configuration."""
    normalised = "zero mean and unit variance per utterance" if config.do_normalize else "as it is"
    lines = [f"- Licence of the weights: {config.license or NOT_STATED}"]
    lines += [f"- Input: 16 kHz mono, {normalised}", f"- Emotion: {describe_emotion(config)}"]
    if config.supports_personality:
        error = "of the personality part, measured on its held-out speakers" if error_known else "unknown"
        low, high = config.trait_scale
        lines.append(
            f"- Personality: {low:g}..{high:g}, per utterance and over the conversation; expected error {error}"
        )
    else:
        lines.append("- Personality: none")
    return "\n".join(lines) + "\n"


def describe_emotion(config: KibunConfig) -> str:
    """The emotion dimensions, their scale, the head, and what it is conditioned on."""
    if not config.emotions:
        return "none"
    low, high = config.emotion_scale
    text = f"{' and '.join(config.emotions)}, {low:g}..{high:g}, head {config.emotion_head}"
    if config.emotion_rescaled_from is not None:
        text += ", rescaled linearly from {:g}..{:g}".format(*config.emotion_rescaled_from)
    if config.conditioned:
        source = f", else {config.condition_source} traits" if config.supports_personality else " (required)"
        text += f", conditioned on {', '.join(config.condition_on)}: given traits{source}"
    return text


def part_cards(parts: Sequence[Part]) -> str:
    """The parts' own cards, a section for each run, with headings two levels down."""
    sections = []
    for folder in dict.fromkeys(part.folder for part in parts):
        those = [part for part in parts if part.folder == folder]
        title = " and ".join(part.task for part in those).capitalize()
        card = those[0].model.card or "This part came without a card.\n"
        sections.append(f"## {title}: from `{those[0].run}`\n\n{_demote(card)}")
    return "\n".join(sections)


def head(config: KibunConfig, parts: Sequence[Part]) -> str:
    """The title, the warnings and the disclaimer that a card begins with."""
    return f"# {config.bundle_name} (version {config.bundle_version})\n\n{_warnings(parts)}{DISCLAIMER}\n"


def _warnings(parts: Sequence[Part]) -> str:
    """Warnings of untrained and synthetic parts, which a reader must see first."""
    text = ""
    for untrue, which in (
        ("untrained: its estimates mean nothing", [part.task for part in parts if not part.config.trained]),
        (
            "trained on generated speech: it tells you nothing about real people",
            [part.task for part in parts if part.synthetic],
        ),
        (
            "trained on recordings, over a trunk that first learnt from generated speech",
            [part.task for part in parts if part.synthetic_trunk and not part.synthetic],
        ),
    ):
        if which:
            text += f"**{' and '.join(which).capitalize()}: {untrue}.**\n\n"
    return text


def _demote(card: str) -> str:
    """Move headings two levels down, so that a card fits into another; code blocks are left unchanged."""
    lines, code = [], False
    for line in card.rstrip().splitlines():
        code ^= line.lstrip().startswith("```")
        lines.append(f"##{line}" if line.startswith("#") and not code else line)
    return "\n".join(lines) + "\n"
