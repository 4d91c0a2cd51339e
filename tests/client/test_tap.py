"""The tap on a framework's audio: what is sent of what is pushed, when estimates were heard, and what goes wrong."""

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kibun.client import AsyncClient, Endpointing, InvalidRequestError, KibunError, RetryPolicy, TurnResult
from kibun.client.events import PersonalityUpdate, UtteranceResult
from kibun.client.tap import AffectTap, TapEstimate
from tests.support.processes import until
from tests.support.scripted_service import ScriptedService, noise, serving
from tests.support.serving import serve, spoken

RATE = 16000
RETRY = RetryPolicy(initial_backoff_s=0.01, max_backoff_s=0.05, max_attempts=3)
FRAME = 320  # samples: 20 ms


@pytest.fixture
def service() -> ScriptedService:
    return ScriptedService()


@pytest.fixture
async def client(service: ScriptedService) -> AsyncIterator[AsyncClient]:
    async with serving(service) as target, AsyncClient(target, retry=RETRY) as client:
        yield client


def patient(client: AsyncClient, **options: Any) -> AffectTap:
    """One that holds all that a test pushes at once."""
    return AffectTap(client, queue_ms=60_000, **options)


def talk(seconds: float, seed: int = 0) -> bytes:
    return noise(seconds, seed=seed)


