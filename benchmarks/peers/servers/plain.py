"""grpc.aio and transformers, nothing else: one utterance after the other in each thread of a pool."""

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc.aio

from peers.model import Model
from peers.settings import Settings

SETTINGS = Settings.read()


async def main() -> None:
    """Serve until killed."""
    model, loop = Model(SETTINGS), asyncio.get_running_loop()
    pool = ThreadPoolExecutor(SETTINGS.workers)

    async def analyze(request: bytes, context: Any) -> bytes:
        (estimates,) = await loop.run_in_executor(pool, model.analyze, [request])
        return json.dumps(estimates).encode()

    most = None if SETTINGS.shed is None else round(SETTINGS.shed)
    server = grpc.aio.server(maximum_concurrent_rpcs=most)
    handlers = {"Analyze": grpc.unary_unary_rpc_method_handler(analyze)}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("Plain", handlers)])
    server.add_insecure_port(f"127.0.0.1:{SETTINGS.port}")
    await server.start()
    await server.wait_for_termination()


asyncio.run(main())
