"""Configurations of training runs for tests."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kibun.training.runs.config import RunConfig, as_dict, from_dict


def changed(config: RunConfig, settings: Mapping[str, Any]) -> RunConfig:
    """A copy with some settings replaced, named as in the file: {"training.seed": 1, "model.head": "ca"}."""
    content = as_dict(config)
    for key, value in settings.items():
        section, _, field = key.rpartition(".")
        target = content.setdefault(section, {}) if section else content
        target[field] = value
    return from_dict(config.task, content, Path("/"))
