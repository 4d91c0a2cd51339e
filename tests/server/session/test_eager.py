"""Eager finals: analysed in the silence that may end an utterance, and the same as those that are not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kibun.models.types import SAMPLE_RATE_HZ
from kibun.server.audio.endpointing import EndpointingOptions
from kibun.server.conversation.store import MemoryStore
from kibun.server.inference.backend import BackendError, Job, Outcomes, Superseded
from kibun.server.inference.batcher import Batcher
from kibun.server.inference.cost import CostModel
from kibun.server.session.events import (
    Audio,
    EndOfTurn,
    PersonalityUpdate,
    Reply,
    Request,
    StreamEnded,
    TurnResult,
    UtteranceResult,
)
from kibun.server.session.open_streams import OpenStreams
from tests.support.scripted import MODEL, AliveBackend, FakeAnalyzer
from tests.support.session_world import (
    OpenSession,
    SessionWorld,
    events,
    finals,
    in_blocks,
    interims,
    let_others_run,
    pcm,
    run_on,
)

# A coroutine that was made and never run shows only as a warning.
pytestmark = pytest.mark.filterwarnings("error")

MS = SAMPLE_RATE_HZ // 1000
#: Silence of 300 ms ends an utterance; its audio is complete after 100.
PATIENT = EndpointingOptions(
    min_speech_ms=40, utterance_end_silence_ms=300, pre_roll_ms=40, hang_over_ms=100, max_utterance_ms=20_000
)
SPOKEN = pcm((0.5, 0.5), (0, 0.2))  # an utterance, and of the silence after it what an eager final needs
ENDED = pcm((0, 0.2))  # the rest of it


class ComputingBackend(AliveBackend):
    """Computes what a FakeAnalyzer does; keeps what it was asked for. Waits for `gate`."""

    slots, batch_s = 2, 0.0

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.fails: list[BackendError] = []  # the first of which the next job gets

    @property
    def lengths_ms(self) -> list[int]:
        return [job.utterance.audio.size // MS for job in self.jobs]

    async def infer(self, jobs: Sequence[Job]) -> Outcomes:
        self.jobs += jobs
        await self.gate.wait()
        if self.fails:
            return Outcomes([self.fails.pop(0) for _ in jobs])
        fake = FakeAnalyzer()
        answers = [await fake.submit(job, stream_id="", urgency="final", deadline_s=0) for job in jobs]
        return Outcomes(answers, 1e-3)


class World(SessionWorld):
    """Sessions in front of the real batcher."""

    def __init__(self, **parts: Any) -> None:
        self.backend = ComputingBackend()
        # However slow the machine that tests: a batch that takes longer than expected does not make the batcher full.
        self.batcher = Batcher(self.backend, cost=CostModel(per_audio_s=1e-3), target_delay_s=60.0)
        super().__init__(analyzer=self.batcher, **parts)  # type: ignore[arg-type]

    def stream(self, **options: Any) -> OpenSession:
        return OpenSession(self.session(**{"endpointing": PATIENT, "eager": True, **options}))


async def send(stream: OpenSession, *payloads: bytes) -> None:
    """In blocks of 100 ms, as a client that speaks."""
    for payload in payloads:
        for block in in_blocks(payload):
            stream.send(block)
            await let_others_run()


async def test_the_final_is_at_hand_when_the_utterance_ends() -> None:
    world = World()
    async with world.stream() as stream:
        await send(stream, SPOKEN)
        assert world.backend.lengths_ms == [600], "speech and hang-over"
        world.backend.gate.clear()  # nothing more is computed
        await send(stream, ENDED)
        async with asyncio.timeout(5):
            update = await stream.until(PersonalityUpdate)
        assert update.personality.utterance_count == 1
        stream.send(None)
        replies = await stream.rest()
    assert len(world.backend.jobs) == 1
    assert not finals(replies)


@pytest.mark.parametrize("end", [EndOfTurn(), None], ids=["end_of_turn", "half_close"])
async def test_the_client_that_ends_its_turn_in_the_silence_finds_the_final_at_hand(end: EndOfTurn | None) -> None:
    world = World()
    async with world.stream() as stream:
        await send(stream, SPOKEN)
        world.backend.gate.clear()
        stream.send(end)
        async with asyncio.timeout(5):
            result = await stream.until(TurnResult)
        assert result.utterance_count == 1
        stream.send(None)
        await stream.rest()
    assert len(world.backend.jobs) == 1


async def test_a_turn_that_ends_before_the_hang_over_is_computed_then() -> None:
    world = World()
    async with world.stream() as stream:
        await send(stream, pcm((0.5, 0.5), (0, 0.05)))
        assert not world.backend.jobs
        stream.send(None)
        (final,) = finals(await stream.rest())
    assert final.end - final.start == 550 * MS
    assert world.backend.lengths_ms == [550]


@pytest.mark.parametrize("wanted", [True, False], ids=["interims", "finals alone"])
async def test_who_speaks_on_gets_an_interim_if_interims_are_wanted(wanted: bool) -> None:
    world = World()
    async with world.stream(interims=wanted) as stream:
        await send(stream, SPOKEN, SPOKEN, ENDED)
        stream.send(None)
        replies = await stream.rest()
    assert world.backend.lengths_ms == [600, 1300], "the second is the final"
    (final,) = finals(replies)
    assert (final.end - final.start, final.covers_speech_so_far) == (1300 * MS, False)
    sent = [(u.end - u.start, u.covers_speech_so_far) for u in interims(replies)]
    assert sent == ([(600 * MS, True), (1300 * MS, True)] if wanted else [])
    if wanted:
        last = interims(replies)[-1]
        assert last == replace(final, is_final=False, reason=None, covers_speech_so_far=True), "to the bit"


async def test_an_interim_answered_after_speech_went_on_does_not_cover_it() -> None:
    world = World()
    world.backend.gate.clear()
    async with world.stream(interims=True) as stream:
        await send(stream, SPOKEN, pcm((0.5, 0.2)))
        world.backend.gate.set()
        await let_others_run()
        await send(stream, pcm((0, 0.4)))
        stream.send(None)
        replies = await stream.rest()
    assert [u.covers_speech_so_far for u in interims(replies)] == [False, True]
    assert len(finals(replies)) == 1


async def test_no_interim_of_an_eager_estimate_comes_after_a_newer_one_or_the_final() -> None:
    world = World()
    answers, held = world.backend.infer, asyncio.Event()

    async def infer(jobs: Sequence[Job]) -> Outcomes:
        is_first = not world.backend.jobs
        outcomes = await answers(jobs)
        if is_first:
            await held.wait()
        return outcomes

    world.backend.infer = infer  # type: ignore[method-assign]
    async with world.stream(interims=True) as stream:
        await send(stream, SPOKEN, SPOKEN, ENDED)
        held.set()  # the other slot has answered all that was asked after it
        await let_others_run()
        stream.send(None)
        replies = await stream.rest()
    results = [(u.is_final, (u.end - u.start) // MS) for u in events(replies, UtteranceResult)]
    assert results == [(False, 1300), (True, 1300)]


async def test_an_eager_estimate_takes_the_place_of_the_interims_until_it_is_two_and_a_half_times_as_long() -> None:
    world = World()
    async with world.stream(interims=True) as stream:
        await send(stream, SPOKEN, pcm((0.5, 1.0)))
        stream.send(None)
        replies = await stream.rest()
    assert [(u.end - u.start) // MS for u in interims(replies)] == [600, 1500]


@pytest.mark.parametrize("wanted", [True, False], ids=["interims", "finals alone"])
async def test_all_estimates_of_a_stream_cost_less_than_three_times_its_finals_and_four_seconds(wanted: bool) -> None:
    world = World()
    hesitant = [pcm((0.5, 0.2), (0, 0.2))] * 20
    async with world.stream(interims=wanted) as stream:
        for _ in range(3):
            await send(stream, *hesitant, ENDED)
        stream.send(None)
        spoken_ms = sum(final.end - final.start for final in finals(await stream.rest())) // MS
    lengths = world.backend.lengths_ms
    assert len(lengths) > 12, "a speaker who hesitates is estimated often"
    assert 2.5 * spoken_ms < sum(lengths) < 3 * spoken_ms + 4_000, "…, as often as may be"


async def test_an_interim_shortly_before_the_end_does_not_keep_the_final_from_being_eager() -> None:
    world = World()
    async with world.stream(interims=True) as stream:
        await send(stream, pcm((0.5, 2.6), (0, 0.2)))
        assert world.backend.lengths_ms == [1000, 2500, 2700]
        world.backend.gate.clear()
        await send(stream, ENDED)
        async with asyncio.timeout(5):
            await stream.until(PersonalityUpdate)


async def test_what_another_stream_of_the_participant_said_meanwhile_counts() -> None:
    world = World()
    async with world.stream() as stream, world.stream(turn_id="t2") as other:
        await send(other, pcm((0.9, 0.5)))
        await send(stream, SPOKEN)
        assert len(world.backend.jobs) == 1
        other.send(None)
        await other.until(StreamEnded)
        await send(stream, ENDED)
        update = await stream.until(PersonalityUpdate)
        assert update.personality.utterance_count == 2
    histories = [len(job.utterance.history) for job in world.backend.jobs]
    assert histories == [0, 0, 1], "the eager one, the other's, the final"


async def test_an_eager_final_waits_for_the_participants_earlier_streams() -> None:
    world = World()
    async with world.stream(turn_id="t1") as first, world.stream(turn_id="t2") as second:
        world.backend.gate.clear()
        first.send(Audio(pcm((0.9, 0.5))), None)
        await let_others_run()
        await send(second, SPOKEN)
        assert len(world.backend.jobs) == 1, "the first one's final"
        world.backend.gate.set()
        await first.rest()
        await let_others_run()
        assert [len(job.utterance.history) for job in world.backend.jobs] == [0, 1]
        await send(second, ENDED)
        await second.until(PersonalityUpdate)
    assert len(world.backend.jobs) == 2


@pytest.mark.parametrize("switch", ["off", "full", "too short"])
async def test_no_eager_work(switch: str) -> None:
    analyzer = FakeAnalyzer(full=switch == "full")
    world = SessionWorld(analyzer)
    model = replace(MODEL, min_samples=20_000) if switch == "too short" else MODEL
    session = world.session(model=model, endpointing=PATIENT, eager=switch != "off")
    async with OpenSession(session) as stream:
        await send(stream, SPOKEN)
        assert not analyzer.deadlines_s
        await send(stream, ENDED)
        stream.send(None)
        assert len(finals(await stream.rest())) == 1


async def test_while_a_final_waits_there_is_no_eager_work_and_then_there_is() -> None:
    world = World()
    async with world.stream(endpointing=replace(PATIENT, utterance_end_silence_ms=1000)) as stream:
        world.backend.gate.clear()
        await send(stream, pcm((0.9, 0.5), (0, 1.1)))  # its eager final is at work
        await send(stream, SPOKEN)
        assert len(world.backend.jobs) == 1
        world.backend.gate.set()
        await stream.until(PersonalityUpdate)
        await send(stream, pcm((0, 0.2)))
        assert [len(job.utterance.history) for job in world.backend.jobs] == [0, 1]


@pytest.mark.parametrize("error", [BackendError("WORKER_FAILED", "died"), BackendError("MODEL_NONFINITE", "nan")])
async def test_eager_work_that_fails_is_done_again_for_the_final(error: BackendError) -> None:
    world = World()
    world.backend.fails.append(error)
    async with world.stream() as stream:
        await send(stream, SPOKEN, ENDED)
        stream.send(None)
        (final,) = finals(await stream.rest())
    assert final.emotion is not None
    assert len(world.backend.jobs) == 2


@pytest.mark.parametrize("then", ["ends", "goes on"])
async def test_eager_work_that_fails_is_counted_once(then: str) -> None:
    world = World()
    world.backend.fails.append(BackendError("WORKER_FAILED", "died"))
    session = world.session(endpointing=PATIENT, eager=True)
    async with OpenSession(session) as stream:
        await send(stream, SPOKEN, *([SPOKEN] if then == "goes on" else []), ENDED)
        stream.send(None)
        assert len(finals(await stream.rest())) == 1
    families = session._telemetry._metrics.registry.collect()
    counted = {
        s.labels["outcome"]: s.value for f in families for s in f.samples if s.name == "kibun_eager_finals_total"
    }
    assert counted == {"dropped": 1, "spoken_on": 0, "recomputed": 0, "final": 1 if then == "goes on" else 0}


async def test_eager_work_that_the_queue_gives_up_is_done_for_the_final() -> None:
    def refuse(job: Job, final: bool) -> None:
        if not final:
            raise Superseded

    async with OpenSession(SessionWorld(FakeAnalyzer(refuse)).session(endpointing=PATIENT)) as stream:
        await send(stream, SPOKEN, ENDED)
        stream.send(None)
        assert len(finals(await stream.rest())) == 1


async def test_an_unexpected_exception_in_eager_work_ends_the_stream() -> None:
    def fail(job: Job, final: bool) -> None:
        if not final:
            raise RuntimeError("a bug")

    async with OpenSession(SessionWorld(FakeAnalyzer(fail)).session(endpointing=PATIENT)) as stream:
        await send(stream, SPOKEN, ENDED)
        with pytest.raises(RuntimeError, match="a bug"):
            await stream.rest()


async def test_a_stream_that_is_dropped_leaves_no_eager_work_in_the_queue() -> None:
    world = World()
    world.backend.gate.clear()
    async with world.stream(turn_id="a"), world.stream(turn_id="b", participant_id="q") as second:
        await send(second, SPOKEN)
        async with world.stream(turn_id="c", participant_id="r") as third:
            await send(third, SPOKEN)
            async with world.stream(turn_id="d", participant_id="s") as fourth:
                await send(fourth, SPOKEN)
                assert world.batcher.queued == 1
            assert world.batcher.queued == 0
    world.backend.gate.set()
    await world.batcher.drain()


# ---- the same with and without


PAUSES_S = st.sampled_from([0.06, 0.12, 0.2, 0.26, 0.4])
PARTS = st.lists(st.tuples(st.sampled_from([0.3, 0.6, 0.9]), st.sampled_from([0.1, 0.3, 0.8]), PAUSES_S), max_size=6)


async def pushed(
    script: Sequence[tuple[float, float, float]], next_turn_id: str, block: int, steps: int
) -> AsyncIterator[Request]:
    payload = b"".join(pcm((level, speech_s), (0, pause_s)) for level, speech_s, pause_s in script)
    for request in in_blocks(payload, block):
        yield request
        await let_others_run(steps)
    yield EndOfTurn(next_turn_id)
    yield Audio(pcm((0.7, 0.4), (0, 0.15)))


async def told(scripts: list[list[tuple[float, float, float]]], block: int, steps: int, **options: Any) -> list[Any]:
    """What two streams of one participant, one after the other, tell for certain, and what is stored of it."""
    world = World(store=MemoryStore(), open_streams=OpenStreams())
    replies: list[Reply] = []
    for number, script in enumerate(scripts):
        session = world.session(endpointing=PATIENT, turn_id=f"t{number}", **options)
        replies += await run_on(session, pushed(script, f"then-{number}", block, steps))
    kept = [*finals(replies), *events(replies, PersonalityUpdate)]
    turns = [(t.utterance_count, t.speech, t.emotion, t.personality, t.reason) for t in events(replies, TurnResult)]
    ended = [(e.received, e.speech, e.non_speech, e.dropped) for e in events(replies, StreamEnded)]
    records = [
        (r.start, r.end, r.emotion, r.traits, r.vector.tobytes())
        for r in ((await world.conversation()).participant("p").records)
        if r.vector is not None
    ]
    return [*kept, *turns, *ended, *records]


@given(
    st.lists(PARTS, min_size=1, max_size=2),
    st.sampled_from([320, 1_600, 7_919]),
    st.sampled_from([0, 3, 40]),
    st.booleans(),
)
@settings(max_examples=60)
def test_nothing_that_is_certain_differs(
    scripts: list[list[tuple[float, float, float]]], block: int, steps: int, wanted: bool
) -> None:
    plain = asyncio.run(told(scripts, block, steps, eager=False))
    assert asyncio.run(told(scripts, block, steps, eager=True, interims=wanted)) == plain
