"""What a turn costs late in a conversation, and how much memory a conversation takes.

All is real but gRPC: a session with its voice activity detector, the batcher, a worker process, the store. One speaker
repeats the same utterance; turns late and early in a conversation take turns, so that noise meets both. Compared
with the naive way, which keeps audio and encodes all of it anew at every turn.
"""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import itertools
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from kibun.bench.support import machine
from kibun.bench.support.bare import base_size
from kibun.bench.support.report import Report
from kibun.bench.support.speech_like import speech_like
from kibun.bench.support.timing import interleaved
from kibun.models.files import resolve_bundle
from kibun.models.model import KibunModel
from kibun.models.types import SAMPLE_RATE_HZ, Analysis
from kibun.server.audio.decoder import AudioFormat
from kibun.server.audio.endpointing import EndpointingOptions
from kibun.server.audio.vad import make_vad
from kibun.server.conversation.state import Conversation
from kibun.server.conversation.store import MemoryStore
from kibun.server.inference.backend import Backend, Job, ModelInfo, Urgency
from kibun.server.inference.batcher import Batcher
from kibun.server.inference.worker_pool import LocalBackend
from kibun.server.session.events import Audio, Limits, Request, StreamOptions, UtteranceResult
from kibun.server.session.open_streams import OpenStreams
from kibun.server.session.session import Dependencies, Session
from kibun.training.evaluation.report_table import Cell, Row, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KEY = ("", "conversation")
SPEAKER = "speaker"
UTTERANCES = 100  # of the conversation whose memory is measured
TURN_S, SHORT_S = 2.0, 0.6  # of speech in a timed turn, and in one that only fills the conversation
TURNS = (1, 10, 50, 100, 200, 512)


@dataclass(frozen=True)
class ConversationFigures:
    """One model. Times are seconds per round, by number of the turn: all of it, and the part until the worker answered.

    heads: milliseconds of the personality heads over the turn's own vector and all earlier ones, in this process.
    """

    name: str
    turns: dict[int, list[float]]
    estimating: dict[int, list[float]]
    heads: dict[int, float]
    vector_size: int
    conversation_bytes: int
    conversation_counted: int
    utterance_s: float  # what was analysed of a timed turn

    def over_first(self, turn: int) -> float:
        """Cost of this turn over that of the first: median over the rounds of the quotient in that round."""
        return statistics.median(late / first for late, first in zip(self.turns[turn], self.turns[1], strict=True))

    def naive_over_first(self, turn: int) -> float:
        """The same where all earlier utterances are encoded anew; counted from the measured time of one."""
        first, once = statistics.median(self.turns[1]), statistics.median(self.estimating[1])
        return (first + (turn - 1) * once) / first


class _Timed(Batcher):
    """The batcher; `seconds` is how long its last answer took."""

    seconds = 0.0

    async def submit(self, job: Job, *, stream_id: str, urgency: Urgency, deadline_s: float) -> Analysis:
        begin = time.perf_counter()
        result = await super().submit(job, stream_id=stream_id, urgency=urgency, deadline_s=deadline_s)
        self.seconds = time.perf_counter() - begin
        return result


class ConversationDriver:
    """Speaks one utterance after the other to sessions of one store."""

    def __init__(self, model: ModelInfo, backend: Backend) -> None:
        self.model, self.analyzer = model, _Timed(backend)
        self.store = MemoryStore()
        self._numbers = itertools.count()
        self._dependencies = Dependencies(
            analyzer=self.analyzer,
            store=self.store,
            open_streams=OpenStreams(),
            make_vad=lambda aggressiveness: make_vad("silero", aggressiveness),
            new_turn_id=lambda: f"turn-{next(self._numbers)}",
            limits=Limits(),
        )

    async def turn(self, pcm: bytes, known: Conversation | None = None) -> UtteranceResult:
        """One stream of one turn, after what is known; its final."""
        if known is not None:
            await self.store.update(KEY, lambda _: known)
        options = StreamOptions(
            *("", KEY[1], SPEAKER, f"turn-{next(self._numbers)}", self.model.name),
            AudioFormat("linear16", SAMPLE_RATE_HZ),
            EndpointingOptions(),
        )
        session = Session("benchmark", options, self.model, self._dependencies)
        async with aclosing(session.run(_all_at_once(pcm))) as replies:
            events = [reply.event async for reply in replies]
        (final,) = (event for event in events if isinstance(event, UtteranceResult) and event.is_final)
        return final

    async def conversation(self) -> Conversation:
        """As the store has it."""
        found = await self.store.get(KEY)
        assert found is not None
        return found


