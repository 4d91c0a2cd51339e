"""People who speak, and a machine of known speed, in virtual time; queue and admission between them are the real ones.

Lengths are seconds. A crowd is what a random seed says, so two runs differ only in what is compared.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from kibun.bench.support import virtual_time
from kibun.models.types import SAMPLE_RATE_HZ, Analysis, Utterance
from kibun.server.inference.backend import Job, ModelInfo, Outcomes, Superseded, Urgency
from kibun.server.inference.batcher import Batcher
from kibun.server.inference.runner import WARM_UP_S

MODEL = ModelInfo("simulated", "1", 4)
NO_HISTORY = np.zeros((0, 4), np.float16)
SILENCE = np.zeros(15 * SAMPLE_RATE_HZ, np.float32)
RETRY_S = 1.0  # after which a turn that was refused is tried again, once
ANSWER_S = 1.0  # between an utterance and that of the other speaker, on average


def draw_length(rng: np.random.Generator) -> float:
    """Seconds of an utterance, 0.8 to 15: most are short, some are long."""
    return float(np.clip(rng.lognormal(np.log(2.5), 0.6), 0.8, 15.0))


MEAN_S = float(np.mean([draw_length(np.random.default_rng(seed)) for seed in range(2000)]))


@dataclass
class Machine:
    """A `Backend` whose batches take `per_audio_s * audio + per_batch_s` seconds, give or take a tenth."""

    per_audio_s: float
    per_batch_s: float
    slots: int
    batch_s: float = 30.0
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(5))
    batches: list[tuple[float, list[Job]]] = field(default_factory=list)  # when they began
    running: list[Job] = field(default_factory=list)
    most_interims: int = 0  # batches of interims at once

    @property
    def speech_rate(self) -> float:
        """Seconds of speech per second that just saturate it, in batches where those pay."""
        audio_s = max(MEAN_S, min(self.batch_s, self.per_batch_s / self.per_audio_s))
        return self.slots / (self.per_audio_s + self.per_batch_s / audio_s)

    @property
    def final_takes_s(self) -> float:
        """Seconds that a final of mean length takes, alone."""
        return self.per_audio_s * MEAN_S + self.per_batch_s

    @property
    def costs(self) -> tuple[tuple[float, float], ...]:
        return tuple((audio_s, self.per_audio_s * audio_s + self.per_batch_s) for audio_s in WARM_UP_S)

    @property
    def finals_per_batch(self) -> float:
        return float(np.mean([len(jobs) for _, jobs in self.batches if jobs[0].model == "final"]))

    async def infer(self, jobs: Sequence[Job]) -> Outcomes:
        took_s = self.per_audio_s * sum(job.utterance.seconds for job in jobs) + self.per_batch_s
        took_s *= float(np.exp(0.1 * self.rng.standard_normal()))
        self.batches.append((asyncio.get_running_loop().time(), list(jobs)))
        self.running.append(jobs[0])
        assert len(self.running) <= self.slots
        assert len({job.model for job in jobs}) == 1, "finals and interims do not mix"
        self.most_interims = max(self.most_interims, sum(job.model == "interim" for job in self.running))
        await asyncio.sleep(took_s)
        self.running.remove(jobs[0])
        return Outcomes([Analysis(NO_HISTORY[0:0])] * len(jobs))

    async def start(self) -> tuple[ModelInfo, ...]:
        return (MODEL,)

    def ready(self) -> bool:
        return True

    def down_s(self) -> float:
        return 0.0

    async def drain(self) -> None: ...

    async def close(self) -> None: ...


@dataclass(frozen=True)
class People:
    """Who comes. Conversations arrive at random; each turn is a stream of one utterance."""

    load: float  # of the machine, if everyone were admitted
    seconds: float  # for which they come
    pause_s: float = 0.0  # of silence in a stream before its speech, on average; evenly spread from 0 to twice this
    turns: float = 1.0  # of a conversation, on average; the other speaker's lie between them
    interims: bool = False  # asked for at 1 s, 2 s, …
    ramp_s: float = 15.0  # finals submitted before are not counted: the machine was empty


@dataclass
class Turnout:
    """What happened. Latencies in seconds, of finals submitted while people came, but for the crowd's `ramp_s`."""

    counted_s: float
    offered: int = 0  # conversations
    refused: int = 0
    turns: int = 0  # that continue a conversation
    turns_refused: int = 0  # at their first try, …
    turns_lost: int = 0  # … and at their second
    streams: int = 0  # admitted
    answered: int = 0  # finals; each admitted stream is to get one
    latencies: list[float] = field(default_factory=list)
    interims_due: int = 0
    interims: int = 0

    @property
    def finals_per_s(self) -> float:
        return len(self.latencies) / self.counted_s

    @property
    def refused_share(self) -> float:
        return self.refused / self.offered

    @property
    def lost(self) -> int:
        """Admitted streams without a final."""
        return self.streams - self.answered

    @property
    def p95(self) -> float:
        return float(np.quantile(self.latencies, 0.95))


