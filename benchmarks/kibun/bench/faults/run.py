"""Runs one plan: starts what it needs, lets clients speak while faults happen, reads the histories."""

from __future__ import annotations

import asyncio
import re
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field, replace
from itertools import pairwise

from kibun.bench.faults.checker import Violation, check
from kibun.bench.faults.clients import speak
from kibun.bench.faults.history import Accounting, ClientHistory, Final, Opened
from kibun.bench.faults.plan import NETWORK, PROXIES, Fault, FaultPlan, Pcm
from kibun.bench.faults.proxy import Proxy
from kibun.bench.faults.servers import Processes, Redis, RestartableServer
from kibun.client.client import AsyncClient
from kibun.client.errors import KibunError

LATENCY_S = 0.15
TRICKLE_BYTES_PER_S = 4_000.0  # an eighth of what speech needs
# Logged by a server that goes on without its store; what it has in memory is lost with it.
STORE_AWAY = "the conversation store does not answer"
# Log lines that no injected fault explains. (A killed worker is an error in the log as well.)
_UNFORESEEN = re.compile(
    r"Traceback|Segmentation| (ERROR|CRITICAL) (?!kibun\.server\.inference\.worker_pool |.* was not answered in time)"
)
TTL_S = 300.0  # of conversations in a Redis that is not ours
FREED_S = 30.0  # until the places of all streams are free again: a connection that vanished is noticed after 25 s


@dataclass
class Outcome:
    """What one run amounts to."""

    plan: FaultPlan
    violations: list[Violation]
    seconds: float
    turns: int = 0
    finals: int = 0
    reconnects: int = 0
    refusals: int = 0
    turns_failed: int = 0  # with a named error
    without_account: int = 0  # turns whose StreamEnded was lost after their result had come
    conversations_lost: int = 0  # turns that found their conversation unknown after a loss
    resume_s: list[float] = field(default_factory=list)  # from the last event before a loss to the resumed turn
    faults: Counter[str] = field(default_factory=Counter)
    state_compared: bool = False  # with the undisturbed run's: it survived
    server_errors: list[str] = field(default_factory=list)  # lines of their logs


