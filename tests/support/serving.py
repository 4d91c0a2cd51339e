"""A real `kibun serve` in a separate process, and a plain gRPC client to talk to it.

Not the SDK: the contract is tested as any client in any language meets it.
"""

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import grpc
import numpy as np
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from kibun.bench.faults.servers import listens
from kibun.bench.support.speech_like import lay_out
from kibun.v1 import speech_analysis_pb2 as pb
from kibun.v1 import speech_analysis_pb2_grpc as rpc
from tests.support import ROOT

RATE_HZ = 16_000
EAGER_FINALS = True  # whether `config` leaves them on; see the fixture `eager_finals` of the contract's tests
STUB_LOADER = "tests.support.stub_model:load"
SERVE = "import sys; from kibun.client.main import main; sys.argv[0] = 'kibun'; sys.exit(main())"
Encoding = Literal["linear16", "float32", "mulaw", "alaw"]


class RunningServer:
    """A running `kibun serve`."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self.process = process
        self.port = port
        self.log = log

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    def terminate(self) -> None:
        """What an operator does first."""
        self.process.send_signal(signal.SIGTERM)

    def wait(self, timeout_s: float = 10.0) -> int:
        """Exit code."""
        return self.process.wait(timeout_s)

    def threads_and_rss(self) -> tuple[int, int]:
        """Threads and resident bytes of the main process."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = {key: int(value) for key, value in re.findall(r"^(Threads|VmRSS):\s+(\d+)", status, re.MULTILINE)}
        return found["Threads"], found["VmRSS"] * 1024

    def peak_rss(self) -> int:
        """The most resident bytes of the main process since the last call."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")
        return int(re.findall(r"^VmHWM:\s+(\d+)", status, re.MULTILINE)[0]) * 1024


def command(*arguments: str, model: str = "stub", prelude: str = "") -> list[str]:
    program = f"{prelude}\n{SERVE}"
    return [sys.executable, "-c", program, "serve", "--model", model, "--loader", STUB_LOADER, *arguments]


def environment() -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, "KIBUN_LOG": "INFO"}


@contextlib.contextmanager
def serve(
    *arguments: str, model: str = "stub", wait: bool = True, port: int = 0, prelude: str = "", redirect: str = ""
) -> Iterator[RunningServer]:
    """Runs `kibun serve --model MODEL ARGUMENTS…` with stub models, killed at the end.

    `wait` False: wait only until it answers, not until it serves; `port` must be given then. `prelude`: Python that
    the server's process runs first, to make a part of it faulty. `redirect`: what a shell would be told of its standard
    streams, such as `2>&-`; without it, stderr goes to `log`.
    """
    with tempfile.TemporaryDirectory() as folder:
        port_file, log = Path(folder) / "port", Path(folder) / "log"
        with log.open("wb") as stderr:
            run = command("--port", str(port), "--port-file", str(port_file), *arguments, model=model, prelude=prelude)
            process = subprocess.Popen(
                ["sh", "-c", f'exec "$@" {redirect}', "sh", *run] if redirect else run,
                env=environment(),
                stdout=subprocess.DEVNULL,
                stderr=stderr,
            )
            try:
                while not (port_file.exists() if wait else listens(port)):
                    assert process.poll() is None, log.read_text()
                    time.sleep(0.02)
                yield RunningServer(process, int(port_file.read_text()) if wait else port, log)
            finally:
                process.kill()
                process.wait()


def workers_of(server: RunningServer) -> list[int]:
    """Process ids of its workers."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            if (
                parent == server.process.pid
                and b"kibun.server.inference.worker" in (stat.parent / "cmdline").read_bytes()
            ):
                found.append(int(stat.parent.name))
    return found


@contextlib.asynccontextmanager
async def connect(server: RunningServer, **options: int) -> AsyncIterator[rpc.SpeechAnalysisServiceStub]:
    async with grpc.aio.insecure_channel(server.target, options=list(options.items())) as channel:
        yield rpc.SpeechAnalysisServiceStub(channel)


