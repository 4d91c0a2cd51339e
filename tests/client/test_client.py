"""The SDK against the real server, run in a separate process with a stand-in for the model."""

# A stream fails somewhere within its block, so `raises` is put around blocks of several statements.
# ruff: noqa: PT012

import asyncio
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from kibun.bench.faults.proxy import Proxy
from kibun.client import (
    AlreadyExistsError,
    AsyncClient,
    AuthenticationError,
    Client,
    Endpointing,
    FailedPreconditionError,
    Features,
    InvalidRequestError,
    NotFoundError,
    PersonalitySource,
    PersonalityUpdate,
    RetryPolicy,
    SpeechEvent,
    SpeechEventType,
    StreamConfig,
    StreamEnded,
    StreamProgress,
    StreamStarted,
    StreamWarning,
    Traits,
    TurnResult,
    UnavailableError,
    UtteranceResult,
)
from kibun.client.options import Encoding
from kibun.client.server_process import ServerProcess, ServerStartError
from tests.support import ROOT, present
from tests.support.serving import sound

if TYPE_CHECKING:
    from kibun.client.pcm import Pcm

DIALOGUE = ROOT / "client" / "kibun" / "client" / "demo" / "dialogue.flac"
STUB = ["--loader", "tests.support.stub_model:load"]


@pytest.fixture(scope="module", autouse=True)
def stub_on_path() -> Iterator[None]:
    """Child processes find the stand-in model beside this file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
        yield


@pytest.fixture(scope="module")
def target(stub_on_path: None) -> Iterator[str]:
    with ServerProcess("stub", STUB) as server:
        yield server.target


@pytest.fixture
async def client(target: str) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(target) as client:
        yield client


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    """Three turns of the dialogue with a second of silence after each; 16 kHz, int16."""
    import soundfile

    samples, rate_hz = soundfile.read(DIALOGUE, dtype="int16")
    assert rate_hz == 16000
    turns = json.loads(DIALOGUE.with_suffix(".json").read_text())[:3]
    parts = [samples[round(turn["start_s"] * 16000) : round(turn["end_s"] * 16000)] for turn in turns]
    quiet = np.zeros(16000, np.int16)
    return np.concatenate([part for spoken in parts for part in (spoken, quiet)])


async def test_a_turn(client: AsyncClient, speech: np.ndarray) -> None:
    features = Features(interim_results=True, voice_activity_events=True)
    conversation = client.conversation()
    async with conversation.turn("t1", "alice", features=features) as turn:
        turn.feed(np.array_split(speech, 100))
        events = [event async for event in turn]
    assert isinstance(events[0], StreamStarted)
    assert isinstance(events[-1], StreamEnded)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert turn.started.participant_id == "alice"
    assert turn.started.synthetic_model
    finals = [event for event in events if isinstance(event, UtteranceResult) and event.is_final]
    interims = [event for event in events if isinstance(event, UtteranceResult) and not event.is_final]
    updates = [event for event in events if isinstance(event, PersonalityUpdate)]
    assert len(finals) == len(updates) >= 3
    assert interims
    assert all(final.emotion is not None and 1 <= final.emotion.arousal <= 5 for final in finals)
    begins = [e for e in events if isinstance(e, SpeechEvent) and e.type is SpeechEventType.SPEECH_ACTIVITY_BEGIN]
    assert len(begins) >= len(finals)
    ended = events[-1]
    assert ended.total_audio_s == pytest.approx(len(speech) / 16000)
    assert ended.total_audio_s == pytest.approx(ended.speech_s + ended.non_speech_s + ended.dropped_s)
    result = await turn.result()
    assert result.utterance_count == len(finals)
    state = await conversation.get()
    assert state.participant("alice").utterance_count == len(finals)
    with pytest.raises(KeyError):
        state.participant("bob")


async def test_encodings_and_rates_give_nearly_the_same(client: AsyncClient, speech: np.ndarray) -> None:
    """float32 is the same audio; every second sample of it is a phone line's."""
    arousals: list[float] = []
    as_float = (speech / 32768).astype(np.float32)
    forms: list[tuple[Encoding, int, Pcm]] = [
        ("linear16", 16000, speech),
        ("float32", 16000, as_float),
        ("linear16", 8000, speech[::2]),
    ]
    for encoding, rate_hz, audio in forms:
        async with client.conversation().turn(encoding=encoding, sample_rate_hz=rate_hz) as turn:
            await turn.push(audio)
            emotion = present((await turn.result()).emotion)
            arousals.append(emotion.arousal)
    assert arousals[1] == pytest.approx(arousals[0], abs=1e-4)
    assert arousals[2] == pytest.approx(arousals[0], abs=0.2)


