"""Configurations of training runs for tests."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kibun.training.runs.config import RunConfig, Task, as_dict, from_dict


def tiny_run(world: Path, task: Task, dimension: str, settings: Mapping[str, Any]) -> RunConfig:
    """A run on `world`/corpus that starts from the tiny `world`/hubert, with these settings as of `changed`."""
    content: dict[str, Any] = {"manifest": "corpus/manifest.jsonl", "model": {"start": "hubert", "condition_ff": 32}}
    if task != "pr":
        content["dimension"] = dimension
    if task == "mtl":
        content["model"]["head"] = "baseline"
    return changed(from_dict(task, content, world), settings)


def changed(config: RunConfig, settings: Mapping[str, Any]) -> RunConfig:
    """A copy with some settings replaced, named as in the file: {"training.seed": 1, "model.head": "ca"}."""
    content = as_dict(config)
    for key, value in settings.items():
        section, _, field = key.rpartition(".")
        target = content.setdefault(section, {}) if section else content
        target[field] = value
    return from_dict(config.task, content, Path("/"))
