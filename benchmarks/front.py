"""CPU of the front without the model: what it costs to receive, decode, resample and segment a stream.

    python benchmarks/front.py [--streams 50] [--seconds 20] [--quick] [--json]

`kibun serve` runs with a stub in place of models; clients in this process send 100 ms chunks of LINEAR16 at the pace
of speech (one second of it, then 0.8 s of silence), with voice activity events. Measured is the CPU time of the
server's main process over the window in which all streams talk. Linux only (/proc).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from serving import Server, Talk, config, connect, encode, serve, sound

from kibun.v1 import speech_analysis_pb2 as pb
from kibun.v1.speech_analysis_pb2_grpc import SpeechAnalysisServiceStub

CHUNK_S = 0.1


@dataclass(frozen=True)
class Cost:
    """CPU of the server's main process."""

    rate_hz: int
    streams: int
    seconds: float
    cpu_seconds: float
    core_share_per_stream: float  # cores, that is CPU seconds per stream-second
    us_per_chunk: float
    finals: int


def cpu_seconds(server: Server) -> float:
    """User and system time of the main process, all its threads."""
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def talk(stub: SpeechAnalysisServiceStub, payload: bytes, rate_hz: int, start_s: float, end_s: float) -> int:
    """Sends at the pace of speech from `start_s` to `end_s` of the loop's clock; returns the number of finals."""
    loop = asyncio.get_running_loop()
    size = 2 * int(rate_hz * CHUNK_S)
    finals = 0
    features = pb.AnalysisFeatures(enable_voice_activity_events=True)
    async with Talk(stub) as stream:
        await stream.send(config(rate=rate_hz, features=features))

        async def read() -> None:
            nonlocal finals
            await stream.rest()
            finals = sum(r.utterance_result.is_final for r in stream.responses)

        reading = asyncio.create_task(read())
        due_s, position = start_s, 0
        while due_s < end_s:
            await asyncio.sleep(due_s - loop.time())
            await stream.send(pb.StreamingAnalyzeRequest(audio_content=payload[position : position + size]))
            position = (position + size) % len(payload)
            due_s += CHUNK_S
        await stream.call.done_writing()
        await reading
    return finals


async def measure(streams: int, seconds: float, rate_hz: int) -> Cost:
    payload = encode(sound(("speech", 1.0), ("silence", 0.8), ("speech", 1.0), ("silence", 0.8), rate=rate_hz))
    with serve() as server:
        async with connect(server) as stub:
            begin = asyncio.get_running_loop().time() + 1.0
            measured_from, measured_to = begin + 1.0, begin + 1.0 + seconds
            # Not in step: each starts at its own time within the first 100 ms.
            talks = [
                asyncio.create_task(
                    talk(stub, payload, rate_hz, begin + n / streams * CHUNK_S, measured_to + 2 * CHUNK_S)
                )
                for n in range(streams)
            ]
            await asyncio.sleep(measured_from - asyncio.get_running_loop().time())
            before = cpu_seconds(server)
            await asyncio.sleep(measured_to - asyncio.get_running_loop().time())
            used = cpu_seconds(server) - before
            finals = sum(await asyncio.gather(*talks))
    share = used / (streams * seconds)
    return Cost(rate_hz, streams, seconds, round(used, 3), round(share, 5), round(share * CHUNK_S * 1e6, 1), finals)


def main() -> None:
    """Measure at 16 and 48 kHz and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--quick", action="store_true", help="10 streams, 3 s")
    parser.add_argument("--json", action="store_true", dest="as_json")
    options = parser.parse_args()
    if options.quick:
        options.streams, options.seconds = 10, 3.0
    costs = [asyncio.run(measure(options.streams, options.seconds, rate)) for rate in (16_000, 48_000)]
    if options.as_json:
        machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
        print(json.dumps({"machine": machine, "costs": [asdict(cost) for cost in costs]}, indent=2))
        return
    for cost in costs:
        print(f"{cost.rate_hz} Hz, {cost.streams} streams, {cost.seconds:g} s, {cost.finals} finals:", end=" ")
        print(f"{cost.core_share_per_stream:.2%} of a core per stream, {cost.us_per_chunk:.0f} µs per 100 ms chunk")


if __name__ == "__main__":
    main()