async def test_given_personality_is_used(client: AsyncClient, speech: np.ndarray) -> None:
    given = Traits(1.5, 2.5, 3.5, 4.5, 5.5)
    async with client.conversation().turn(given_personality=given) as turn:
        await turn.push(speech)
        turn.end()
        finals = [event async for event in turn if isinstance(event, UtteranceResult)]
    for final in finals:
        assert final.condition is not None
        assert final.condition.source is PersonalitySource.GIVEN
        assert final.condition.traits.as_tuple() == pytest.approx(given.as_tuple())


async def test_many_turns_on_one_stream(client: AsyncClient, speech: np.ndarray) -> None:
    async with client.stream(StreamConfig(turn_id="a")) as stream:
        await stream.push(speech[: 4 * 16000])
        await stream.end_of_turn("b")
        await stream.push(speech[4 * 16000 :])
        stream.end()
        results = [event async for event in stream if isinstance(event, TurnResult)]
    assert [result.turn_id for result in results] == ["a", "b"]
    assert all(result.utterance_count for result in results)


async def test_the_server_ends_the_turn_after_silence(client: AsyncClient, speech: np.ndarray) -> None:
    quiet = np.zeros(3 * 16000, np.int16)
    endpointing = Endpointing(end_of_turn_silence_ms=1000)
    async with client.conversation().turn("t", endpointing=endpointing) as turn:
        turn.feed([speech[: 4 * 16000], quiet], end=False)
        events = [event async for event in turn]
        assert (await turn.result(timeout_s=5)).end_reason == "silence"
    assert [event.turn_id for event in events if isinstance(event, TurnResult)] == ["t"]


async def test_who_ended_a_turn_is_told_and_it_counts_once(client: AsyncClient, speech: np.ndarray) -> None:
    """Also where the server ends it while the client does: what is fed is there long before it is heard."""
    itself = Endpointing(end_of_turn_silence_ms=1000)
    quiet = np.zeros(3 * 16000, np.int16)
    one_utterance = speech[: 4 * 16000]
    for endpointing, audio, reason in (
        (None, one_utterance, "client_end_of_turn"),
        (itself, np.concatenate([one_utterance, quiet]), "silence"),
        (itself, one_utterance[: 2 * 16000], "half_close"),
    ):
        conversation = client.conversation()
        async with conversation.turn(endpointing=endpointing) as turn:
            turn.feed([audio])
            assert (await turn.result()).end_reason == reason
            events = [event async for event in turn]
        assert sum(isinstance(event, TurnResult) for event in events) == 1
        assert not [event for event in events if isinstance(event, StreamWarning) and event.reason == "NO_SPEECH"]
        assert (await conversation.get()).participants[0].turn_count == 1


async def test_a_result_that_was_lost_is_asked_for_again(client: AsyncClient, speech: np.ndarray) -> None:
    conversation = client.conversation()
    async with conversation.turn("t") as turn:
        turn.feed([speech])
        result = await turn.result()
        finals = [event async for event in turn if isinstance(event, UtteranceResult)]
    config = StreamConfig(
        conversation_id=conversation.conversation_id,
        turn_id="t",
        resume_turn=True,
        audio_start_offset_s=finals[-1].end_s,
        resume_after=finals[-1].end_reason,
    )
    async with client.turn(config) as turn:
        again = await turn.result()
    assert replace(again, sequence_number=0, audio_received_s=0, audio_processed_s=0) == replace(
        result, sequence_number=0, audio_received_s=0, audio_processed_s=0
    )
    assert (await conversation.get()).participants[0].turn_count == 1


async def test_two_participants_at_the_same_time(client: AsyncClient, speech: np.ndarray) -> None:
    conversation = client.conversation()

    async def speak(participant_id: str) -> None:
        async with conversation.turn(f"of-{participant_id}", participant_id) as turn:
            turn.feed(np.array_split(speech, 50))
            await turn.wait_ended()

    await asyncio.gather(speak("a"), speak("b"))
    state = await conversation.get()
    assert sorted(participant.participant_id for participant in state.participants) == ["a", "b"]