class Run:
    """Carries out one plan against its own servers. `calm`: without the faults."""

    def __init__(
        self,
        plan: FaultPlan,
        processes: Processes,
        speech: Sequence[Pcm],
        calm: RestartableServer,
        redis_url: str | None = None,
        *,
        nonce: str = "",
    ) -> None:
        """`redis_url`: of an existing Redis; None: one is started. `nonce` goes into ids of conversations there."""
        self._plan = plan
        self._processes = processes
        self._speech = speech
        self._calm = calm
        self._redis_url = redis_url
        self._clients = [replace(c, conversation=f"{c.conversation}{nonce}") for c in plan.clients]
        self._servers: list[RestartableServer] = []
        self._proxies: list[Proxy] = []
        self._redis: Redis | None = None
        self._victims: asyncio.subprocess.Process | None = None
        self._done: Counter[str] = Counter()
        self._restart = asyncio.Lock()  # in a rolling restart the next begins when the last serves again

    async def run(self) -> Outcome:
        """Raises StartFailed."""
        began = time.monotonic()
        undisturbed = await self._undisturbed()
        broken: list[Violation] = []
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._stop)
            await self._start(stack)
            histories = await self._disturbed()
            for proxy in self._proxies:
                proxy.flow()
                proxy.reset()
            broken += await self._unfreed()
        log = "".join(server.take_log() for server in self._servers)
        compared = self._plan.state_survives and not (STORE_AWAY in log and self._plan.ends_servers)
        broken += check(histories, undisturbed, state_survives=compared)
        outcome = Outcome(self._plan, broken, time.monotonic() - began, faults=self._done)
        outcome.state_compared = compared
        outcome.server_errors = [line[:2000] for line in log.splitlines() if _UNFORESEEN.search(line)]
        _count(outcome, histories)
        return outcome

    # ---- undisturbed

    async def _undisturbed(self) -> Mapping[str, ClientHistory]:
        target = f"127.0.0.1:{self._calm.port}"
        histories = await speak([(client, target) for client in self._clients], self._speech, real_time=False)
        async with AsyncClient(target) as client:
            for conversation in {plan.conversation for plan in self._clients}:
                await client.delete_conversation(conversation)
        by_name = {history.client: history for history in histories}
        if broken := check(histories, by_name, state_survives=True):
            raise UndisturbedRunFailed(f"seed {self._plan.seed}, without any fault: {broken[0]}")
        return by_name

    # ---- disturbed

    async def _start(self, stack: AsyncExitStack) -> None:
        arguments: tuple[str, ...] = ()
        if self._plan.store == "redis":
            url = self._redis_url
            if url is None:
                self._redis = Redis(self._processes)
                await self._redis.start()
                url = self._redis.url
            arguments = ("--store", url, "--conversation-ttl", f"{TTL_S:g}")
        name = f"{self._plan.scenario}-{self._plan.seed}"
        self._servers = [
            RestartableServer(self._processes, f"{name}-{n}", arguments) for n in range(self._plan.servers)
        ]
        await asyncio.gather(*(server.start() for server in self._servers))
        if self._plan.network:
            for number in range(PROXIES):
                server = self._servers[number % len(self._servers)]
                self._proxies.append(await stack.enter_async_context(Proxy(server.port)))

    async def _disturbed(self) -> list[ClientHistory]:
        if self._plan.victims:
            await self._start_victims()
        clients = [(plan, self._target(number)) for number, plan in enumerate(self._clients)]
        faults = [asyncio.create_task(self._happen(fault)) for fault in self._plan.faults]
        try:
            histories = await speak(clients, self._speech, real_time=True)
            await asyncio.gather(*faults)
        finally:
            for task in faults:
                task.cancel()
            await asyncio.gather(*faults, return_exceptions=True)
        return histories

    def _target(self, number: int) -> str:
        """Where a client connects to: one server or proxy, or all servers there are."""
        if self._proxies and len(self._servers) == 1:
            return f"127.0.0.1:{self._proxies[number % PROXIES].port}"
        ports = [proxy.port for proxy in self._proxies] or [server.port for server in self._servers]
        if self._proxies:  # a proxy to each server
            first = number % PROXIES
            ports = [ports[first], ports[(first + 1) % PROXIES]]
        return "ipv4:" + ",".join(f"127.0.0.1:{port}" for port in ports)

    async def _happen(self, fault: Fault) -> None:
        await asyncio.sleep(fault.at_s)
        if fault.kind in NETWORK:
            await self._disturb_network(self._proxies[fault.target], fault)
        else:
            await self._actions(fault)[fault.kind]()
        self._done[fault.kind] += 1

    def _actions(self, fault: Fault) -> Mapping[str, Callable[[], Awaitable[None]]]:
        server = self._servers[min(fault.target, len(self._servers) - 1)]
        actions: dict[str, Callable[[], Awaitable[None]]] = {
            "worker_kill": server.kill_worker,
            "worker_freeze": server.freeze_worker,
            "server_kill": lambda: server.kill(fault.seconds),
            "server_drain": lambda: self._drain(server, fault.seconds),
            "server_freeze": lambda: server.freeze(fault.seconds),
            "client_kill": self._kill_victims,
        }
        if (redis := self._redis) is not None:
            actions["redis_kill"] = lambda: redis.kill(fault.seconds)
            actions["redis_freeze"] = lambda: redis.freeze(fault.seconds)
            actions["outage_kill"] = lambda: _kill_in_outage(redis, server, fault.seconds)
        return actions

    async def _drain(self, server: RestartableServer, down_s: float) -> None:
        async with self._restart:
            await server.drain(down_s)

    async def _disturb_network(self, proxy: Proxy, fault: Fault) -> None:
        match fault.kind:
            case "reset":
                proxy.reset()
            case "end_client":
                proxy.end("client")
            case "end_server":
                proxy.end("server")
            case "vanish":
                proxy.vanish()
                await asyncio.sleep(fault.seconds)
                proxy.forget()
            case "stall":
                proxy.stall()
                await asyncio.sleep(fault.seconds)
                proxy.flow()
            case "latency":
                proxy.latency_s = LATENCY_S
                await asyncio.sleep(fault.seconds)
                proxy.latency_s = 0.0
            case "trickle":
                proxy.trickle_bytes_per_s = TRICKLE_BYTES_PER_S
                await asyncio.sleep(fault.seconds)
                proxy.trickle_bytes_per_s = None

    # ---- victims

    async def _start_victims(self) -> None:
        module, target = "kibun.bench.faults.victims", f"127.0.0.1:{self._servers[0].port}"
        self._victims = await asyncio.create_subprocess_exec(
            sys.executable, "-m", module, target, str(self._plan.victims), stdout=asyncio.subprocess.PIPE
        )
        assert self._victims.stdout is not None
        async with asyncio.timeout(60.0):
            await self._victims.stdout.readline()

    async def _kill_victims(self) -> None:
        if self._victims is not None and self._victims.returncode is None:
            self._victims.kill()
            await self._victims.wait()

    # ---- afterwards

    async def _unfreed(self) -> list[Violation]:
        """Servers that ended by themselves, and places of streams that no client has any more."""
        found = []
        for server in self._servers:
            if (code := server.exit_code) is not None:
                found.append(
                    Violation("servers_ended", f"port {server.port}", f"it ended by itself with exit code {code}")
                )
                continue
            left, deadline = 1, time.monotonic() + FREED_S
            async with AsyncClient(f"127.0.0.1:{server.port}") as client:
                while left and time.monotonic() < deadline:
                    with suppress(KibunError):
                        left = (await client.service_info()).active_stream_count
                    await asyncio.sleep(0.02 if left else 0.0)
            if left:
                found.append(Violation("places_not_freed", f"port {server.port}", f"{left} streams are left", left))
        return found

    async def _stop(self) -> None:
        await self._kill_victims()
        for server in self._servers:
            await server.stop()
        if self._redis is not None:
            await self._redis.stop()


async def _kill_in_outage(redis: Redis, server: RestartableServer, seconds: float) -> None:
    """Redis is away for so long; the server goes on, and is killed with all that only it knows."""
    outage = asyncio.create_task(redis.kill(seconds))
    await asyncio.sleep(0.7 * seconds)
    await server.kill_until(outage)


class UndisturbedRunFailed(Exception):
    """Something is broken before any fault: there is nothing to compare with."""


def _count(outcome: Outcome, histories: Sequence[ClientHistory]) -> None:
    for turn in (turn for history in histories for turn in history.turns):
        outcome.turns += 1
        outcome.finals += len(turn.of(Final))
        outcome.reconnects += turn.reconnects
        outcome.refusals += turn.refusals
        outcome.turns_failed += turn.error is not None
        outcome.without_account += not turn.of(Accounting)
        pairs = pairwise(turn.seen)
        outcome.resume_s += [later.at_s - earlier.at_s for earlier, later in pairs if later.call != earlier.call]
        opened = [seen.what for seen in turn.of(Opened)]
        outcome.conversations_lost += any(isinstance(what, Opened) and what.created for what in opened[1:])
