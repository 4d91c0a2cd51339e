"""Servers beside `kibun serve`, in separate processes: `python -m kibun.bench.load.front_servers WHICH`.

`empty`: a grpc.aio server that reads a stream and does nothing else, the least that any front in Python costs.
`sampled`: kibun's own server with a task beside it that measures how late the event loop is.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from kibun.bench.support.child import answer
from kibun.server.serving import GRPC_OPTIONS, Server
from kibun.server.settings import Settings

METHOD = "/kibun.bench.Empty/Read"
STUB_LOADER = "kibun.bench.support.stub_model:load"
SAMPLE_S = 0.01


class LagSamples:
    """How much later than asked a sleeping task goes on, in milliseconds; sleeps of 10 ms."""

    def __init__(self) -> None:
        self._ms: list[float] = []

    async def run(self) -> None:
        """Samples until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + SAMPLE_S
            await asyncio.sleep(SAMPLE_S)
            self._ms.append(1000 * (loop.time() - due))

    def take(self) -> list[float]:
        """What was sampled since the last call."""
        taken, self._ms = self._ms, []
        return taken


async def _empty(ready: Callable[[int], None]) -> None:
    async def read(requests: AsyncIterator[bytes], context: Any) -> None:
        async for _ in requests:
            pass

    server = grpc.aio.server(options=GRPC_OPTIONS)
    _, service, method = METHOD.split("/")
    handler = grpc.stream_stream_rpc_method_handler(read)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    ready(port)
    await server.wait_for_termination()


async def _sampled(ready: Callable[[int], None], lags: LagSamples) -> None:
    # What it announces on stderr is for operators; what goes wrong is raised.
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        port_file = Path(folder) / "port"
        server = Server(Settings(models=("stub",), port=0, port_file=port_file, loader=STUB_LOADER))
        serving = asyncio.create_task(server.run())
        while not port_file.exists() and not serving.done():  # noqa: ASYNC110 - as any program that starts a server
            await asyncio.sleep(0.05)
        ready(server.port)
        await asyncio.gather(serving, lags.run())


async def _main(which: str) -> None:
    lags, port = LagSamples(), asyncio.get_running_loop().create_future()
    running = asyncio.create_task(_sampled(port.set_result, lags) if which == "sampled" else _empty(port.set_result))
    await asyncio.wait((running, port), return_when=asyncio.FIRST_COMPLETED)
    if running.done():
        running.result()  # raises what went wrong
    target = f"127.0.0.1:{port.result()}"

    def handle(what: str) -> dict[str, Any]:
        return {"target": target} if what == "target" else {"ms": lags.take()}

    await asyncio.to_thread(answer, handle)


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1]))