async def test_errors_of_the_server_are_typed(client: AsyncClient, speech: np.ndarray) -> None:
    conversation = client.conversation()
    with pytest.raises(NotFoundError):
        await conversation.get()
    with pytest.raises(NotFoundError):
        await conversation.delete()
    await conversation.delete(allow_missing=True)
    with pytest.raises(NotFoundError):
        async with conversation.turn(require_existing=True):
            pass
    with pytest.raises(NotFoundError, match="stub"):
        async with conversation.turn(model="nonsense"):
            pass
    with pytest.raises(InvalidRequestError) as caught:
        async with conversation.turn(sample_rate_hz=96000):
            pass
    assert "sample_rate_hertz" in (caught.value.field or "")
    assert "48000" in str(caught.value)
    assert caught.value.code == "INVALID_ARGUMENT"
    with pytest.raises(InvalidRequestError) as caught:
        async with conversation.turn() as turn:
            await turn.push(b"RIFF" + bytes(40_000))
            await turn.result()
    assert caught.value.reason == "CONTAINER_HEADER"
    async with conversation.turn("once") as turn:
        await turn.push(speech[:16000])
    with pytest.raises(AlreadyExistsError):
        async with conversation.turn("once"):
            pass
    assert (await conversation.complete()).state == "completed"
    with pytest.raises(FailedPreconditionError):
        async with conversation.turn():
            pass


async def test_analyze_in_one_request(client: AsyncClient, speech: np.ndarray) -> None:
    result = await client.analyze(speech, StreamConfig(participant_id="alice"))
    assert result.utterances
    assert result.turn_result.utterance_count == len(result.utterances)
    assert result.conversation.participants[0].participant_id == "alice"
    assert result.request_id


async def test_a_recording_too_long_for_one_request_says_what_to_do(client: AsyncClient) -> None:
    with pytest.raises(InvalidRequestError, match="stream long audio") as caught:
        await client.analyze(np.zeros(10 * 2**20, np.int16), StreamConfig())
    assert caught.value.reason == "MESSAGE_TOO_LARGE"


async def test_service_info(client: AsyncClient) -> None:
    info = await client.service_info()
    assert [model.name for model in info.models] == ["stub"]
    assert set(info.encodings) == {"linear16", "float32", "mulaw", "alaw"}
    assert (info.min_sample_rate_hz, info.max_sample_rate_hz) == (8000, 48000)
    assert {scale.dimension: (scale.min, scale.max) for scale in info.scales}["valence"] == (1.0, 5.0)


def test_sync_client(target: str, speech: np.ndarray) -> None:
    with Client(target) as client:
        client.wait_until_ready()
        conversation = client.conversation()
        with conversation.turn("t1") as turn:
            for chunk in np.array_split(speech, 20):
                turn.push(chunk)
            result = turn.result()
        assert result.utterance_count >= 2
        assert result.end_reason == "client_end_of_turn"
        assert conversation.get().participants[0].turn_count == 1
        assert client.analyze(speech).turn_result.utterance_count == result.utterance_count
        assert client.service_info().models[0].synthetic
        conversation.delete()
        with pytest.raises(NotFoundError):
            conversation.get()


INTERRUPTED = """
import os, signal, sys, threading, time
from kibun.client import Client

def microphone():
    try:
        while True:
            time.sleep(0.05)
            yield bytes(1600)
    finally:
        print("closed", flush=True)

threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
try:
    with Client(sys.argv[1]) as client, client.conversation().turn() as turn:
        turn.feed(microphone())
        for event in turn:
            pass
except KeyboardInterrupt:
    print("interrupted")
"""


def test_an_interrupt_ends_the_turn_and_closes_its_source(target: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, target], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.stdout, done.returncode) == ("closed\ninterrupted\n", 0), done.stderr


def serve_on(port: int, port_file: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "kibun.client.main", "serve", "--model", "stub", *STUB]
    return subprocess.Popen([*command, "--port", str(port), "--port-file", str(port_file)], stderr=subprocess.DEVNULL)


