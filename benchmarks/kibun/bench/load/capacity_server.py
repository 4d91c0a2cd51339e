"""kibun's own server, with a task beside it that measures how late its event loop is, in a separate process:
`python -m kibun.bench.load.capacity_server TOKEN_FILE MAX_STREAMS`.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from kibun.bench.load.front_servers import STUB_LOADER, LagSamples
from kibun.bench.support.child import answer
from kibun.server.serving import Server
from kibun.server.settings import Settings


async def main(tokens: Path, max_streams: int) -> None:
    """Answers `Child.ask`: "target", "lag" (of each sample since it was last asked, in milliseconds)."""
    logging.disable(logging.ERROR)  # that the loop is late is what is measured
    lags = LagSamples()
    settings = Settings(models=("stub",), port=0, token_file=tokens, loader=STUB_LOADER)
    with tempfile.TemporaryDirectory() as folder:
        port_file = Path(folder) / "port"
        limits = replace(settings.limits, max_streams=max_streams)
        server = Server(replace(settings, port_file=port_file, limits=limits))
        serving = asyncio.create_task(server.run())
        while not port_file.exists() and not serving.done():  # noqa: ASYNC110 - as any program that starts a server
            await asyncio.sleep(0.05)
    sampling = asyncio.create_task(lags.run())

    def handle(what: str) -> dict[str, Any]:
        return {"target": f"127.0.0.1:{server.port}"} if what == "target" else {"ms": lags.take()}

    answering = asyncio.create_task(asyncio.to_thread(answer, handle))
    await asyncio.wait((serving, sampling, answering), return_when=asyncio.FIRST_COMPLETED)
    for task in (serving, sampling):
        if task.done():
            task.result()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