async def _all_at_once(pcm: bytes) -> AsyncIterator[Request]:
    yield Audio(pcm)


def measure(*, quick: bool) -> Report:
    """Measure HuBERT-base's size with random weights, and demo-tiny, whose encoder hides least."""
    with tempfile.TemporaryDirectory() as folder:
        base = str(Path(folder) / "base")
        base_size(base)
        results = [
            _measure("hubert-base, random", base, (1, 100, 512) if quick else TURNS, rounds=5 if quick else 15),
            _measure("demo-tiny", str(resolve_bundle("demo-tiny")), TURNS, rounds=40 if quick else 150),
        ]
    sizes = {result.name: _as_json(result) for result in results}
    payload: dict[str, Any] = {"machine": machine.describe(), **sizes[results[0].name], "models": sizes}
    return Report(payload, tuple(map(_table, results)), lambda: _draw(results))


def _as_json(measured: ConversationFigures) -> dict[str, Any]:
    return {
        "turn100_over_turn1": measured.over_first(100),
        "naive_turn100_over_turn1": measured.naive_over_first(100),
        "bytes_per_conversation": measured.conversation_bytes,
        "bytes_counted": measured.conversation_counted,
        "utterances_in_it": UTTERANCES,
        "utterance_s": measured.utterance_s,
        "turns": {
            str(turn): {
                "ms": 1000 * statistics.median(times),
                "over_turn1": measured.over_first(turn),
                "naive_over_turn1": measured.naive_over_first(turn),
                "estimating_ms": 1000 * statistics.median(measured.estimating[turn]),
                "heads_ms": measured.heads[turn],
                "session_ms": 1000 * _rest(measured, turn),
            }
            for turn, times in measured.turns.items()
        },
    }


def _rest(measured: ConversationFigures, turn: int) -> float:
    """Seconds of a turn outside the estimates: voice activity, session, store."""
    pairs = zip(measured.turns[turn], measured.estimating[turn], strict=True)
    return statistics.median(whole - part for whole, part in pairs)


def _measure(name: str, bundle: str, turns: Sequence[int], rounds: int) -> ConversationFigures:
    with asyncio.Runner() as runner:
        backend = LocalBackend([bundle], device="cpu", threads=1, allow_untrained=True)
        try:
            (model,) = runner.run(backend.start())
            speaker = ConversationDriver(model, backend)
            size, counted = runner.run(measure_memory(speaker))
            conversation = runner.run(speaker.conversation())
            known = {turn: with_records(conversation, turn - 1) for turn in turns}
            estimating: dict[int, list[float]] = {turn: [] for turn in turns}
            pcm, spoken = pcm_of(TURN_S), 0

            def timed(turn: int) -> None:
                nonlocal spoken
                spoken = runner.run(speaker.turn(pcm, known[turn])).analyzed
                estimating[turn].append(speaker.analyzer.seconds)

            times = interleaved({str(turn): lambda turn=turn: timed(turn) for turn in turns}, rounds)  # type: ignore[misc]
        finally:
            runner.run(backend.close())
    return ConversationFigures(
        name,
        turns={turn: times[str(turn)] for turn in turns},
        estimating={turn: seconds[1:] for turn, seconds in estimating.items()},  # without the call that does not count
        heads=_heads(bundle, turns),
        vector_size=model.vector_size,
        conversation_bytes=size,
        conversation_counted=counted,
        utterance_s=spoken / SAMPLE_RATE_HZ,
    )


def pcm_of(seconds: float) -> bytes:
    return np.round(32767 * speech_like(seconds)).astype("<i2").tobytes()


async def measure_memory(speaker: ConversationDriver) -> tuple[int, int]:
    """Measures a conversation of UTTERANCES utterances: (bytes freed when it is deleted, bytes of its vectors).

    A conversation is in the store again afterwards.
    """
    pcm = pcm_of(SHORT_S)
    await speaker.turn(pcm)  # what is allocated once is no conversation's
    await speaker.store.delete(KEY)
    tracemalloc.start()
    try:
        for _ in range(UTTERANCES):
            await speaker.turn(pcm)
        await _let_go()
        with_it, _ = tracemalloc.get_traced_memory()
        await speaker.store.delete(KEY)
        await _let_go()
        without, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    for _ in range(2):
        await speaker.turn(pcm)
    return with_it - without, UTTERANCES * speaker.model.vector_size * 2


