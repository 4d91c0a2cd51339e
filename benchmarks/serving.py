"""Start-up, time to the final and memory of a real server: a hubert-base-size bundle beside demo-tiny, in one run.

    python benchmarks/serving.py [--quick] [--json]

The hubert-base-size bundle has random weights: its estimates mean nothing, its arithmetic is the real one. Audio is
sent at the pace of speech, in chunks of 100 ms, on one stream. Two times to the final are measured from the moment
the chunk with the last speech sample was sent: until the server has noticed the silence itself (it waits
`utterance_end_silence` for that), and where the client says `end_of_turn` at once. Linux only (/proc).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from kibun.bench.speech_like import speech_like
from kibun.client import AsyncClient, StreamEnded, UtteranceResult

RATE = 16_000
CHUNK = RATE // 10


def base_size_bundle(folder: Path) -> Path:
    """HuBERT-base's sizes, random weights, three tails."""
    import torch

    from kibun.models.config import KibunConfig
    from kibun.models.model import KibunModel

    torch.manual_seed(0)
    KibunModel(KibunConfig(bundle_name="base-random")).save_pretrained(folder)
    return folder


class Server:
    """`kibun serve` as its own process."""

    def __init__(self, model: str, folder: Path) -> None:
        port_file = folder / f"port-{time.monotonic_ns()}"
        command = [sys.executable, "-m", "kibun.client.main", "serve", "--model", model, "--allow-untrained"]
        began = time.perf_counter()
        self.process = subprocess.Popen(
            [*command, "--port", "0", "--port-file", str(port_file)], stderr=subprocess.DEVNULL
        )
        while not port_file.exists():
            if self.process.poll() is not None:
                raise SystemExit(f"the server ended with {self.process.returncode}")
            time.sleep(0.005)
        self.serving_s = time.perf_counter() - began
        self.target = f"127.0.0.1:{port_file.read_text().strip()}"

    def peak_mb(self) -> dict[str, float]:
        """Peak resident memory of the front and of the worker, MB."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return {"front": _peak_mb(self.process.pid), "worker": sum(_peak_mb(int(pid)) for pid in children)}

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()


def _peak_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


async def final_after_ms(client: AsyncClient, seconds: float, *, end_of_turn: bool, seed: int) -> float:
    """Milliseconds from sending the last speech sample to the utterance's final."""
    speech = speech_like(seconds, RATE, seed=seed)
    audio = np.concatenate([np.zeros(RATE // 2, np.float32), speech, np.zeros(2 * RATE, np.float32)])
    pcm = (audio * 32767).astype("<i2").tobytes()
    last_speech = RATE // 2 + len(speech)
    spoken_at = final_at = 0.0
    async with client.conversation(f"bench-{time.monotonic_ns()}").turn() as turn:

        async def send() -> None:
            nonlocal spoken_at
            begin = time.perf_counter()
            for start in range(0, len(audio), CHUNK):
                await asyncio.sleep(max(0.0, begin + (start + CHUNK) / RATE - time.perf_counter()))
                if end_of_turn and start + CHUNK >= last_speech:
                    await turn.push(pcm[2 * start : 2 * last_speech])
                    spoken_at = time.perf_counter()
                    break
                await turn.push(pcm[2 * start : 2 * (start + CHUNK)])
                if not spoken_at and start + CHUNK >= last_speech:
                    spoken_at = time.perf_counter()
            turn.end()

        sender = asyncio.create_task(send())
        async for event in turn:
            if isinstance(event, UtteranceResult) and event.is_final:
                final_at = time.perf_counter()
            if isinstance(event, StreamEnded):
                break
        await sender
    return (final_at - spoken_at) * 1000


async def measure(name: str, model: str, folder: Path, quick: bool) -> dict[str, Any]:
    rounds = 1 if quick else 3
    starts = []
    for _ in range(rounds):
        server = Server(model, folder)
        starts.append(server.serving_s)
        if len(starts) < rounds:
            server.stop()
    result: dict[str, Any] = {"model": name, "serving_after_s": statistics.median(starts)}
    try:
        async with AsyncClient(server.target) as client:
            for seconds in (2.0,) if quick else (2.0, 5.0, 10.0):
                for end_of_turn in (False, True):
                    times = [
                        await final_after_ms(client, seconds, end_of_turn=end_of_turn, seed=seed)
                        for seed in range(rounds)
                    ]
                    key = f"final_ms_{seconds:g}s_{'end_of_turn' if end_of_turn else 'silence'}"
                    result[key] = statistics.median(times)
        result["peak_mb"] = server.peak_mb()
    finally:
        server.stop()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        bundles = {"hubert-base size, random": str(base_size_bundle(folder / "base")), "demo-tiny": "demo-tiny"}
        results = [asyncio.run(measure(name, model, folder, options.quick)) for name, model in bundles.items()]
    if options.json:
        machine = {"cores": os.cpu_count(), "processor": platform.processor(), "python": platform.python_version()}
        print(json.dumps({"machine": machine, "results": results}))
        return
    for key in results[0]:
        print(f"{key:32}", *(_text(result[key]) for result in results), sep="  ")


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:>26.1f}"
    if isinstance(value, dict):
        return f"{' / '.join(f'{k} {v:.0f}' for k, v in value.items()):>26}"
    return f"{value:>26}"


if __name__ == "__main__":
    main()