async def test_a_server_that_is_killed_and_started_again_loses_no_final(speech: np.ndarray, tmp_path: Path) -> None:
    """SIGKILL in the middle of a turn; another process takes over the port. Its conversation starts afresh."""
    server = ServerProcess("stub", STUB)
    await asyncio.to_thread(server.start)
    port = int(server.target.rpartition(":")[2])
    policy = RetryPolicy(max_attempts=40, max_backoff_s=0.3)
    successor = None
    try:
        async with AsyncClient(server.target, retry=policy) as client:
            whole = await client.analyze(speech)
            async with client.conversation("c").turn("t") as turn:
                await turn.push(speech[: 6 * 16000])
                async with asyncio.timeout(20):
                    first = await anext(event async for event in turn if isinstance(event, UtteranceResult))
                os.kill(server.pid, signal.SIGKILL)
                server.stop()
                successor = serve_on(port, tmp_path / "port")
                await turn.push(speech[6 * 16000 :])
                turn.end()
                rest = [other async for other in turn]
                await turn.result()
        finals = [first, *(other for other in rest if isinstance(other, UtteranceResult))]
        restarted = next(other for other in rest if isinstance(other, StreamStarted))
        assert restarted.reconnects >= 1
        assert restarted.conversation_created, "the memory of a killed server is gone, and the client can tell"
        starts = [final.start_s for final in finals]
        assert starts == sorted(starts)
        assert len(finals) == len(whole.utterances)
        for final, expected in zip(finals, whole.utterances, strict=True):
            assert final.end_s == pytest.approx(expected.end_s, abs=0.25)
            assert final.emotion is not None
            assert expected.emotion is not None
            assert final.emotion.arousal == pytest.approx(expected.emotion.arousal, abs=0.05)
    finally:
        if successor is not None:
            successor.terminate()
            successor.wait(15)
        server.stop()


@pytest.mark.parametrize("silence_s", [24, 34])
async def test_a_silence_longer_than_what_is_kept_needs_no_replay(target: str, silence_s: int) -> None:
    """The connection is lost when far more audio had come than is kept, but no speech in it."""
    speech = sound(("speech", 1.0), ("silence", 0.8))
    quiet = np.zeros(silence_s * 16000, np.int16)
    async with (
        Proxy(int(target.rpartition(":")[2])) as proxy,
        AsyncClient(f"127.0.0.1:{proxy.port}", retry=RetryPolicy(replay_limit_s=14)) as client,
        client.conversation().turn() as turn,
    ):
        await turn.push(quiet)
        settled_s = 0.0
        async with asyncio.timeout(20):
            while settled_s < silence_s // 10 * 10 - 5:
                event = await anext(turn)
                settled_s = event.settled_s if isinstance(event, StreamProgress) else settled_s
        proxy.reset()
        await turn.push((32767 * speech).astype(np.int16))
        turn.end()
        events = [event async for event in turn]
        assert any(isinstance(e, StreamStarted) and e.reconnects == 1 for e in events)
        (final,) = (e for e in events if isinstance(e, UtteranceResult))
        assert final.start_s == pytest.approx(silence_s, abs=0.5)  # the pre-roll is in it
        assert (await turn.result()).utterance_count == 1


@pytest.mark.parametrize("rate_hz", [8000, 11025, 16000, 22050, 44100, 48000])
async def test_a_turn_of_any_rate_resumes_with_what_it_had(target: str, rate_hz: int) -> None:
    """No sample of most rates begins exactly where a final ends."""
    parts = [sound(("speech", 0.8 + n / 7), ("silence", 0.9), rate=rate_hz, seed=n) for n in range(3)]
    async with (
        Proxy(int(target.rpartition(":")[2])) as proxy,
        AsyncClient(f"127.0.0.1:{proxy.port}") as client,
        client.conversation().turn(sample_rate_hz=rate_hz) as turn,
    ):
        finals: list[UtteranceResult] = []
        for number, part in enumerate(parts):
            await turn.push((32767 * part).astype(np.int16))
            while len(finals) <= number:
                event = await anext(turn)
                finals += [event] if isinstance(event, UtteranceResult) else []
            proxy.reset()
        turn.end()
        finals += [event async for event in turn if isinstance(event, UtteranceResult)]
        result = await turn.result()
    assert (result.utterance_count, result.missing_utterance_count) == (len(finals), 0)
    assert result.speech_s == pytest.approx(sum(f.analyzed_s for f in finals))


