"""The options of tables of runs, parsed. Each function raises ConfigError, naming the option and what is allowed."""

import math
from collections.abc import Sequence

from kibun.models.types import EMOTIONS, TRAITS
from kibun.training.corpora.lines import as_float
from kibun.training.corpora.tipi import SHORT_NAMES
from kibun.training.runs.config import ConfigError

SETTING_BY_NUMBER = {"1": "utterance", "2": "average", "3": "conversation"}


def as_words(text: str, option: str) -> list[str]:
    """Words separated by commas, none empty or repeated."""
    words = [word.strip() for word in text.split(",")]
    for word in words:
        if not word or words.count(word) > 1:
            raise ConfigError(f"{option}: {text!r}: write each value once, with commas between")
    return words


def check_words(words: Sequence[str], option: str, allowed: Sequence[str], fault: str = "unknown") -> None:
    """ConfigError for a word that the option does not allow. fault: what such a word "is"."""
    for word in words:
        if word not in allowed:
            raise ConfigError(f"{option}: {word!r} is {fault}; allowed are {', '.join(allowed)}")


def as_numbers(text: str, option: str) -> list[float]:
    """Finite numbers separated by commas, none repeated."""
    numbers: list[float] = []
    for word in as_words(text, option):
        number = as_float(word)
        if not math.isfinite(number) or number in numbers:
            raise ConfigError(f"{option}: {word!r} must be a number, and given once")
        numbers.append(number)
    return numbers


def as_seeds(text: str) -> list[int]:
    """Whole numbers from 0, none repeated."""
    words = as_words(text, "--seeds")
    for word in words:
        if not word.isdecimal():
            raise ConfigError(f"--seeds: {word!r} must be a whole number from 0")
    seeds = [int(word) for word in words]
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"--seeds: {text!r}: give each seed once")
    return seeds


def as_dimensions(text: str) -> list[str]:
    """Emotion dimensions in the order of EMOTIONS."""
    words = as_words(text, "--dimension")
    check_words(words, "--dimension", EMOTIONS)
    return [name for name in EMOTIONS if name in words]


def as_trait_sets(text: str) -> list[tuple[str, ...]]:
    """Sets of traits to condition on: "each" is five sets of one trait, "all" one set of five, a name that trait."""
    by_letters = {letters: trait for trait, letters in SHORT_NAMES.items()}
    sets: list[tuple[str, ...]] = []
    for word in as_words(text, "--traits"):
        trait = by_letters.get(word.upper(), word)
        if word == "each":
            sets += [(one,) for one in TRAITS]
        elif word == "all":
            sets.append(TRAITS)
        elif trait in TRAITS:
            sets.append((trait,))
        else:
            names = ", ".join(f"{letters} or {name}" for letters, name in by_letters.items())
            raise ConfigError(f"--traits: {word!r} is unknown; allowed are each, all, {names}")
    return list(dict.fromkeys(sets))


def as_settings(text: str | None, *, causal: bool) -> list[str]:
    """Settings of personality, keys of `table_personality.LABELS`; None: all of them, with causal 3."""
    if text is None:
        return [*SETTING_BY_NUMBER.values(), "causal"]
    words = as_words(text, "--setting")
    check_words(words, "--setting", tuple(SETTING_BY_NUMBER))
    if causal and "3" not in words:
        raise ConfigError("--causal is a form of setting 3: give --setting 3, or no --setting for all")
    return [*(SETTING_BY_NUMBER[word] for word in words), *(["causal"] if causal else [])]