async def _let_go() -> None:
    """Waits for the end of the last session, which still refers to the conversation."""
    await asyncio.sleep(0.05)
    gc.collect()


def with_records(conversation: Conversation, count: int) -> Conversation:
    """The conversation with `count` utterances, of random vectors."""
    participant = conversation.participant(SPEAKER)
    rng = np.random.default_rng(0)
    like = participant.records[0]
    assert like.vector is not None
    records = tuple(
        dataclasses.replace(
            like,
            utterance_id=f"{SPEAKER}:earlier-{number}:0",
            turn_id=f"earlier-{number}",
            vector=rng.normal(0, 0.3, like.vector.shape).astype(np.float16),
        )
        for number in range(count)
    )
    finished = tuple(record.turn_id for record in records)
    return conversation.with_participant(
        dataclasses.replace(participant, records=records, finished_turns=finished, revision=count)
    )


@torch.inference_mode()
def _heads(bundle: str, turns: Sequence[int]) -> dict[int, float]:
    """Milliseconds of settings 1 to 3 over each turn's vectors, one thread."""
    torch.set_num_threads(1)
    model = KibunModel.from_pretrained(bundle)
    vectors = torch.randn(max(turns), model.vector_size)

    def run(turn: int) -> None:
        model.utterance_traits(vectors[:turn])
        model.conversation_traits(vectors[None, :turn])

    times = interleaved({str(turn): lambda turn=turn: run(turn) for turn in turns}, rounds=20)  # type: ignore[misc]
    return {turn: 1000 * statistics.median(times[str(turn)]) for turn in turns}


def _table(measured: ConversationFigures) -> Table:
    rows = tuple(
        Row(
            f"turn {turn}",
            (
                Cell(1000 * statistics.median(times)),
                Cell(measured.over_first(turn)),
                Cell(measured.naive_over_first(turn)),
                Cell(1000 * statistics.median(measured.estimating[turn])),
                Cell(measured.heads[turn]),
                Cell(1000 * _rest(measured, turn)),
            ),
        )
        for turn, times in measured.turns.items()
    )
    vectors = measured.conversation_counted
    return Table(
        f"A turn of {measured.utterance_s:.1f} s of speech, {measured.name}",
        (
            *("", "ms", "times turn 1", "encoding all anew, times turn 1", "until the worker's answer, ms"),
            *("of it personality heads, ms", "session and store, ms"),
        ),
        rows,
        (
            f"A conversation of {UTTERANCES} utterances holds {measured.conversation_bytes:,} bytes:"
            f" {measured.conversation_bytes / UTTERANCES:,.0f} an utterance, of which its vector has"
            f" {vectors / UTTERANCES:,.0f} ({measured.vector_size} float16). No audio is kept.",
            "Encoding all anew is counted: one utterance's measured time for each earlier utterance.",
            "The heads were timed by themselves, in this process.",
        ),
        digits=3,
    )


def _draw(results: Sequence[ConversationFigures]) -> Figure:
    """Cost of a turn over the first one's, against its number."""
    from kibun.training.evaluation.plots import COLOURS, MARKERS, canvas, legend_below

    drawn, axes = canvas((7.2, 5.4))
    for number, result in enumerate(results):
        turns = list(result.turns)
        look: Any = {"color": COLOURS[number], "marker": MARKERS[number], "linewidth": 1.8, "markersize": 7}
        axes.plot(turns, [result.over_first(turn) for turn in turns], label=result.name, **look)
    naive = results[-1]
    axes.plot(
        list(naive.turns),
        [naive.naive_over_first(turn) for turn in naive.turns],
        color="black",
        linestyle="--",
        linewidth=1.8,
        label=f"encoding all anew ({naive.name}, counted): {naive.naive_over_first(100):.0f} at turn 100",
    )
    axes.axhline(1.05, color=COLOURS[5], linewidth=1.2, linestyle=":", label="target at turn 100: 1.05")
    axes.set_xscale("log")
    axes.set_xticks(list(naive.turns), [str(turn) for turn in naive.turns])
    axes.minorticks_off()
    axes.set(xlabel="turn of the conversation", ylabel="time of a turn over that of the first", ylim=(0.9, 1.7))
    axes.set_title("What a turn costs late in a conversation", loc="left")
    legend_below(drawn, columns=1)
    return drawn