@pytest.fixture
async def stub(server: RunningServer) -> AsyncIterator[rpc.SpeechAnalysisServiceStub]:
    """A client of the module's own `server`."""
    async with connect(server) as stub:
        yield stub


async def health_of(server: RunningServer, service: str = "") -> int:
    """What `Check` says of a service, "" for the whole server, once the server answers at all."""
    async with grpc.aio.insecure_channel(server.target) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service=service)
        return int((await stub.Check(request, wait_for_ready=True, timeout=10)).status)


# ---- sound


@cache
def sound(*parts: tuple[Literal["silence", "speech"], float], rate: int = RATE_HZ, seed: int = 0) -> np.ndarray:
    """float32 (n,): silence and speech in turn."""
    audio = lay_out(list(parts), rate=rate, seed=seed).audio
    audio.flags.writeable = False
    return audio


def spoken(seconds: float, *, rate: int = RATE_HZ, seed: int = 0, pause: float = 0.8) -> np.ndarray:
    """float32 (n,): one utterance, then a pause that closes it."""
    return sound(("silence", 0.4), ("speech", seconds), ("silence", pause), rate=rate, seed=seed)


def encode(audio: np.ndarray, encoding: Encoding = "linear16") -> bytes:
    """Raw bytes of float samples; G.711 by nearest table entry of the server's own tables."""
    if encoding == "float32":
        return audio.astype("<f4").tobytes()
    if encoding == "linear16":
        return (audio * 32767).round().astype("<i2").tobytes()
    from kibun.server.audio import decoder

    table = decoder.mulaw_table() if encoding == "mulaw" else decoder.alaw_table()
    order = np.argsort(table)
    nearest = np.searchsorted(table[order], audio).clip(0, 255)
    payload: bytes = order[nearest].astype(np.uint8).tobytes()
    return payload


# ---- requests


