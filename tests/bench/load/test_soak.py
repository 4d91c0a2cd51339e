"""The parts of `kibun bench soak`; what it finds in ten minutes is no matter of tests."""

import json
from pathlib import Path
from typing import Any

import pytest

from kibun.bench.load import soak
from kibun.bench.load.front_servers import STUB_LOADER
from kibun.bench.support.child import Child
from kibun.client.server_process import ServerProcess

HEARD = {
    **{"turns": 2, "finals": 4, "lost": 0, "doubled": 0, "unaccounted": 0, "failures": {}},
    **{"final_ms": [1.0, 2.0], "late_ms": [0.5], "health_ms": [1.0], "refusal_ms": [2.0]},
}
SAMPLES = [soak.Sample(float(n), 70.0 + n, 0.1 * n) for n in range(10)]


def report(left: float = 100.0, control: float = 4200.0, **heard: object) -> dict[str, Any]:
    made = soak.make_report({**HEARD, **heard}, SAMPLES, left, control, streams=2, seconds=10.0, dropped=10_000)
    assert len(made.tables) == 2
    payload: dict[str, Any] = json.loads(json.dumps(made.payload))
    return payload


def test_people_are_answered_as_one_alone_is(tmp_path: Path) -> None:
    options = ["--loader", STUB_LOADER, "--token-file", str(soak.write_tokens(tmp_path))]
    with Child("kibun.bench.load.soak_clients") as clients, ServerProcess("stub", options) as server:
        learned = clients.ask("learn", target=server.target, turn_s=3.7)
        assert learned == {"finals": 1, "as_segmented": True, "failures": {}}
        heard = clients.ask("talk", target=server.target, streams=3, seconds=4.0)
        assert (heard["turns"], heard["finals"], heard["lost"], heard["doubled"]) == (3, 3, 0, 0)
        assert (heard["unaccounted"], heard["failures"]) == (0, {})
        assert len(heard["final_ms"]) == 3
        assert heard["health_ms"]
        assert heard["refusal_ms"], "of the prober's second stream"
        assert clients.ask("drop", target=server.target, streams=60) == {"refused": 0}


def test_a_server_that_is_gone_is_a_failure_of_every_turn() -> None:
    with Child("kibun.bench.load.soak_clients") as clients:
        with ServerProcess("stub", ["--loader", STUB_LOADER]) as server:
            clients.ask("learn", target=server.target, turn_s=3.7)
        learned = clients.ask("learn", target="127.0.0.1:1", turn_s=3.7)
        assert learned == {"finals": 0, "as_segmented": False, "failures": {"UNAVAILABLE": 1}}


def test_the_leaking_control_leaks() -> None:
    with Child("kibun.bench.load.soak_clients") as clients, soak.leaking_server() as (target, pid):
        assert soak.bytes_per_stream(clients, target, pid, 600) > soak.CONTROL_LEAK / 2


def test_the_report_says_what_is_promised() -> None:
    payload = report()
    assert payload["ok"] is True
    assert payload["bytes_per_dropped_stream"] == 100.0
    assert payload["cores"] == 0.1
    assert (payload["rss_mb"]["start"], payload["rss_mb"]["end"]) == (70.0, 79.0)
    assert payload["rss_mb"]["growth_per_hour"] == pytest.approx(3600)


def test_whatever_is_wrong_is_not_ok() -> None:
    wrong: list[dict[str, Any]] = [
        {"lost": 1},
        {"doubled": 1},
        {"unaccounted": 1},
        {"failures": {"OVERLOADED": 1}},
        {"left": 500.0},
        {"control": 100.0},
    ]
    assert [report(**case)["ok"] for case in wrong] == [False] * len(wrong)