def play(tap: AffectTap, audio: bytes, t: float, rate: int = RATE) -> float:
    """Pushes frames of 20 ms that begin at `t`. Returns when they end."""
    size = 2 * (rate // 50)
    for begin in range(0, len(audio), size):
        frame = audio[begin : begin + size]
        assert tap.push(frame, sample_rate_hz=rate, t=t)
        t += len(frame) / 2 / rate
    return t


async def collected(tap: AffectTap) -> list[TapEstimate]:
    return [estimate async for estimate in tap.estimates()]


def finals(estimates: list[TapEstimate]) -> list[TapEstimate]:
    return [e for e in estimates if isinstance(e.event, UtteranceResult)]


# ---- what is sent


async def test_a_turn_has_what_was_heard_in_it_and_just_before(client: AsyncClient, service: ScriptedService) -> None:
    early, before, during, after = talk(1.0), talk(0.5, 1), talk(2.0, 2), talk(0.4, 3)
    async with patient(client, conversation_id="c", participant_id="ann") as tap:
        t = play(tap, early + before, 100.0)
        assert tap.turn_start("t1", t=t) == "t1"
        t = play(tap, during, t)
        tap.turn_end("another")
        tap.turn_end("t1")
        play(tap, after, t)
        result = await tap.final("t1", 20)
        assert await tap.final(timeout_s=20) == result
        assert await tap.final("unknown", 20) is None
    (connection,) = service.connections
    assert bytes(connection.audio) == before + during
    assert (connection.config.conversation_id, connection.config.participant_id) == ("c", "ann")
    assert not connection.config.features.exclude_from_personality
    estimates = await collected(tap)
    assert [e.start_t for e in finals(estimates)] == pytest.approx([101.0, 102.0])
    assert [e.end_t for e in finals(estimates)] == pytest.approx([102.0, 103.0])
    assert [type(e.event) for e in estimates].count(PersonalityUpdate) == 2
    assert result == estimates[-1]
    assert isinstance(result.event, TurnResult)
    assert not any(e.overlapped for e in estimates)
    assert tap.counts.pushed == len(early + before + during + after) // 2
    assert tap.counts.sent == len(before + during) // 2


async def test_any_thread_may_push_and_nothing_waits(client: AsyncClient, service: ScriptedService) -> None:
    service.read_delay_s = 0.01
    audio = talk(3.0)
    async with patient(client) as tap:
        frame = bytearray(2 * FRAME)

        def host() -> None:
            tap.turn_start("t", t=0.0)
            for number, begin in enumerate(range(0, len(audio), 2 * FRAME)):
                frame[:] = audio[begin : begin + 2 * FRAME]  # used again: it is copied
                tap.push(frame, sample_rate_hz=RATE, t=number * 0.02)
            tap.turn_end()

        thread = threading.Thread(target=host)
        thread.start()
        thread.join()  # with the event loop blocked
        assert await tap.final("t", 30) is not None
    assert bytes(service.connections[0].audio) == audio


async def test_what_does_not_fit_the_queue_is_dropped_from_its_old_end(
    client: AsyncClient, service: ScriptedService
) -> None:
    audio = talk(5.0)
    async with AffectTap(client, queue_ms=2000) as tap:
        tap.turn_start("t", t=50.0)
        play(tap, audio, 50.0)  # the event loop had no chance to send
        tap.turn_end()
        result = await tap.final("t", 20)
    assert bytes(service.connections[0].audio) == audio[-2 * 2 * RATE :]
    assert tap.counts.dropped == 3 * RATE
    assert [e.start_t for e in finals(await collected(tap))] == pytest.approx([53.0, 54.0])
    assert result is not None


async def test_a_change_of_rate_goes_on_in_the_next_stream(client: AsyncClient, service: ScriptedService) -> None:
    async with patient(client) as tap:
        tap.turn_start("t", t=0.0)
        t = play(tap, talk(1.0), 0.0)
        play(tap, bytes(2 * 24000), t, rate=24000)
        tap.turn_end("t")
        assert await tap.final("t", 20) is not None
        assert await tap.final("t.2", 20) is not None
    assert [c.config.audio_config.sample_rate_hertz for c in service.connections] == [16000, 24000]
    assert [c.config.turn_id for c in service.connections] == ["t", "t.2"]


@pytest.mark.parametrize(
    ("frame", "fields", "channel", "sent"),
    [
        (np.full((FRAME, 2), [100, 300], np.int16), {"channels": 2}, "mix", 200),
        (np.full((FRAME, 2), [100, 300], np.int16), {"channels": 2}, 2, 300),
        (np.full((FRAME, 2), [100, 300], "<i2").tobytes(), {"channels": 2}, 1, 100),
        (np.full(FRAME, 0.5, np.float32), {}, None, 16384),
        (np.full(FRAME, 2.0, np.float32), {}, None, 32767),
        (memoryview(np.full(FRAME, 7, "<i2").tobytes()), {}, None, 7),
        (np.full((FRAME, 2), 1, np.int16), {"channels": 2}, None, None),
        (np.full((FRAME, 2), 1, np.int16), {"channels": 2}, 3, None),
        (np.full(FRAME, np.nan, np.float32), {}, None, None),
        (np.full(FRAME, 1.0, np.float64), {}, None, None),
        (bytes(2 * FRAME + 1), {}, None, None),
        (bytes(2 * FRAME), {"sample_rate_hz": None}, None, None),
        (bytes(2 * FRAME), {"sample_rate_hz": 96000}, None, None),
        ("nonsense", {}, None, None),
    ],
)
async def test_frames_are_mixed_by_rule_or_refused(
    client: AsyncClient, service: ScriptedService, frame: Any, fields: dict[str, Any], channel: Any, sent: int | None
) -> None:
    problems: list[KibunError] = []
    async with AffectTap(client, channel=channel, on_problem=problems.append) as tap:
        tap.turn_start("t", t=0.0)
        for number in range(3):
            taken = tap.push(frame, **{"sample_rate_hz": RATE, "t": 0.02 * number, **fields})
            assert taken is (sent is not None)
        tap.turn_end()
        await tap.final("t", 20)
        await asyncio.sleep(0)
    if sent is None:
        assert [p.details.reason for p in problems] == ["FRAME_REFUSED"], "told once"
        assert not service.connections
    else:
        assert not problems
        assert set(np.frombuffer(bytes(service.connections[0].audio), "<i2")) == {sent}


async def test_bad_options_name_the_field(client: AsyncClient) -> None:
    for options in ({"mode": "turns"}, {"self_speech": "no"}, {"tail_ms": -1}, {"queue_ms": 1.5}, {"channel": 0}):
        with pytest.raises(InvalidRequestError) as caught:
            AffectTap(client, **options)
        assert caught.value.details.fields.keys() == options.keys()


# ---- the agent's own voice


@pytest.mark.parametrize(("self_speech", "dropped"), [("drop", True), ("mark", False), ("keep", False)])
async def test_audio_with_the_agents_voice(
    client: AsyncClient, service: ScriptedService, self_speech: Any, dropped: bool
) -> None:
    user, agent, tail, more = talk(1.0), talk(1.0, 1), talk(0.3, 2), talk(1.7, 3)
    async with patient(client, self_speech=self_speech) as tap:
        tap.turn_start("t", t=0.0)
        t = play(tap, user, 0.0)
        tap.agent_speaking(True, t=t + 1e-6)
        t = play(tap, agent, t)
        tap.agent_speaking(False, t=t)
        t = play(tap, tail, t)
        play(tap, more, t + 1e-6)
        tap.turn_end()
        await tap.final("t", 20)
    heard = user + more if dropped else user + agent + tail + more
    assert bytes(service.connections[0].audio) == heard
    seen = finals(await collected(tap))
    marked = [False, True, True, False] if self_speech == "mark" else [False] * (2 if dropped else 4)
    assert [e.overlapped for e in seen] == marked
    if dropped:
        assert seen[1].start_t == pytest.approx(2.3, abs=0.01)
        assert tap.counts.gated == len(agent + tail) // 2


async def test_before_a_turn_the_agents_voice_is_no_pre_roll(client: AsyncClient, service: ScriptedService) -> None:
    async with patient(client) as tap:
        tap.agent_speaking(True, t=0.0)
        t = play(tap, talk(1.0), 0.0)
        tap.agent_speaking(False, t=t)
        t = play(tap, talk(0.3, 1), t)
        quiet = talk(0.1, 2)
        t = play(tap, quiet, t + 1e-6)
        tap.turn_start("t", t=t)
        tap.turn_end()
        await tap.final("t", 20)
    assert bytes(service.connections[0].audio) == quiet


async def test_barge_in_is_sent_flagged_and_kept_out_of_the_traits() -> None:
    speech = (spoken(1.0) * 32767).astype("<i2").tobytes()
    with serve() as server:
        async with AsyncClient(server.target) as client, patient(client, conversation_id="b") as tap:
            t = play(tap, speech, 0.0)
            for number, speaking in enumerate((False, True, False)):
                if speaking:
                    tap.agent_speaking(True, t=t)
                tap.turn_start(f"t{number}", t=t + 0.5)
                t = play(tap, speech, t + 0.5)
                tap.turn_end()
                assert await tap.final(f"t{number}", 20) is not None
                tap.agent_speaking(False, t=t)
                t += 1.0
        estimates = await collected(tap)
        async with AsyncClient(server.target) as client:
            state = await client.conversation("b").get()
    assert {e.turn_id for e in estimates if e.overlapped} == {"t1"}
    assert all(e.event.emotion is not None for e in estimates if isinstance(e.event, UtteranceResult))
    updates = [e for e in estimates if isinstance(e.event, PersonalityUpdate)]
    assert [e.turn_id for e in updates] == ["t0", "t2"]
    assert [e.event.personality.utterance_count for e in updates if isinstance(e.event, PersonalityUpdate)] == [1, 2]
    assert state.participants[0].utterance_count == 3


# ---- without turns of the host's


async def test_without_turns_the_server_ends_them_and_nothing_is_lost(
    client: AsyncClient, service: ScriptedService
) -> None:
    service.server_ends_turn_after_s = 2
    audio = talk(2.0) + talk(2.0, 1)
    async with patient(client, mode="conversation") as tap:
        t = play(tap, audio[: len(audio) // 2], 10.0)
        await until(lambda: any(isinstance(e.event, TurnResult) for e in tap._waiting))
        await asyncio.sleep(0.05)
        play(tap, audio[len(audio) // 2 :], t)
        assert await tap.final(timeout_s=20) is not None
    assert b"".join(bytes(c.audio) for c in service.connections) == audio
    assert len({c.config.turn_id for c in service.connections}) == 2
    assert service.connections[0].config.endpointing_config.end_of_turn_silence.ToMilliseconds() == 1500
    assert [e.start_t for e in finals(await collected(tap))] == pytest.approx([10.0, 11.0, 12.0, 13.0])


async def test_a_real_server_cuts_a_conversation_into_turns_with_their_times() -> None:
    said = (spoken(1.0, pause=1.4) * 32767).astype("<i2").tobytes()
    with serve() as server:
        async with (
            AsyncClient(server.target) as client,
            patient(client, mode="conversation", endpointing=Endpointing(end_of_turn_silence_ms=800)) as tap,
        ):
            play(tap, said * 4, 1000.0)
            seen: list[TapEstimate] = []
            async with asyncio.timeout(30):
                async for estimate in tap.estimates():
                    seen += [estimate] if isinstance(estimate.event, TurnResult) else []
                    if len(seen) == 4:
                        break
    period = len(said) / 2 / RATE
    starts = [e.start_t for e in seen]
    # Where speech is found to begin depends a little on where its stream does.
    assert starts == pytest.approx([1000.0 + n * period for n in range(4)], abs=0.3)


# ---- what goes wrong


async def test_a_lost_connection_costs_nothing(client: AsyncClient, service: ScriptedService) -> None:
    service.fault = lambda number, connection: "lose" if number == 1 and len(connection.audio) > 40000 else None
    async with patient(client) as tap:
        tap.turn_start("t", t=5.0)
        play(tap, talk(3.0), 5.0)
        tap.turn_end()
        assert await tap.final("t", 20) is not None
    assert [e.start_t for e in finals(await collected(tap))] == [5.0, 6.0, 7.0]


async def test_an_absent_server_is_told_once_and_found_when_it_is_there(service: ScriptedService) -> None:
    problems: list[KibunError] = []
    async with serving(service) as target:
        pass  # its port is free again
    port = int(target.rpartition(":")[2])
    async with (
        AsyncClient(target, retry=RETRY) as client,
        AffectTap(client, mode="conversation", on_problem=problems.append) as tap,
    ):
        t = play(tap, talk(0.2), 0.0)
        for _ in range(100):
            t = play(tap, talk(0.02), t)
            await asyncio.sleep(0.01)
        await until(lambda: bool(problems))
        assert len(problems) == 1
        async with serving(service, port=port), asyncio.timeout(30):
            while not service.connections or len(service.connections[-1].audio) < 2 * RATE:
                t = play(tap, talk(0.02), t)
                await asyncio.sleep(0.01)
    assert len(problems) == 1
    assert tap.counts.dropped > 0


async def test_a_refused_token_is_told_once(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(f"acme {'0' * 64}\n")
    problems: list[KibunError] = []
    with serve("--token-file", str(tokens)) as server:
        async with AsyncClient(server.target, token="wrong", allow_plaintext_token=True) as client:
            for mode in ("turn", "conversation"):
                problems.clear()
                async with AffectTap(client, mode=mode, on_problem=problems.append) as tap:
                    t = 0.0
                    for number in range(50):
                        if mode == "turn" and number % 10 == 0:
                            tap.turn_start(t=t)
                        t = play(tap, talk(0.02), t)
                        await asyncio.sleep(0.02)
                    tap.turn_end()
                    assert await tap.final(timeout_s=0.5) is None
                assert tap.counts.dropped == tap.counts.pushed, "each sample has its place"
                assert [p.details.reason for p in problems] == ["UNAUTHENTICATED"], mode


async def test_a_report_that_fails_and_a_host_that_goes_away_leave_nothing(client: AsyncClient) -> None:
    def report(_: KibunError) -> None:
        raise RuntimeError("the host's own fault")

    tap = AffectTap(client, on_problem=report)
    async with tap:
        tap.turn_start("t", t=0.0)
        play(tap, talk(1.0), 0.0)
        assert not tap.push(b"1", sample_rate_hz=RATE)
        await asyncio.sleep(0.05)
        await tap.close(wait_s=0.0)
    assert not tap.push(bytes(640), sample_rate_hz=RATE)
    tap.turn_start("late")
    tap.turn_end()
    tap.agent_speaking(True)
    assert await tap.final("t", 1) is None
    assert not [task for task in asyncio.all_tasks() if "tap" in repr(task.get_coro()).lower()]


def test_a_loop_that_ends_without_a_word_leaves_no_thread(service: ScriptedService) -> None:
    threads = set(threading.enumerate())
    kept: list[AffectTap] = []

    async def host() -> None:
        async with serving(service) as target:
            client = AsyncClient(target)
            tap = await AffectTap(client).__aenter__()
            tap.turn_start("t", t=0.0)
            play(tap, talk(1.0), 0.0)
            await asyncio.sleep(0.1)
            kept.append(tap)

    asyncio.run(host())
    (tap,) = kept
    tap.push(bytes(640), sample_rate_hz=RATE)  # raises nothing
    tap.turn_end()
    tap.turn_start("late")
    tap.agent_speaking(True)
    assert set(threading.enumerate()) <= threads
