"""Labelled items, and models of runs over the tiny corpus."""

from pathlib import Path
from typing import Any

import numpy as np

from kibun.training.corpora.manifest import Item
from kibun.training.runs.config import Task
from kibun.training.runs.task_model import TaskModel, new_task_model
from kibun.training.runs.trait_source import Population
from tests.support.run_config import tiny_run


def items(profiles: int = 6, each: int = 3) -> list[Item]:
    rng = np.random.default_rng(0)
    return [
        Item(f"{p}-{u}", Path("x"), f"s{p}", f"d{p // 2}", "train" if p % 2 else "dev", traits=tuple(traits))
        for p, traits in enumerate(rng.uniform(1, 7, (profiles, 5)).tolist())
        for u in range(each)
    ]


def task_model(world: Path, task: Task, **changes: Any) -> TaskModel:
    return new_task_model(tiny_run(world, task, "arousal", changes), "x", Population())
