"""`grpc.health.v1` for unauthenticated peers: holds no lock while writing, and its use of memory is bounded.

The implementation in grpcio-health-checking holds a lock while writing, so that a peer that does not read keeps the
status from ever changing. It also reads requests of any size, and forgets all watchers when one of them leaves.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
from grpc_health.v1 import health_pb2 as pb

SERVICE = "grpc.health.v1.Health"
MAX_READS = 16  # requests read at a time, each up to the server's message size; further checks are answered unread
MAX_WATCHERS = 256
MAX_REQUEST_BYTES = 1024
READ_S = 1.0  # the request comes together with the call
WRITE_S = 10.0

Status = pb.HealthCheckResponse.ServingStatus


class Health:
    """One status for the server and its services. Belongs to one event loop."""

    def __init__(self, *services: str) -> None:
        self._services = ("", *services)
        self._status = Status.NOT_SERVING
        self._changed = asyncio.Event()  # set and replaced at every change
        self.reads = self.watchers = 0  # in progress

    def set(self, *, serving: bool) -> None:
        """Sets the status, without waiting for those who watch it."""
        self._status = Status.SERVING if serving else Status.NOT_SERVING
        self._changed.set()
        self._changed = asyncio.Event()

    def handler(self) -> grpc.GenericRpcHandler:
        """Returns what `server.add_generic_rpc_handlers` needs; stream-stream, so that no request is read unasked."""
        methods = {
            name: grpc.stream_stream_rpc_method_handler(
                method, response_serializer=pb.HealthCheckResponse.SerializeToString
            )
            for name, method in (("Check", self._check), ("Watch", self._watch))
        }
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    async def _check(self, requests: AsyncIterator[bytes], context: Any) -> None:
        if self.reads < MAX_READS and await self._service(requests, context) not in self._services:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such service")
        await self._write(context, self._status)

    async def _watch(self, requests: AsyncIterator[bytes], context: Any) -> None:
        if self.watchers >= MAX_WATCHERS or self.reads >= MAX_READS:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many watchers; use Check")
        self.watchers += 1
        try:
            known = await self._service(requests, context) in self._services
            sent = None
            while True:
                changed, status = self._changed, self._status if known else Status.SERVICE_UNKNOWN
                if status != sent:
                    await self._write(context, status)
                    sent = status
                else:
                    await changed.wait()
        finally:
            self.watchers -= 1

    async def _service(self, requests: AsyncIterator[bytes], context: Any) -> str:
        self.reads += 1
        try:
            async with asyncio.timeout(READ_S):
                request = await anext(requests, b"")
                if len(request) > MAX_REQUEST_BYTES:
                    raise ValueError
                return str(pb.HealthCheckRequest.FromString(request).service)
        except TimeoutError:
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, f"no request within {READ_S:g} s")
        except Exception:  # of protobuf, whose text must not leave the server
            text = f"the message is not a HealthCheckRequest, or above {MAX_REQUEST_BYTES} bytes"
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, text)
        finally:
            self.reads -= 1
        raise AssertionError("aborted")

    async def _write(self, context: Any, status: Any) -> None:
        try:
            async with asyncio.timeout(WRITE_S):
                await context.write(pb.HealthCheckResponse(status=status))
        except TimeoutError:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "the status was not read")
