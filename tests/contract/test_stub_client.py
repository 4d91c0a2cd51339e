"""A client that knows nothing but the .proto resumes a turn again and again: it gets what an undisturbed one gets."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import grpc
import numpy as np
import pytest
import soundfile

from kibun.bench.faults.proxy import Proxy
from kibun.bench.faults.stub_client import ResumePoint, StubTurn
from kibun.v1 import speech_analysis_pb2 as pb
from kibun.v1.speech_analysis_pb2_grpc import SpeechAnalysisServiceStub as Stub
from tests.support.serving import (
    RATE_HZ,
    RunningServer,
    Talk,
    check_stream,
    chunks,
    config,
    connect,
    converse,
    encode,
    finals,
    of_kind,
    samples,
    seconds,
    serve,
    sound,
)

CUTS = 12
RECALLING = "kibun.bench.support.stub_model:load_recalling"  # estimates show what was lost, doubled or reordered


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with serve("--loader", RECALLING) as server:
        yield server


# Long silences, in which audio is settled, and an utterance that is cut at its longest.
DIALOGUE = (
    ("silence", 0.4), ("speech", 1.2), ("silence", 11.3), ("speech", 1.0), ("silence", 0.9), ("speech", 5.0),
    ("silence", 12.0), ("speech", 0.8), ("silence", 0.7), ("speech", 1.5), ("silence", 10.5), ("speech", 1.1),
)  # fmt: skip


UTTERANCES: dict[str, Any] = {
    "endpointing_config": {"max_utterance_duration": seconds(3)},
    "features": {"interim_results": True, "interim_interval": seconds(0.3)},
}


class Line:
    """Speaks `audio` through a proxy, which breaks the connection at `cuts`, in samples."""

    def __init__(self, audio: bytes, proxy: Proxy | None = None, cuts: list[int] | None = None) -> None:
        self._audio = audio
        self._proxy = proxy
        self._cuts = cuts or []

    async def __aiter__(self) -> AsyncIterator[bytes]:
        at = 0
        for cut in self._cuts:
            yield self._audio[2 * at : 2 * cut]
            at = cut
            await asyncio.sleep(0.04)
            assert self._proxy is not None
            self._proxy.reset()
            await asyncio.sleep(0.04)
        yield self._audio[2 * at :]


def through(server: RunningServer, proxy: Proxy) -> RunningServer:
    return RunningServer(server.process, proxy.port, server.log)


async def speak(
    server: RunningServer,
    name: str,
    audio: np.ndarray,
    resume_point: ResumePoint,
    cuts: list[int],
    rate: int = RATE_HZ,
) -> tuple[StubTurn, list[pb.StreamingAnalyzeResponse]]:
    """One turn of conversation `name`, cut at these samples and, if there are any, when more is settled."""
    first = config(conversation_id=name, turn_id="t", rate=rate, **UTTERANCES).streaming_config
    async with Proxy(server.port) as proxy:
        line = Line(encode(audio), proxy, cuts)
        async with connect(through(server, proxy), **{"grpc.initial_reconnect_backoff_ms": 50}) as stub:
            turn, responses, settled = StubTurn(stub, first, resume_point), [], 0
            async with asyncio.timeout(60):
                async for response in turn.responses(aiter(line)):
                    responses.append(response)
                    if cuts and samples(response.stream_progress.settled_offset) > settled:
                        settled = samples(response.stream_progress.settled_offset)
                        proxy.reset()
            return turn, responses


@pytest.mark.parametrize("resume_point", ["final", "settled"])
async def test_a_turn_that_is_resumed_is_as_if_nothing_had_happened(
    server: RunningServer, resume_point: ResumePoint
) -> None:
    audio = sound(*DIALOGUE)
    audio = audio + np.random.default_rng(0).normal(0, 0.002, len(audio))  # no two silences are alike
    resumed = await check_resuming(server, f"noisy-{resume_point}", audio, resume_point, seed=0)
    ends = {0, *(samples(u.end_offset) for u in finals(resumed))}
    starts = {samples(s.effective_config.audio_start_offset) for s in of_kind(resumed, "stream_started")}
    assert bool(starts - ends) == (resume_point == "settled")


@pytest.mark.parametrize("resume_point", ["final", "settled"])
async def test_so_it_is_in_a_meeting(server: RunningServer, shared_data: Path, resume_point: ResumePoint) -> None:
    meeting, quiet = (
        soundfile.read(shared_data / "conversation" / name, dtype="float32")[0] for name in ("dev00.flac", "trn01.flac")
    )
    audio = np.concatenate((quiet, meeting[: 20 * RATE_HZ], quiet[: 15 * RATE_HZ]))
    await check_resuming(server, f"meeting-{resume_point}", audio, resume_point, seed=1)


async def check_resuming(
    server: RunningServer, name: str, audio: np.ndarray, resume_point: ResumePoint, seed: int
) -> list[pb.StreamingAnalyzeResponse]:
    """The responses of a turn that was resumed again and again, and yet is as one that was not disturbed."""
    _, whole = await speak(server, f"whole-{name}", audio, resume_point, [])
    cuts = sorted(Random(seed).sample(range(1, len(audio)), CUTS))
    turn, resumed = await speak(server, f"resumed-{name}", audio, resume_point, cuts)

    assert turn.streams > 3
    assert finals(resumed) == finals(whole)
    assert of_kind(resumed, "turn_result") == of_kind(whole, "turn_result")
    assert not of_kind(resumed, "stream_warning")
    (ended,), (undisturbed,) = of_kind(resumed, "stream_ended"), of_kind(whole, "stream_ended")
    assert ended.conversation.participants == undisturbed.conversation.participants
    check_streams(resumed, len(audio))
    return resumed


def check_streams(responses: list[pb.StreamingAnalyzeResponse], length: int) -> None:
    """What each stream of a turn says of itself, and what all of them say together."""
    begins = [n for n, response in enumerate(responses) if response.HasField("stream_started")]
    streams = [responses[begin:end] for begin, end in zip(begins, [*begins[1:], len(responses)], strict=True)]
    for stream in streams:
        assert [response.sequence_number for response in stream] == list(range(len(stream)))
    check_stream(streams[-1])
    (ended,) = of_kind(streams[-1], "stream_ended")
    offset = streams[-1][0].stream_started.effective_config.audio_start_offset
    assert samples(offset) + samples(ended.audio_received) == length, "every sample is accounted for"
    ids = [u.utterance_id for u in finals(responses)]
    assert len(set(ids)) == len(ids), "none is doubled"
    assert {u.utterance_id for u in of_kind(responses, "utterance_result")} == set(ids), "interims keep their ids"
    updates = of_kind(responses, "personality_update")
    revisions = [update.revision for update in updates]
    assert revisions == sorted(set(revisions)), "revisions grow"


@pytest.mark.parametrize("rate", [8_000, 44_100])
async def test_at_other_rates_the_same_utterances_are_found(rate: int) -> None:
    """The resampler starts afresh where a stream resumes. Generated speech at 8 kHz is hardly speech to Silero."""
    audio = sound(*DIALOGUE, rate=rate)
    with serve("--loader", RECALLING, "--vad", "webrtc") as server:
        _, whole = await speak(server, f"whole-{rate}", audio, "settled", [], rate)
        cuts = sorted(Random(rate).sample(range(1, len(audio)), CUTS))
        _, resumed = await speak(server, f"resumed-{rate}", audio, "settled", cuts, rate)
    assert not of_kind(resumed, "stream_warning")
    bounds = [
        [(samples(u.start_offset), samples(u.end_offset)) for u in finals(responses)] for responses in (whole, resumed)
    ]
    assert np.array(bounds[0]) == pytest.approx(np.array(bounds[1]), abs=RATE_HZ // 20)


async def test_a_server_that_knows_nothing_of_the_turn_counts_what_its_client_was_told(server: RunningServer) -> None:
    audio = sound(*DIALOGUE)
    _, whole = await speak(server, "known", audio, "final", [])
    first = config(conversation_id="forgotten", turn_id="t", **UTTERANCES).streaming_config
    with serve("--loader", RECALLING) as other:
        async with Proxy(server.port) as proxy, connect(through(server, proxy)) as stub:
            responses = []
            async for response in StubTurn(stub, first, "final").responses(aiter(Line(encode(audio)))):
                responses.append(response)
                if len(finals(responses)) == 3 and proxy.target_port == server.port:
                    proxy.target_port = other.port
                    proxy.reset()
    assert [w.reason for w in of_kind(responses, "stream_warning")] == ["UTTERANCES_RESTORED"]
    (told,), (known,) = of_kind(responses, "turn_result"), of_kind(whole, "turn_result")
    assert (told.utterance_count, told.speech_duration) == (known.utterance_count, known.speech_duration)
    assert (told.start_offset, told.end_offset) == (known.start_offset, known.end_offset)
    spans = [[(u.utterance_id, u.start_offset, u.end_offset) for u in finals(r)] for r in (responses, whole)]
    assert spans[0] == spans[1]


def speak_plainly(
    target: str, config: pb.StreamingAnalyzeConfig, audio: bytes, note: Callable[[pb.StreamingAnalyzeResponse], None]
) -> None:
    """The shortest client: it blocks, has all audio at hand, and resumes at the end of the last final."""

    def requests() -> Iterator[pb.StreamingAnalyzeRequest]:
        yield pb.StreamingAnalyzeRequest(streaming_config=config)
        yield from chunks(audio[2 * samples(config.audio_start_offset) :])

    with grpc.insecure_channel(target, options=[("grpc.enable_retries", 0)]) as channel:
        while True:
            try:
                for response in Stub(channel).StreamingAnalyze(requests()):
                    note(response)
                    if response.HasField("stream_started"):
                        config.resume_turn = True
                    elif response.utterance_result.is_final:
                        config.audio_start_offset.CopyFrom(response.utterance_result.end_offset)
                        config.resume_after = response.utterance_result.end_reason
                        config.resume_final_count += 1
                    elif response.HasField("stream_ended"):
                        return
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
                time.sleep(0.05)


async def test_the_shortest_client_resumes_as_well(server: RunningServer) -> None:
    audio = sound(*DIALOGUE)
    _, whole = await speak(server, "plain-whole", audio, "final", [])
    responses: list[pb.StreamingAnalyzeResponse] = []
    loop = asyncio.get_running_loop()
    async with Proxy(server.port) as proxy:

        def note(response: pb.StreamingAnalyzeResponse) -> None:
            responses.append(response)
            if response.utterance_result.is_final:
                loop.call_soon_threadsafe(proxy.reset)

        first = config(conversation_id="plain", turn_id="t", **UTTERANCES).streaming_config
        await asyncio.to_thread(speak_plainly, f"127.0.0.1:{proxy.port}", first, encode(audio), note)
        assert proxy.connections > 2
    assert finals(responses) == finals(whole)
    assert of_kind(responses, "turn_result")[-1:] == of_kind(whole, "turn_result")
    assert not of_kind(responses, "stream_warning")


async def lost(stub: Stub, name: str, audio: np.ndarray) -> list[pb.StreamingAnalyzeResponse]:
    """A stream of this audio, all of which the server has heard when the client goes away."""
    async with Talk(stub) as talk:
        await talk.send(config(conversation_id=name, turn_id="t", audio_start_offset=BASE), *chunks(encode(audio)))
        await talk.until("stream_progress")
        await talk.until("utterance_result", is_final=True)
        return talk.responses


BASE = seconds(100)  # on the turn's clock, where it begins


async def test_a_resume_point_that_is_too_late_is_noticed(server: RunningServer) -> None:
    """As set by a client that takes it for what was sent; the points that the contract names are silent."""
    audio = sound(("silence", 11.0), ("speech", 1.0), ("silence", 0.8), ("speech", 1.0))  # the last one is open
    async with connect(server) as stub:
        for number in range(4):
            responses = await lost(stub, f"late-{number}", audio)
            (final,), (progress,) = finals(responses), of_kind(responses, "stream_progress")
            sent = samples(BASE) + len(audio)
            offset = [sent, samples(final.end_offset), samples(progress.settled_offset), samples(BASE)][number]
            again = config(
                conversation_id=f"late-{number}",
                turn_id="t",
                resume_turn=True,
                audio_start_offset=seconds(offset / RATE_HZ),
            )
            for repeated in range(2):
                resumed = await converse(stub, [again, *chunks(encode(audio[offset - samples(BASE) :]))])
                warnings = [w for w in of_kind(resumed, "stream_warning") if w.reason == "AUDIO_MISSING"]
                assert len(warnings) == (number == repeated == 0), "told once"
                for warning in warnings:
                    assert warning.metadata == {
                        "turn_id": "t",
                        "settled_s": f"{samples(final.end_offset) / RATE_HZ:.4f}",
                        "start_s": f"{sent / RATE_HZ:.4f}",
                    }