def seconds(value: float) -> Duration:
    nanos = round(value * 1e9)
    return Duration(seconds=nanos // 10**9, nanos=nanos % 10**9)


def config(
    *, rate: int = RATE_HZ, encoding: pb.AudioEncoding = pb.AUDIO_ENCODING_LINEAR16, **fields: Any
) -> pb.StreamingAnalyzeRequest:
    """The first message; `fields` are those of StreamingAnalyzeConfig."""
    fields.setdefault("audio_config", pb.AudioConfig(encoding=encoding, sample_rate_hertz=rate))
    message = pb.StreamingAnalyzeConfig(**fields)
    if not EAGER_FINALS:
        message.features.disable_eager_finals = True
    return pb.StreamingAnalyzeRequest(streaming_config=message)


def chunks(payload: bytes, size: int = 3200) -> list[pb.StreamingAnalyzeRequest]:
    """audio_content messages of `size` bytes."""
    return [
        pb.StreamingAnalyzeRequest(audio_content=payload[begin : begin + size])
        for begin in range(0, len(payload), size)
    ]


def end_of_turn(next_turn_id: str = "") -> pb.StreamingAnalyzeRequest:
    return pb.StreamingAnalyzeRequest(end_of_turn=pb.EndOfTurn(next_turn_id=next_turn_id))


async def converse(
    stub: rpc.SpeechAnalysisServiceStub,
    requests: Iterable[Any],
    *,
    metadata: Mapping[str, str] | None = None,
    pause_s: float = 0.0,
) -> list[pb.StreamingAnalyzeResponse]:
    """Sends everything, half-closes, returns every response."""

    async def spaced() -> AsyncIterator[Any]:
        for request in requests:
            yield request
            if pause_s:
                await asyncio.sleep(pause_s)

    call = stub.StreamingAnalyze(spaced(), metadata=tuple((metadata or {}).items()))
    try:
        return [response async for response in call]
    finally:
        call.cancel()


class Talk:
    """A stream written and read step by step."""

    def __init__(self, stub: rpc.SpeechAnalysisServiceStub, **options: Any) -> None:
        self.call = stub.StreamingAnalyze(**options)
        self.responses: list[pb.StreamingAnalyzeResponse] = []

    async def __aenter__(self) -> "Talk":
        return self

    async def __aexit__(self, *_: object) -> None:
        self.call.cancel()

    async def start(self, **fields: Any) -> pb.StreamStarted:
        """Sends the first message, see `config`; returns once the stream is open."""
        await self.send(config(**fields))
        started: pb.StreamStarted = await self.until("stream_started")
        return started

    async def send(self, *requests: pb.StreamingAnalyzeRequest) -> None:
        for request in requests:
            await self.call.write(request)

    async def until(self, kind: str, **fields: Any) -> Any:
        """Reads up to the next response of this kind whose fields have these values."""
        while True:
            response = await asyncio.wait_for(self.call.read(), 20)
            assert response is not grpc.aio.EOF, f"no {kind} before the end: {self.responses}"
            self.responses.append(response)
            if response.WhichOneof("streaming_response") == kind:
                value = getattr(response, kind)
                if all(getattr(value, name) == wanted for name, wanted in fields.items()):
                    return value

    async def finish(self) -> list[pb.StreamingAnalyzeResponse]:
        """Half-closes; returns all responses once the stream has ended."""
        await self.call.done_writing()
        return await self.rest()

    async def rest(self) -> list[pb.StreamingAnalyzeResponse]:
        """Reads to the end."""
        while (response := await self.call.read()) is not grpc.aio.EOF:
            self.responses.append(response)
        return self.responses


async def active(stub: rpc.SpeechAnalysisServiceStub) -> int:
    """How many streams are open on the server."""
    return int((await stub.GetServiceInfo(pb.GetServiceInfoRequest())).active_stream_count)


async def none_active(stub: rpc.SpeechAnalysisServiceStub, within_s: float = 20.0) -> float:
    """Seconds until no stream is open."""
    began = time.monotonic()
    while await active(stub):
        assert time.monotonic() - began < within_s, f"a stream is still open after {within_s} s"
        await asyncio.sleep(0.005)
    return time.monotonic() - began


# ---- responses


def of_kind(responses: Iterable[pb.StreamingAnalyzeResponse], kind: str) -> list[Any]:
    return [getattr(r, kind) for r in responses if r.WhichOneof("streaming_response") == kind]


def finals(responses: Iterable[pb.StreamingAnalyzeResponse]) -> list[pb.UtteranceResult]:
    return [u for u in of_kind(responses, "utterance_result") if u.is_final]


def times_and_emotions(responses: Iterable[pb.StreamingAnalyzeResponse]) -> list[tuple[float, ...]]:
    """Of the finals."""
    return [(u.start_offset.nanos, u.end_offset.nanos, u.emotion.arousal, u.emotion.valence) for u in finals(responses)]


def check_stream(responses: list[pb.StreamingAnalyzeResponse]) -> pb.StreamEnded:
    """What holds for every stream that did not fail."""
    kinds = [r.WhichOneof("streaming_response") for r in responses]
    assert [r.sequence_number for r in responses] == list(range(len(responses)))
    assert kinds[0] == "stream_started"
    assert kinds[-1] == "stream_ended"
    assert kinds.count("stream_started") == kinds.count("stream_ended") == 1
    received = [samples(r.audio_received) for r in responses]
    processed = [samples(r.audio_processed) for r in responses]
    assert received == sorted(received)
    assert processed == sorted(processed)
    assert all(p <= r for p, r in zip(processed, received, strict=True))

    ended = responses[-1].stream_ended
    parts = (ended.speech_duration, ended.non_speech_duration, ended.dropped_duration)
    assert samples(ended.audio_received) == received[-1] == processed[-1] == sum(map(samples, parts))
    assert samples(ended.speech_duration) == sum(samples(u.analyzed_duration) for u in finals(responses))
    _check_utterances_and_turns(responses)
    return ended


def _check_utterances_and_turns(responses: list[pb.StreamingAnalyzeResponse]) -> None:
    final_ids: set[str] = set()
    turns: set[str] = set()
    updates = 0
    ends = [0]
    for response in responses:
        match response.WhichOneof("streaming_response"):
            case "utterance_result":
                utterance = response.utterance_result
                assert utterance.utterance_id not in final_ids, "one final, and nothing after it"
                assert utterance.turn_id not in turns, "the turn's result comes after its last final"
                assert utterance.is_final == (utterance.end_reason != pb.END_REASON_UNSPECIFIED)
                if utterance.is_final:
                    final_ids.add(utterance.utterance_id)
                    start, end = samples(utterance.start_offset), samples(utterance.end_offset)
                    assert ends[-1] <= start < end, "utterances do not overlap"
                    ends.append(end)
            case "personality_update":
                updates += 1
                assert updates <= len(final_ids)
            case "turn_result":
                assert response.turn_result.turn_id not in turns, "one result per turn"
                turns.add(response.turn_result.turn_id)
    assert {u.utterance_id for u in of_kind(responses, "utterance_result")} == final_ids, "a final for each"
    assert {u.turn_id for u in of_kind(responses, "utterance_result")} <= turns, "a result for each turn"


def samples(duration: Duration) -> int:
    """Exact, or an error."""
    nanos = duration.seconds * 10**9 + duration.nanos
    assert nanos % 62_500 == 0, f"{duration} lies between samples"
    return nanos // 62_500


@dataclass(frozen=True)
class Problem:
    """A status as a client sees it."""

    code: grpc.StatusCode
    reason: str
    message: str
    field: str | None
    retry_s: float | None
    quota: str | None
    request_id: str


async def refused(
    stub: rpc.SpeechAnalysisServiceStub,
    *requests: pb.StreamingAnalyzeRequest,
    metadata: Mapping[str, str] | None = None,
) -> Problem:
    """The error of a stream that sends this and then waits.

    Where a server refuses a stream without reading, nothing must be sent: grpc.aio reports a write that comes
    too late as INTERNAL, in place of the status that the server sent.
    """
    async with Talk(stub, metadata=tuple((metadata or {}).items())) as talk:
        await talk.send(*requests)
        return await problem_of(talk.rest())


async def problem_of(work: Awaitable[Any]) -> Problem:
    """The error that `work` must end with; checks what every error must be."""
    try:
        outcome = await asyncio.wait_for(work, 20)
    except grpc.aio.AioRpcError as error:
        return problem(error)
    raise AssertionError(f"no error, but {outcome}")


def problem(error: grpc.aio.AioRpcError) -> Problem:
    status = rpc_status.from_call(error)
    assert status is not None, f"a bare status: {error.code()} {error.details()}"
    assert status.message == error.details()
    found: dict[type, Any] = {}
    for detail in status.details:
        for kind in (
            error_details_pb2.ErrorInfo,
            error_details_pb2.BadRequest,
            error_details_pb2.RetryInfo,
            error_details_pb2.QuotaFailure,
        ):
            if detail.Is(kind.DESCRIPTOR):
                found[kind] = kind.FromString(detail.value)
    info = found[error_details_pb2.ErrorInfo]
    assert info.domain == "kibun"
    assert re.fullmatch(r"[A-Z][A-Z0-9_]+", info.reason)
    no_internals(status.message)
    bad, retry = found.get(error_details_pb2.BadRequest), found.get(error_details_pb2.RetryInfo)
    quota = found.get(error_details_pb2.QuotaFailure)
    assert (bad is not None) == (error.code() is grpc.StatusCode.INVALID_ARGUMENT), "BadRequest goes with the code"
    return Problem(
        code=error.code(),
        reason=info.reason,
        message=status.message,
        field=bad.field_violations[0].field if bad else None,
        retry_s=retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9 if retry else None,
        quota=quota.violations[0].subject if quota else None,
        request_id=info.metadata["request_id"],
    )


def no_internals(text: str) -> None:
    """Says what to do, and nothing of the server's insides."""
    assert len(text) > 15
    assert not re.search(r"Traceback|\.py|kibun\.|/|Error\b|Exception|0x|object at|<class|None", text), text
