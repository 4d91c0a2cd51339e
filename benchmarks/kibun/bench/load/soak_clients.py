"""Many people who speak for a long time, in a separate process: `python -m kibun.bench.load.soak_clients`.

Each has its own connection and opens a stream per turn, the next one while the last one drains, and a
conversation every two turns. All send the same audio, so all must get the same finals.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import count
from typing import Any, Literal

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from kibun.bench.load.front_clients import CHUNK_S
from kibun.bench.load.generator import METHOD
from kibun.bench.support.child import answer
from kibun.bench.support.speech_like import lay_out
from kibun.client.status import error_from_rpc
from kibun.models.types import SAMPLE_RATE_HZ
from kibun.server.audio.decoder import AudioDecoder, AudioFormat
from kibun.server.audio.endpointing import EndpointingOptions, EndReason, SpeechSegment
from kibun.server.audio.segmenter import Segmenter
from kibun.server.audio.vad import make_vad
from kibun.v1 import speech_analysis_pb2 as pb

SPOKEN: tuple[tuple[Literal["silence", "speech"], float], ...] = (("silence", 0.4), ("speech", 2.4), ("silence", 0.9))
TURNS = 2  # of a conversation, and …
TTL_S = 20  # … how long it is kept after them: what conversations weigh must not look like a leak
PROBE_S = 1.0
OPENING_S = 1.0  # until the first speaks
AT_ONCE = 50  # streams that are opened and dropped

# As in any deployment, clients prove who they are. The prober's tenant may have one stream, which it holds: every other
# one is refused, and it measures how soon.
CLIENTS_TOKEN, PROBE_TOKEN = "kibun-bench-clients", "kibun-bench-probe"
REFUSAL = "TENANT_STREAM_LIMIT"

Span = tuple[float, float]


@dataclass
class Tally:
    """What the clients of one run saw. Times in milliseconds."""

    turns: int = 0
    finals: int = 0
    lost: int = 0  # finals that a turn should have had
    doubled: int = 0
    unaccounted: int = 0  # turns whose samples do not add up
    final_ms: list[float] = field(default_factory=list)  # from when the utterance could be known to be over
    late_ms: list[float] = field(default_factory=list)  # how late messages were sent: the clients' own fault
    health_ms: list[float] = field(default_factory=list)
    refusal_ms: list[float] = field(default_factory=list)  # from opening a stream until it was refused
    failures: dict[str, int] = field(default_factory=dict)  # turns, by reason


class Soak:
    """Answers what `kibun.bench.load.soak` asks."""

    def __init__(self) -> None:
        self._messages: list[bytes] = []
        self._known_s: dict[Span, float] = {}  # expected finals, and after how much audio each can be known

    def handle(self, what: str, **details: Any) -> dict[str, Any]:
        """Answer one question of `Child.ask`."""
        actions: dict[str, Any] = {"learn": self._learn, "talk": self._talk, "once": self._once, "drop": self._drop}
        found: dict[str, Any] = asyncio.run(actions[what](**details))
        return found

    async def _learn(self, target: str, turn_s: float) -> dict[str, Any]:
        """Prepares the audio and the expected finals; returns whether one stream alone gets exactly those."""
        rounds = round(turn_s / sum(seconds for _, seconds in SPOKEN))
        chunks = _chunks(max(rounds, 1))
        self._messages = [pb.StreamingAnalyzeRequest(audio_content=chunk).SerializeToString() for chunk in chunks]
        self._known_s = _known(chunks)
        tally = Tally()
        async with _channel(target) as channel:
            spans, accounted = await _Turn(channel, self._messages, self._known_s, tally).run("alone", "turn", None)
        same = accounted and spans == list(self._known_s)
        return {"finals": len(spans), "as_segmented": same, "failures": tally.failures}

    async def _talk(self, target: str, streams: int, seconds: float) -> dict[str, Any]:
        """`streams` people, whose starts are spread over the first turn."""
        tally, loop = Tally(), asyncio.get_running_loop()
        turn_s = len(self._messages) * CHUNK_S
        begin = loop.time() + OPENING_S
        starts = [begin + number * min(turn_s, seconds / 2) / streams for number in range(streams)]
        probing = asyncio.create_task(_probe(target, tally))
        people = (
            self._person(target, f"person-{number}", start, begin + seconds, tally)
            for number, start in enumerate(starts)
        )
        await asyncio.gather(*people)
        probing.cancel()
        return asdict(tally)

    async def _once(self, target: str, streams: int, ramp_s: float) -> dict[str, Any]:
        """`streams` people who say one turn each; their starts are spread over `ramp_s`, from `OPENING_S` on."""
        tally = Tally()
        begin = asyncio.get_running_loop().time() + OPENING_S

        async def say(number: int) -> None:
            start = begin + ramp_s * number / streams
            await asyncio.sleep(start - asyncio.get_running_loop().time())
            async with _channel(target) as channel:
                await self._turn(channel, f"{streams}-{number}", "turn", start, tally)

        await asyncio.gather(*map(say, range(streams)))
        return asdict(tally)

    async def _person(self, target: str, name: str, start: float, end: float, tally: Tally) -> None:
        turn_s = len(self._messages) * CHUNK_S
        draining: set[asyncio.Task[None]] = set()
        async with _channel(target) as channel:
            for number in count():
                begin = start + number * turn_s
                if number and begin + turn_s > end:
                    break
                await asyncio.sleep(begin - asyncio.get_running_loop().time())
                conversation = f"{name}-{number // TURNS}"
                turn = asyncio.create_task(self._turn(channel, conversation, f"turn-{number}", begin, tally))
                draining.add(turn)
                turn.add_done_callback(draining.discard)
                await asyncio.sleep(begin + turn_s - CHUNK_S / 2 - asyncio.get_running_loop().time())
            await asyncio.gather(*draining)

    async def _turn(self, channel: grpc.aio.Channel, name: str, turn_id: str, begin: float, tally: Tally) -> None:
        spans, accounted = await _Turn(channel, self._messages, self._known_s, tally).run(name, turn_id, begin)
        tally.turns += 1
        tally.finals += len(spans)
        tally.lost += len(self._known_s.keys() - set(spans))
        tally.doubled += len(spans) - len(set(spans))
        tally.unaccounted += not accounted

    async def _drop(self, target: str, streams: int) -> dict[str, Any]:
        """Opens streams and cancels them once they are accepted."""
        left, refused = iter(range(streams)), 0

        async def one_after_the_other() -> None:
            nonlocal refused
            async with _channel(target) as channel:
                for _ in left:
                    call = _stream(channel)
                    with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                        await call.write(_config("", ""))
                        if await call.read() is grpc.aio.EOF:
                            refused += 1
                    call.cancel()

        await asyncio.gather(*(one_after_the_other() for _ in range(min(AT_ONCE, streams))))
        return {"refused": refused}


@dataclass
class _Turn:
    """One stream."""

    channel: grpc.aio.Channel
    messages: Sequence[bytes]
    known_s: dict[Span, float]
    tally: Tally

    async def run(self, conversation: str, turn_id: str, begin: float | None) -> tuple[list[Span], bool]:
        """The finals' spans in seconds, and whether all samples are accounted for; `begin` None: at full speed."""
        call = _stream(self.channel)
        sending = asyncio.create_task(self._send(call, _config(conversation, turn_id), begin))
        spans: list[Span] = []
        accounted = False
        try:
            while (reply := await call.read()) is not grpc.aio.EOF:
                if reply.HasField("utterance_result"):
                    spans.append(self._final(reply.utterance_result, begin))
                elif reply.HasField("stream_ended"):
                    accounted = self._accounted(reply.stream_ended)
        except grpc.aio.AioRpcError as error:
            reason = error_from_rpc(error, "").details.reason
            self.tally.failures[reason] = self.tally.failures.get(reason, 0) + 1
        finally:
            sending.cancel()
        return spans, accounted

    def _final(self, result: Any, begin: float | None) -> Span:
        start, end = (d.seconds + d.nanos / 1e9 for d in (result.start_offset, result.end_offset))
        if begin is not None and (start, end) in self.known_s:
            due = begin + self.known_s[start, end]
            self.tally.final_ms.append(1000 * (asyncio.get_running_loop().time() - due))
        return start, end

    def _accounted(self, ended: Any) -> bool:
        parts = (ended.speech_duration, ended.non_speech_duration, ended.dropped_duration)
        samples = [round((d.seconds + d.nanos / 1e9) * SAMPLE_RATE_HZ) for d in (ended.audio_received, *parts)]
        return bool(samples[0] == sum(samples[1:]) == round(len(self.messages) * CHUNK_S * SAMPLE_RATE_HZ))

    async def _send(self, call: Any, config: bytes, begin: float | None) -> None:
        loop = asyncio.get_running_loop()
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):  # refused: the reader gets the reason
            await call.write(config)
            for number, message in enumerate(self.messages, 1):
                if begin is not None:
                    due = begin + number * CHUNK_S
                    await asyncio.sleep(due - loop.time())
                    self.tally.late_ms.append(1000 * (loop.time() - due))
                await call.write(message)
            await call.done_writing()


