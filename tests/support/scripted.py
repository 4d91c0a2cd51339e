"""An analyzer and a VAD that do what a test wants, for sessions without models."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from kibun.models.types import Analysis
from kibun.server.inference.backend import Job, ModelInfo, Urgency

MODEL = ModelInfo("fake", "1", vector_size=2)
FRAME = 320


class LoudnessVad:
    """Whatever is loud is speech."""

    frame_samples = FRAME

    def decide(self, frames: np.ndarray) -> list[bool]:
        loud: list[bool] = (np.abs(frames).max(axis=1) > 0.1).tolist()
        return loud

    def reset(self) -> None:
        pass


class AliveBackend:
    """What a `Backend` of tests does besides `infer`: it is alive, and there is nothing to start or to stop."""

    costs: Sequence[tuple[float, float]] = ()

    async def start(self) -> tuple[ModelInfo, ...]:
        return (MODEL,)

    def down_s(self) -> float:
        return 0.0

    def ready(self) -> bool:
        return True

    async def drain(self) -> None: ...

    async def close(self) -> None: ...


@dataclass
class FakeAnalyzer:
    """Estimates follow audio and history. `before` runs ahead of each answer and may wait or raise."""

    before: Callable[[Job, bool], Any] | None = None
    full: bool = False
    stretch: float = 1.0
    alive: bool = True
    room: Literal["all", "running", "none"] = "all"  # who is admitted
    open: set[str] = field(default_factory=set)  # streams
    finals: int = 0
    running: int = 0
    most_running: int = 0
    deadlines_s: list[float] = field(default_factory=list)

    def ready(self) -> bool:
        return self.alive

    def admits(self, *, running: bool) -> bool:
        return self.room == "all" or (self.room == "running" and running)

    @contextmanager
    def stream(self, stream_id: str, *, running: bool = False) -> Iterator[None]:
        self.open.add(stream_id)
        try:
            yield
        finally:
            self.open.remove(stream_id)

    async def submit(self, job: Job, *, stream_id: str, urgency: Urgency, deadline_s: float) -> Analysis:
        final = urgency == "final"
        self.finals += final
        self.deadlines_s.append(deadline_s)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            waited = self.before(job, final) if self.before else asyncio.sleep(0)
            if waited is not None:
                await waited
        finally:
            self.running -= 1
        level = float(np.abs(job.utterance.audio).mean())
        so_far = float(np.mean([*job.utterance.history[:, 0], np.float16(level)], dtype=np.float64))
        traits, conversation = (1 + level, 4.0, 4.0, 4.0, 4.0), (1 + so_far, 4.0, 4.0, 4.0, 4.0)
        vector = np.array([level, len(job.utterance.history)], np.float16)
        return Analysis(
            vector, traits, conversation, conversation, conversation, "conversation", valence=3.0, arousal=1 + level
        )
