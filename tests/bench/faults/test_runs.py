"""`kibun bench faults`: the proxy follows its commands, plans follow from seeds, and short runs keep every promise."""

import asyncio
import contextlib
import dataclasses
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest

from kibun.bench.faults import command as faults
from kibun.bench.faults import plan as faults_plan
from kibun.bench.faults.proxy import Proxy
from kibun.bench.faults.run import Outcome
from kibun.bench.faults.servers import Processes, has_redis_server
from kibun.bench.support.stub_model import RecallingModel
from kibun.models.types import Utterance

PATIENCE_S = 20.0

# ---- the proxy


class Echo:
    """A server that sends back what it gets, and reports how its connections ended."""

    def __init__(self) -> None:
        self.ends: asyncio.Queue[str] = asyncio.Queue()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1000):
                writer.write(data)
            await self.ends.put("FIN")
        except ConnectionResetError:
            await self.ends.put("RST")
        finally:
            writer.close()


@contextlib.asynccontextmanager
async def proxied() -> AsyncIterator[tuple[Echo, Proxy, asyncio.StreamReader, asyncio.StreamWriter]]:
    echo = Echo()
    server = await asyncio.start_server(echo.serve, "127.0.0.1", 0)
    async with server, asyncio.timeout(PATIENCE_S), Proxy(server.sockets[0].getsockname()[1]) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"hello"
        yield echo, proxy, reader, writer
        writer.close()


async def test_the_proxy_passes_on_everything_and_both_ends() -> None:
    async with proxied() as (echo, proxy, reader, writer):
        data = np.random.default_rng(0).bytes(1_000_000)
        writer.write(data)
        writer.write_eof()
        assert await reader.read(-1) == data
        assert await echo.ends.get() == "FIN"
        assert proxy.connections == 1


async def test_a_stalled_proxy_holds_everything_back_until_it_flows() -> None:
    async with proxied() as (_, proxy, reader, writer):
        proxy.stall()
        writer.write(b"later")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await reader.read(1)
        proxy.flow()
        assert await reader.readexactly(5) == b"later"


async def test_latency_and_trickle_take_their_time() -> None:
    async with proxied() as (_, proxy, reader, writer):
        proxy.latency_s = 0.1
        began = time.monotonic()
        writer.write(b"x")
        await reader.readexactly(1)
        assert time.monotonic() - began >= 0.2, "there and back"
        proxy.latency_s, proxy.trickle_bytes_per_s = 0.0, 1_000
        began = time.monotonic()
        writer.write(bytes(500))
        await reader.readexactly(500)
        assert time.monotonic() - began >= 0.4


async def test_a_reset_breaks_both_sides() -> None:
    async with proxied() as (echo, proxy, reader, _):
        proxy.reset()
        assert await echo.ends.get() == "RST"
        with pytest.raises(ConnectionResetError):
            await reader.read(1)


async def test_an_end_of_one_side_leaves_the_other_open() -> None:
    async with proxied() as (echo, proxy, reader, writer):
        proxy.end("client")
        assert await reader.read() == b"", "the client sees the end of the stream"
        writer.write(b"still heard")
        await asyncio.sleep(0)
        assert echo.ends.empty()
        writer.close()
        assert await echo.ends.get() == "FIN"


async def test_a_client_that_vanishes_is_not_noticed_until_the_proxy_closes() -> None:
    async with proxied() as (echo, proxy, reader, _):
        proxy.vanish()
        with pytest.raises(ConnectionResetError):
            await reader.read(1)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await echo.ends.get()
        proxy.forget()
        assert await echo.ends.get() == "FIN"


@pytest.mark.parametrize("turns", range(6))
async def test_a_connection_that_comes_as_the_proxy_closes_does_not_keep_it_open(turns: int) -> None:
    """``turns`` of the event loop after it was made, it may be accepted, on its way to the server, or passing bytes."""
    server = await asyncio.start_server(Echo().serve, "127.0.0.1", 0)
    async with server, asyncio.timeout(PATIENCE_S):
        async with Proxy(server.sockets[0].getsockname()[1]) as proxy:
            reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
            for _ in range(turns):
                await asyncio.sleep(0)
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read(1) == b""
        writer.close()


# ---- the plan


