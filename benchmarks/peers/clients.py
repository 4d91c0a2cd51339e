"""The clients, in a process of their own: `python -m peers.clients PEER TARGET MATERIAL.npz`.

The same utterances end at the same moments whoever serves. What is asked of a peer is asked once, nobody tries again,
and each goes by its natural way: kibun hears an utterance while it is spoken, in messages of 100 ms, and is told the
end of the turn; the others get it whole, at that same moment.
"""

from __future__ import annotations

import asyncio
import base64
import http.client
import json
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import grpc.aio

from kibun.bench.support import material
from kibun.bench.support.child import answer
from kibun.client import AsyncClient, KibunError, ResourceExhaustedError, RetryPolicy, UtteranceResult
from kibun.models.types import SAMPLE_RATE_HZ

_OVERLOADED = {429, 503, 504}
_ONCE = RetryPolicy(max_attempts=1)


@dataclass
class Reply:
    """What became of one utterance. Times on the monotonic clock, which all processes share."""

    utterance: int
    due: float  # when it ended
    sent: float  # kibun: when the stream was opened; others: when the request was made
    done: float | None = None
    outcome: str = "none"  # or "answered", "refused", "failed"
    reason: str = ""
    estimates: tuple[float, float] | None = None  # valence, arousal


class Refused(Exception):
    """The server turned the request away for its load."""


class Clients:
    """Of one server."""

    def __init__(self, peer: str, target: str, utterances: Sequence[material.Pcm]) -> None:
        self._target = target
        self._audio = [pcm.astype("<i2").tobytes() for pcm in utterances]
        base64s = [base64.b64encode(audio).decode() for audio in self._audio]
        self._ask: Callable[[int, float, float], Awaitable[tuple[float, float]]]
        self._early = peer == "kibun"
        self._path, self._bodies = "/", self._audio
        if peer == "LitServe":
            self._path, self._bodies = "/predict", [json.dumps({"audio": one}).encode() for one in base64s]
        elif peer == "BentoML":
            self._path, self._bodies = "/analyze", [json.dumps({"audio": [one]}).encode() for one in base64s]
        self._ask = {"kibun": self._kibun, "plain gRPC": self._plain}.get(peer, self._http)

    def handle(self, what: str, **details: Any) -> dict[str, Any]:
        """Answer one question of `Child.ask`."""
        actions = {"wait": self.wait, "speak": self.speak}
        return asyncio.run(self._connected(actions[what], **details))

    async def _connected(self, action: Any, **details: Any) -> dict[str, Any]:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(256))
        async with AsyncClient(self._target) as self._client, grpc.aio.insecure_channel(self._target) as channel:
            self._unary = channel.unary_unary("/Plain/Analyze")
            found: dict[str, Any] = await action(**details)
            return found

    async def wait(self, timeout_s: float) -> dict[str, Any]:
        """Until the server answers. Raises TimeoutError."""
        begin = time.monotonic()
        while True:
            reply = await self._speak(0, time.monotonic() + len(self._audio[0]) / 2 / SAMPLE_RATE_HZ, 5.0)
            if reply.outcome == "answered":
                return {"seconds": time.monotonic() - begin}
            if time.monotonic() - begin > timeout_s:
                raise TimeoutError(f"the server at {self._target} does not answer: {reply.reason}")
            await asyncio.sleep(0.3)

    async def speak(self, arrivals: Sequence[tuple[int, float]], patience_s: float) -> dict[str, Any]:
        """Utterances in real time, independent of the answers.

        arrivals: (utterance, seconds from now at which it begins). patience_s: after the end of an utterance.
        """
        begin, cpu = time.monotonic() + 0.1, time.process_time()
        lengths = [len(audio) / 2 / SAMPLE_RATE_HZ for audio in self._audio]
        tasks = [self._speak(index, begin + starts_s + lengths[index], patience_s) for index, starts_s in arrivals]
        replies = await asyncio.gather(*tasks)
        return {"replies": [asdict(reply) for reply in replies], "cpu_s": time.process_time() - cpu}

    async def _speak(self, index: int, due: float, patience_s: float) -> Reply:
        await _until(due - self._early * len(self._audio[index]) / 2 / SAMPLE_RATE_HZ)
        reply = Reply(index, due, time.monotonic())
        try:
            async with asyncio.timeout(due + patience_s - time.monotonic()):
                reply.estimates = await self._ask(index, due, patience_s)
            reply.outcome = "answered"
        except (Refused, ResourceExhaustedError) as error:
            reply.outcome, reply.reason = "refused", str(error)[:80]
        except (KibunError, grpc.aio.AioRpcError, OSError, http.client.HTTPException, TimeoutError) as error:
            reply.outcome, reply.reason = "failed", f"{type(error).__name__} {error}"[:120]
        reply.done = time.monotonic()
        return reply

    # ---- one utterance: its valence and arousal; `due` is when it ends

    async def _kibun(self, index: int, due: float, patience_s: float) -> tuple[float, float]:
        audio = self._audio[index]
        turn = self._client.conversation().turn(retry=_ONCE, sample_rate_hz=SAMPLE_RATE_HZ)

        async def spoken() -> Any:
            for at in range(0, len(audio), 2 * material.CHUNK):
                chunk = audio[at : at + 2 * material.CHUNK]
                await _until(due - (len(audio) - at - len(chunk)) / 2 / SAMPLE_RATE_HZ)
                yield chunk

        async with turn:
            turn.feed(spoken())
            async for event in turn:
                if isinstance(event, UtteranceResult) and event.is_final and event.emotion is not None:
                    return event.emotion.valence or 0.0, event.emotion.arousal or 0.0
        raise ConnectionError("the turn ended without a final")

    async def _plain(self, index: int, due: float, patience_s: float) -> tuple[float, float]:
        try:
            found = json.loads(await self._unary(self._audio[index]))
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
                raise Refused(error.details()) from error
            raise
        return found["valence"], found["arousal"]

    async def _http(self, index: int, due: float, patience_s: float) -> tuple[float, float]:
        return await asyncio.to_thread(self._post, self._bodies[index], patience_s)

    def _post(self, body: bytes, patience_s: float) -> tuple[float, float]:
        connection = http.client.HTTPConnection(self._target, timeout=patience_s)
        try:
            connection.request("POST", self._path, body, {"Content-Type": self._content_type})
            response = connection.getresponse()
            text = response.read()
        finally:
            connection.close()
        if response.status in _OVERLOADED:
            raise Refused(f"HTTP {response.status}")
        if response.status != 200:
            raise ConnectionError(f"HTTP {response.status}: {text[:60]!r}")
        found = json.loads(text)
        found = found[0] if isinstance(found, list) else found
        return found["valence"], found["arousal"]

    @property
    def _content_type(self) -> str:
        return "application/octet-stream" if self._path == "/" else "application/json"


async def _until(due: float) -> None:
    await asyncio.sleep(max(0.0, due - time.monotonic()))


if __name__ == "__main__":
    answer(Clients(sys.argv[1], sys.argv[2], material.read(Path(sys.argv[3]))).handle)