def simulate(machine: Machine, crowd: People, *, target_delay_s: float | None = None, seed: int = 1) -> Turnout:
    """What happens to a crowd. target_delay_s: as of `Batcher`."""

    async def run() -> Turnout:
        batcher = Batcher(machine, clock=asyncio.get_running_loop().time, target_delay_s=target_delay_s)
        batcher.learn_costs()
        return await _World(machine, batcher, crowd, np.random.default_rng(seed)).run()

    return virtual_time.run(run())


class _World:
    """A crowd in front of a batcher."""

    def __init__(self, machine: Machine, batcher: Batcher, crowd: People, rng: np.random.Generator) -> None:
        self._machine, self._batcher, self._crowd, self._rng = machine, batcher, crowd, rng
        self._loop = asyncio.get_running_loop()
        self._seen = Turnout(crowd.seconds - crowd.ramp_s)

    async def run(self) -> Turnout:
        crowd, rng = self._crowd, self._rng
        apart_s = MEAN_S * crowd.turns / (crowd.load * self._machine.speech_rate)
        conversations = []
        while self._loop.time() < crowd.seconds:
            await asyncio.sleep(rng.exponential(apart_s))
            conversations.append(asyncio.create_task(self._converse(np.random.default_rng(rng.integers(2**32)))))
        await asyncio.gather(*conversations)
        assert self._batcher.queued == 0
        return self._seen

    async def _converse(self, rng: np.random.Generator) -> None:
        """One participant, turn by turn, if the first is admitted; what they say does not depend on what is refused."""
        seen = self._seen
        seen.offered += 1
        stream_id = str(seen.offered)
        for turn in range(rng.geometric(1 / self._crowd.turns)):
            length_s, pause_s = draw_length(rng), rng.uniform(0, 2 * self._crowd.pause_s)
            if turn == 0:
                if not self._batcher.admits(running=False):
                    seen.refused += 1
                    return
            elif not await self._next_turn(draw_length(rng) + rng.exponential(2 * ANSWER_S)):
                continue
            await self._speak(f"{stream_id}.{turn}", length_s, pause_s, running=turn > 0)

    async def _next_turn(self, away_s: float) -> bool:
        """After the other speaker's turn, whether the next one is admitted, at once or when tried again."""
        await asyncio.sleep(away_s)
        if self._loop.time() > self._crowd.seconds:
            return False
        self._seen.turns += 1
        if self._batcher.admits(running=True):
            return True
        self._seen.turns_refused += 1
        await asyncio.sleep(RETRY_S)
        admitted = self._batcher.admits(running=True)
        self._seen.turns_lost += not admitted
        return admitted

    async def _speak(self, stream_id: str, length_s: float, pause_s: float, *, running: bool) -> None:
        """A stream: a pause, an utterance, and its final awaited."""
        seen, batcher, loop = self._seen, self._batcher, self._loop
        seen.streams += 1
        with batcher.stream(stream_id, running=running):
            await asyncio.sleep(pause_s)
            asked, spoken_s, due_s = [], 0.0, 1.0
            while self._crowd.interims and due_s < length_s:
                await asyncio.sleep(due_s - spoken_s)
                seen.interims_due += 1
                if not batcher.full:
                    asked.append(asyncio.create_task(self._submit(stream_id, due_s, "interim")))
                spoken_s, due_s = due_s, due_s * (1 + batcher.stretch)
            await asyncio.sleep(length_s - spoken_s)
            began = loop.time()
            await self._submit(stream_id, length_s, "final")
            seen.answered += 1
            if self._crowd.ramp_s < began < self._crowd.seconds:
                seen.latencies.append(loop.time() - began)
            outcomes = await asyncio.gather(*asked, return_exceptions=True)
            assert all(isinstance(outcome, (Analysis, Superseded)) for outcome in outcomes)
            seen.interims += sum(isinstance(outcome, Analysis) for outcome in outcomes)

    async def _submit(self, stream_id: str, spoken_s: float, urgency: Urgency) -> Analysis:
        utterance = Utterance(SILENCE[: int(spoken_s * SAMPLE_RATE_HZ)], NO_HISTORY)
        deadline_s = 1.0 if urgency == "final" else 2.0
        job = Job(urgency, utterance)
        return await self._batcher.submit(job, stream_id=stream_id, urgency=urgency, deadline_s=deadline_s)
