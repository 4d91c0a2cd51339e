"""The parts of `kibun bench capacity`; how fast it all is, is no matter of tests."""

import json
import os
import subprocess
import sys

import pytest

from kibun.bench.load import capacity, capacity_clients
from kibun.bench.load.front_servers import STUB_LOADER
from kibun.bench.support.child import Child, children
from kibun.client.server_process import ServerProcess


def level(streams: int, lag_p99: float, lost: int = 0) -> capacity.Crowd:
    return capacity.Crowd(streams, 0.005 * streams, 1.0, lag_p99, 10.0, 20.0, 3.0, 50, lost, {})


def rate(fronts: int, finals_per_s: float) -> capacity.Rate:
    return capacity.Rate(fronts, 4.0, finals_per_s, 10.0, 2.0, 3.0, 0.5, (0.9,) * fronts)


def test_the_report_says_what_is_promised() -> None:
    levels = [level(30, 2.0), level(100, 4.0), level(200, 49.0), level(240, 51.0)]
    compared = [(rate(1, 100.0), rate(2, 180.0)), (rate(1, 90.0), rate(2, 171.0))]
    report = capacity.make_report(levels, [rate(1, 100.0)], compared, {"0": 30, "1": 34})
    payload = json.loads(json.dumps(report.payload))
    assert (payload["streams_carried"], payload["saturated"], payload["streams_per_core"]) == (200, True, 200)
    assert payload["core_share_per_stream"] == pytest.approx(0.005)
    assert payload["fronts"]["ratio"] == pytest.approx(1.85)
    assert payload["fronts"]["connections"] == {"0": 30, "1": 34}
    assert len(report.tables) == 3


def test_a_level_at_which_a_final_was_lost_is_not_carried() -> None:
    report = capacity.make_report([level(30, 2.0), level(60, 2.0, lost=1)], [rate(1, 9.0)], [], {}, "no Redis")
    assert (report.payload["streams_carried"], report.payload["saturated"]) == (30, True)
    assert (report.payload["fronts"]["ratio"], report.payload["fronts"]["left_out"]) == (None, "no Redis")
    assert len(report.tables) == 2


def test_utterances_are_pushed_for_a_given_time() -> None:
    with Child(capacity_clients.__name__) as clients, ServerProcess("stub", ["--loader", STUB_LOADER]) as server:
        (worker,) = children(server.pid)
        found = clients.ask(
            "push", target=server.target, connections=2, utterance_s=0.5, seconds=1.0, pids=[server.pid, worker]
        )
    assert found["finals"] > 0
    assert found["seconds"] >= 1.0
    assert all(found["cpu_s"][str(pid)] > 0 for pid in (server.pid, worker))


def test_a_process_is_pinned_with_its_threads() -> None:
    program = "import threading, time; threading.Thread(target=time.sleep, args=(60,)).start(); print(flush=True)"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        core = max(os.sched_getaffinity(0))
        capacity.pin(process.pid, [core])
        threads = os.listdir(f"/proc/{process.pid}/task")
        pinned = [os.sched_getaffinity(int(thread)) for thread in threads]
        process.kill()
    assert len(pinned) == 2
    assert pinned == [{core}, {core}]
