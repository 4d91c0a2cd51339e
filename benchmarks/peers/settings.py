"""What the benchmark tells a server: settings that its user would write into it."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass

SETTINGS = "PEERS_SETTINGS"  # environment: `Settings` as JSON
WORKERS = "PEERS_WORKERS"  # environment: a folder in which each process that loads the model leaves its id


@dataclass(frozen=True)
class Settings:
    """What a user of a framework would write into its server; the benchmark tries several."""

    workers: int = 2  # processes with a model each (of the plain server: threads that share one)
    threads: int = 1  # of one matrix product
    batch: int = 1  # utterances at most
    wait_s: float = 0.0  # for a batch to fill
    shed: float | None = None  # when load is turned away, in the framework's own unit; None: its default
    bundle: str = ""
    port: int = 0

    @classmethod
    def read(cls) -> Settings:
        """Those that the benchmark has put into the environment."""
        return cls(**json.loads(os.environ[SETTINGS]))