def test_a_server_that_cannot_start_says_why() -> None:
    with pytest.raises(ServerStartError, match=r"exit code 1(.|\n)*none\.pem"):
        ServerProcess("stub", [*STUB, "--tls-cert", "none.pem", "--tls-key", "none.pem"]).start()


def test_a_server_that_does_not_get_ready_is_stopped() -> None:
    server = ServerProcess("stub?delay_s=60", STUB, ready_timeout_s=0.2)
    with pytest.raises(ServerStartError, match=r"not ready within 0\.2 s"):
        server.start()
    assert server._process is not None
    assert server._process.poll() is not None


def test_a_server_is_stopped_by_its_pid() -> None:
    server = ServerProcess("stub", STUB)
    with server:
        pid = server.pid
        server.start()
        assert server.pid == pid, "starting what runs changes nothing"
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert "serving on" in server.stderr
    with pytest.raises(RuntimeError, match="not been started"):
        _ = server.target


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificates of this test")
    folder = tmp_path_factory.mktemp("tls")
    request = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
    )
    for name in ("server", "other"):
        subprocess.run(
            [*request.split(), "-keyout", f"{name}.key", "-out", f"{name}.pem"],
            cwd=folder,
            check=True,
            capture_output=True,
        )
    (folder / "tokens").write_text(f"lab {hashlib.sha256(b'open sesame').hexdigest()}\n")
    return folder


async def test_tls_and_token(certificates: Path, speech: np.ndarray) -> None:
    arguments = ["--tls-cert", certificates / "server.pem", "--tls-key", certificates / "server.key"]
    arguments += ["--token-file", certificates / "tokens"]
    server = ServerProcess("stub", [*STUB, *map(str, arguments)])
    await asyncio.to_thread(server.start)
    once = RetryPolicy(max_attempts=1)
    try:
        ca = certificates / "server.pem"
        async with AsyncClient(server.target, root_certificates=ca, token="open sesame") as client:
            async with client.conversation().turn() as turn:
                await turn.push(speech[:32000])
            assert turn.ended
        for token in (None, "open barley"):
            async with AsyncClient(server.target, root_certificates=ca, token=token) as client:
                with pytest.raises(AuthenticationError):
                    async with client.conversation().turn():
                        pass
        other = certificates / "other.pem"
        async with AsyncClient(server.target, root_certificates=other, token="open sesame", retry=once) as client:
            with pytest.raises(UnavailableError, match="root_certificates"):
                async with client.conversation().turn():
                    pass
        async with AsyncClient(server.target, retry=once) as client:
            with pytest.raises(UnavailableError, match="tls=True"):
                await client.service_info()
    finally:
        server.stop()


async def test_mutual_tls(certificates: Path, speech: np.ndarray) -> None:
    """The server asks for a certificate of the client's own; without one there is no connection."""
    arguments = ["--tls-cert", certificates / "server.pem", "--tls-key", certificates / "server.key"]
    arguments += ["--tls-client-ca", certificates / "other.pem"]
    server = ServerProcess("stub", [*STUB, *map(str, arguments)])
    await asyncio.to_thread(server.start)
    try:
        ca, chain, key = (certificates / name for name in ("server.pem", "other.pem", "other.key"))
        async with AsyncClient(server.target, root_certificates=ca, certificate_chain=chain, private_key=key) as client:
            async with client.conversation().turn() as turn:
                await turn.push(speech[:32000])
            assert turn.ended
        once = RetryPolicy(max_attempts=1)
        async with AsyncClient(server.target, root_certificates=ca, retry=once) as client:
            with pytest.raises(UnavailableError):
                async with client.conversation().turn():
                    pass
    finally:
        server.stop()


@pytest.mark.slow
async def test_a_frozen_server_is_noticed(speech: np.ndarray) -> None:
    """SIGSTOP: nothing is closed, nothing answers. Keepalive notices within 20 s + 5 s."""
    server = ServerProcess("stub", STUB)
    await asyncio.to_thread(server.start)
    try:
        async with AsyncClient(server.target, retry=RetryPolicy(max_attempts=1)) as client:
            with pytest.raises(UnavailableError):
                async with asyncio.timeout(40):
                    async with client.conversation().turn() as turn:
                        await turn.push(speech)
                        os.kill(server.pid, signal.SIGSTOP)
                        await turn.result()
    finally:
        os.kill(server.pid, signal.SIGCONT)
        server.stop()
