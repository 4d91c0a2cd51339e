"""The parts of `kibun bench front`; how fast it all is, is no matter of tests."""

import asyncio
import json

from kibun.bench.load import front
from kibun.bench.load.front_servers import METHOD as EMPTY
from kibun.bench.load.generator import METHOD
from kibun.bench.support.child import Child


def test_handing_an_utterance_to_a_worker_is_measured() -> None:
    handover = asyncio.run(front.measure_handover(rounds=2))
    assert handover.wall_ms > 0
    assert handover.server_cpu_ms > 0


def test_streams_are_heard_and_the_least_is_known() -> None:
    with (
        Child("kibun.bench.load.front_servers", "sampled") as sampled,
        Child("kibun.bench.load.front_servers", "empty") as empty,
        Child("kibun.bench.load.front_clients") as clients,
    ):
        servers = {
            "kibun": {"target": sampled.ask("target")["target"], "method": METHOD, "pid": sampled.pid},
            "empty": {"target": empty.ask("target")["target"], "method": EMPTY, "pid": empty.pid},
        }
        heard = clients.ask("talk", servers=servers, rate_hz=8_000, streams=2, seconds=1.0)
        assert heard["kibun"]["finals"] == 4, "in 2.1 s each says an utterance of a second and begins another"
        assert heard["kibun"]["cpu_s"] > 0
        assert heard["empty"]["cpu_s"] > 0
        assert len(sampled.ask("lag")["ms"]) > 50


def test_the_report_says_what_is_promised() -> None:
    costs = [
        front.Cost(rate, share, 1e5 * share, 200.0, 500 * share, 10, 1.0)
        for rate, share in ((8_000, 0.004), (16_000, 0.003), (48_000, 0.006))
    ]
    lags = {"idle": {"p50": 0.1, "p99": 1.0, "max": 2.0}, "loaded": {"p50": 0.2, "p99": 3.0, "max": 4.0}}
    report = front.make_report(costs, lags, front.Handover(2.0, 1.0, 0.5), 10, 4.0)
    payload = json.loads(json.dumps(report.payload))
    assert payload["core_share_per_stream"] == 0.003
    assert payload["loop_lag_ms"] == lags["loaded"]
    assert payload["handover"] == {"wall_ms": 2.0, "server_cpu_ms": 1.0, "worker_cpu_ms": 0.5}
    assert len(report.tables) == 3
