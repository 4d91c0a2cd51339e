"""Streams of a process that is to be killed: `python -m kibun.bench.faults.victims TARGET COUNT`.

Each pushes audio for ever. Writes "speaking" to stdout once all are open.
"""

from __future__ import annotations

import asyncio
import sys

from kibun.bench.support.speech_like import speech_like
from kibun.client.client import AsyncClient


async def main(target: str, count: int) -> None:
    """Never returns."""
    chunk = (32767 * speech_like(0.1)).astype("int16")
    async with AsyncClient(target) as client:
        turns = [client.conversation(f"victim-{number}").turn() for number in range(count)]
        await asyncio.gather(*(turn.open() for turn in turns))
        print("speaking", flush=True)
        while True:
            await asyncio.gather(*(turn.push(chunk) for turn in turns))
            await asyncio.sleep(0.1)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