def test_a_plan_is_a_function_of_its_seed_in_every_process() -> None:
    scenario = faults_plan.scenario_named("everything")
    plan = faults_plan.make(7, scenario, quick=False)
    assert plan == faults_plan.make(7, scenario, quick=False)
    assert plan != faults_plan.make(8, scenario, quick=False)
    code = (
        "import dataclasses, json; from kibun.bench.faults import plan as p;"
        "print(json.dumps(dataclasses.asdict(p.make(7, p.scenario_named('everything'), quick=False))))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert json.loads(done.stdout) == json.loads(json.dumps(dataclasses.asdict(plan)))


@pytest.mark.parametrize("scenario", faults_plan.SCENARIOS, ids=lambda scenario: scenario.name)
def test_every_scenario_has_its_faults_and_clients_who_speak(scenario: faults_plan.Scenario) -> None:
    for seed in range(20):
        plan = faults_plan.make(seed, scenario, quick=False)
        kinds = {fault.kind for fault in plan.faults}
        assert kinds, "nothing happens"
        assert not kinds & {"redis_kill", "redis_freeze"} or plan.store == "redis"
        assert not kinds & set(faults_plan.NETWORK) or plan.network
        assert "client_kill" not in kinds or plan.victims
        kills = [fault.at_s for fault in plan.faults if fault.kind == "worker_kill"]
        assert all(b - a >= faults_plan.GAP_OF_KILLS_S - 0.2 for a, b in itertools.pairwise(kills))
        assert len(plan.clients) == 20
        assert len({(c.conversation, c.participant) for c in plan.clients}) == 20
        assert {c.speed for c in plan.clients} == set(faults_plan.SPEEDS)
        for client in plan.clients:
            assert client.turns
            assert len({turn.turn_id for turn in client.turns}) == len(client.turns)


def test_seeds_go_through_all_scenarios() -> None:
    options = faults.Options(seed=0, runs=len(faults_plan.order()))
    assert {plan.scenario for plan in faults.plans(options, {})} == set(faults.names())
    left_out = {"server_kill_store": "no store here"}
    assert "server_kill_store" not in {plan.scenario for plan in faults.plans(options, left_out)}
    (plan,) = faults.plans(faults.Options(seed=5, runs=1, only="rolling"), {})
    assert (plan.seed, plan.scenario, plan.servers) == (5, "rolling", 2)


# ---- the model


def test_estimates_of_the_recalling_model_show_what_was_lost_doubled_or_reordered() -> None:
    model = RecallingModel("stub")
    audio = np.linspace(-0.5, 0.5, 16_000, dtype=np.float32)
    heard = np.arange(24, dtype=np.float16).reshape(3, 8)
    histories = [heard, heard[:2], heard[[0, 1, 2, 2]], heard[[0, 2, 1]], heard[:0]]
    results = model.analyze([Utterance(audio, history) for history in histories])
    assert len({(result.conversation_traits, result.valence) for result in results}) == len(histories)
    assert len({result.utterance_traits for result in results}) == 1
    audio[100] += 1e-4
    (changed,) = model.analyze([Utterance(audio, heard)])
    assert changed.utterance_traits != results[0].utterance_traits
    assert changed.vector.tobytes() != results[0].vector.tobytes()
    assert all(1 <= trait <= 7 for result in results for trait in result.conversation_traits or ())


# ---- the report


def test_the_report_counts_and_says_what_was_left_out() -> None:
    from kibun.bench.faults.checker import Violation

    plan = faults_plan.make(3, faults_plan.scenario_named("network"), quick=True)
    found = faults.Findings(faults.Options(3, 2, quick=True), {"rolling": "no redis-server"})
    found.outcomes.append(Outcome(plan, [], 1.0, turns=4, finals=8))
    assert found.ok
    found.outcomes.append(Outcome(plan, [Violation("samples_unaccounted", "client-1 turn-1-0", "…", 160)], 1.0))
    assert not found.ok
    payload = json.loads(json.dumps(faults.payload(found)))
    assert payload["runs"] == 2
    assert payload["samples_unaccounted"] == 160
    assert {payload[kind] for kind in faults.COUNTED if kind != "samples_unaccounted"} == {0}
    assert payload["left_out"] == {"rolling": "no redis-server"}
    assert payload["violations"][0]["again"] == "kibun bench faults --seed 3 --runs 1 --only network --quick"
    assert "rolling was left out: no redis-server" in faults.tables(found)[0].notes


def test_processes_are_ended_whatever_happens() -> None:
    sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
    with pytest.raises(ZeroDivisionError), Processes() as processes:  # noqa: PT012
        sleeping = processes.start(sleep, processes.folder / "log")
        assert sleeping.poll() is None
        _ = 1 / 0
    assert sleeping.poll() is not None
    assert not processes.folder.exists()


def test_bad_options_name_what_is_allowed() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "kibun.client.main", "bench", "faults", "--only", "flood"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "worker_kill" in done.stderr


# ---- runs


def check_command(*options: str, runs: int) -> dict[str, Any]:
    """Runs the command. Returns what it printed."""
    command = [sys.executable, "-m", "kibun.client.main", "bench", "faults", "--json", "--runs", str(runs), *options]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout
    payload: dict[str, Any] = json.loads(done.stdout)
    assert payload["runs"] == runs
    assert {payload[kind] for kind in faults.COUNTED} == {0}
    return payload


@pytest.mark.skipif(not has_redis_server(), reason="the store of this run needs the program redis-server")
def test_workers_servers_and_networks_fail_and_nothing_is_lost() -> None:
    payload = check_command("--quick", "--seed", "0", "--at-once", "3", runs=3)
    assert set(payload["faults"]) >= {"worker_kill", "server_kill"}
    assert payload["scenarios"] == {"worker_kill": 1, "server_kill_store": 1, "network": 1}


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_many_runs_of_every_scenario_lose_nothing() -> None:
    payload = check_command("--seed", "1000", runs=300)
    assert payload["reconnects"]
