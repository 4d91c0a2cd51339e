"""Redis for tests: the one that runs on this machine, and servers of a test's own, to be killed and frozen."""

import asyncio
import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from urllib.parse import urlencode

import pytest

from kibun.bench.faults.servers import free_port

ANY_REDIS = os.environ.get("KIBUN_TEST_REDIS", "redis://127.0.0.1:6379/0")


class OwnRedis:
    """A `redis-server` on a free port, without persistence unless asked for."""

    def __init__(self, folder: Path, *arguments: str, port: int | None = None) -> None:
        if shutil.which("redis-server") is None:
            pytest.skip("needs redis-server, to be killed and started again")
        self.folder = folder
        self.port = free_port() if port is None else port
        self._arguments = arguments
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [
            "redis-server",
            "--port",
            str(self.port),
            "--bind",
            "127.0.0.1",
            "--dir",
            str(self.folder),
            "--save",
            "",
            *self._arguments,
        ]
        with (self.folder / "redis.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + 20
        while "Ready to accept connections" not in (self.folder / "redis.log").read_text():
            assert self._process.poll() is None, (self.folder / "redis.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
            (self.folder / "redis.log").unlink()

    def freeze(self) -> None:
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)


@contextlib.contextmanager
def own_redis(folder: Path, *arguments: str, port: int | None = None) -> Iterator[OwnRedis]:
    server = OwnRedis(folder, *arguments, port=port)
    server.start()
    try:
        yield server
    finally:
        server.kill()


async def command(url: str, *words: str | bytes | int) -> object:
    """One command of a plain client."""
    from redis.asyncio import Redis

    client = Redis.from_url(url)
    try:
        execute: Callable[..., Awaitable[object]] = client.execute_command
        return await execute(*words)
    finally:
        await client.aclose()


@contextlib.contextmanager
def long_timeouts() -> Iterator[None]:
    """Keeps a busy machine from looking like an outage."""
    from kibun.server.conversation import redis_connection, resilient_store

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(redis_connection, "TIMEOUT_S", 30.0)
        patch.setattr(resilient_store, "SLOW_S", 30.0)
        yield


@contextlib.asynccontextmanager
async def prefixed(url: str = ANY_REDIS) -> AsyncIterator[str]:
    """The address with a unique key prefix; its keys are removed at the end. With `long_timeouts`."""
    redis = pytest.importorskip("redis.asyncio", reason="needs the extra redis")
    client = redis.Redis.from_url(url, socket_connect_timeout=2)
    try:
        try:
            await client.ping()
        except (redis.RedisError, OSError) as error:
            pytest.skip(f"no Redis at {url.rpartition('@')[2]}: {type(error).__name__}")
        prefix = f"kibun-test-{secrets.token_hex(6)}"
        with long_timeouts():
            yield f"{url}{'&' if '?' in url else '?'}{urlencode({'prefix': prefix})}"
        async for key in client.scan_iter(match=f"{prefix}:*", count=1000):
            await client.delete(key)
    finally:
        await client.aclose()


class RedisProxy:
    """A TCP proxy in its own thread that delays what comes back by `delay_s` and counts the commands but PING."""

    def __init__(self, port: int) -> None:
        self.port = 0
        self.delay_s = 0.0
        self.commands = 0
        self._to = port
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: self._loop.run_until_complete(self._run()))

    def __enter__(self) -> "RedisProxy":
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._loop.close()

    async def _run(self) -> None:
        server = await asyncio.start_server(self._pass, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.CancelledError):
            back, forth = await asyncio.open_connection("127.0.0.1", self._to)
            await asyncio.gather(self._pump(reader, forth, delayed=False), self._pump(back, writer, delayed=True))
        writer.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, delayed: bool) -> None:
        while data := await reader.read(65_536):
            if not delayed:
                self.commands += data.startswith(b"*") and b"PING" not in data
            if delayed and self.delay_s:
                await asyncio.sleep(self.delay_s)
            writer.write(data)
            await writer.drain()
        writer.close()