async def _probe(target: str, tally: Tally) -> None:
    """Measures, once a second, how soon the server answers a health check and refuses a stream too many."""
    loop = asyncio.get_running_loop()
    async with _channel(target) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        probe = _stream(channel, PROBE_TOKEN)
        await probe.write(_config("", ""))
        await probe.read()
        while True:
            asked = loop.time()
            await stub.Check(health_pb2.HealthCheckRequest())
            tally.health_ms.append(1000 * (loop.time() - asked))
            asked = loop.time()
            try:
                await _stream(channel, PROBE_TOKEN).read()
            except grpc.aio.AioRpcError as error:
                reason = error_from_rpc(error, "").details.reason
                if reason != REFUSAL:
                    tally.failures[reason] = tally.failures.get(reason, 0) + 1
                tally.refusal_ms.append(1000 * (loop.time() - asked))
            await asyncio.sleep(PROBE_S)


def _channel(target: str) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(target, options=[("grpc.use_local_subchannel_pool", 1)])  # its own connection


def _stream(channel: grpc.aio.Channel, token: str = CLIENTS_TOKEN) -> Any:
    method = channel.stream_stream(METHOD, response_deserializer=pb.StreamingAnalyzeResponse.FromString)
    return method(metadata=(("authorization", f"Bearer {token}"),))


