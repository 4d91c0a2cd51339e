"""What learnt from generated speech, in words, and where a configuration must not contradict itself."""

from typing import Any

import pytest

from kibun.models.config import KibunConfig
from kibun.models.provenance import describe
from tests.support.tiny_hubert import HUBERT

TASKS = ("personality", "valence", "arousal")


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ((), ""),
        (("trunk",), "trained on recordings, over a trunk that first learnt from generated speech"),
        (TASKS, "trained on generated speech: it tells you nothing about real people"),
        (("trunk", *TASKS), "trained on generated speech: it tells you nothing about real people"),
        (
            ("valence", "arousal"),
            "valence and arousal trained on generated speech, so tell you nothing about real people; personality"
            " trained on recordings",
        ),
    ],
)
def test_words(parts: tuple[str, ...], words: str) -> None:
    assert describe(TASKS, parts) == words


@pytest.mark.parametrize(
    ("settings", "synthetic", "parts"),
    [
        ({}, False, ()),
        ({"synthetic": True}, True, ("trunk", *TASKS)),
        ({"synthetic": True, "trunk_from": "facebook/hubert-base-ls960"}, True, TASKS),
        ({"synthetic_parts": ["trunk"]}, False, ("trunk",)),
        ({"synthetic_parts": ["valence"]}, True, ("valence",)),
    ],
)
def test_the_mark_follows_from_the_parts(settings: dict[str, Any], synthetic: bool, parts: tuple[str, ...]) -> None:
    config = KibunConfig(hubert=HUBERT, **settings)
    assert (config.synthetic, config.synthetic_parts) == (synthetic, parts)
    again = KibunConfig.from_dict(config.to_dict())
    assert (again.synthetic, again.synthetic_parts) == (synthetic, parts)


@pytest.mark.parametrize(
    "settings",
    [
        {"synthetic": True, "synthetic_parts": []},
        {"synthetic": True, "synthetic_parts": ["trunk"]},
        {"synthetic_parts": ["personality"], "tasks": ["valence"]},
        {"synthetic_parts": ["head"]},
    ],
)
def test_a_mark_without_a_part_or_a_part_that_is_none_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"synthetic_parts is \["):
        KibunConfig(hubert=HUBERT, **settings)