def _config(conversation: str, turn_id: str) -> bytes:
    config = pb.StreamingAnalyzeConfig(
        audio_config=pb.AudioConfig(encoding=pb.AUDIO_ENCODING_LINEAR16, sample_rate_hertz=SAMPLE_RATE_HZ),
        conversation_id=conversation,
        turn_id=turn_id,
        conversation_ttl={"seconds": TTL_S},
    )
    return pb.StreamingAnalyzeRequest(streaming_config=config).SerializeToString()


def _chunks(rounds: int) -> list[bytes]:
    """LINEAR16 in whole messages."""
    audio = lay_out(list(SPOKEN) * rounds, rate=SAMPLE_RATE_HZ, seed=0).audio
    pcm, size = (32767 * audio).round().astype("<i2").tobytes(), 2 * round(CHUNK_S * SAMPLE_RATE_HZ)
    return [pcm[at : at + size] for at in range(0, len(pcm) - len(pcm) % size, size)]


def _known(chunks: Sequence[bytes]) -> dict[Span, float]:
    """The utterances in it, each with the seconds of audio after which it is known to be over."""
    options = EndpointingOptions()
    segmenter = Segmenter(options, make_vad("silero", options.vad_aggressiveness))
    decoder = AudioDecoder(AudioFormat("linear16", SAMPLE_RATE_HZ))
    known: dict[Span, float] = {}
    for number, chunk in enumerate([*chunks, b""], 1):
        found = segmenter.push(decoder.decode(chunk)) if chunk else segmenter.flush(EndReason.HALF_CLOSE)
        for event in found:
            if isinstance(event, SpeechSegment):
                known[event.start / SAMPLE_RATE_HZ, event.end / SAMPLE_RATE_HZ] = min(number, len(chunks)) * CHUNK_S
    return known


if __name__ == "__main__":
    answer(Soak().handle)
