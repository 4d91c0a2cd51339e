"""The parts of `kibun bench front`; how fast it all is, is no matter of tests."""

import asyncio
import json

from kibun.bench.load import front
from kibun.bench.load.front_servers import METHOD as EMPTY
from kibun.bench.load.generator import METHOD
from kibun.bench.support.child import Child
from kibun.server.audio.vad import VadName


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
        later = clients.ask("talk", servers=servers, rate_hz=16_000, streams=1, seconds=0.5, message_ms=20, after_s=2.0)
        assert later["kibun"]["finals"] == 2, "in 2.52 s it says an utterance of a second and begins another"
        nobody = clients.ask("talk", servers=servers, rate_hz=16_000, streams=1, seconds=1.0, speaks=False)
        assert nobody["kibun"]["finals"] == 0
        assert heard["kibun"]["cpu_s"] > 0
        assert heard["empty"]["cpu_s"] > 0
        assert len(sampled.ask("lag")["ms"]) > 50


def test_the_report_says_what_is_promised() -> None:
    shares: list[tuple[front.Load, VadName, float]] = [
        (load, vad, share)
        for load, first in ((front.Load(8_000), 0.004), (front.Load(), 0.003), (front.Load(speaks=False), 0.0025))
        for vad, share in zip(front.VADS, (first, first - 0.0005), strict=True)
    ]
    costs = [
        front.Cost(load, vad, share, 0.002, 1e5 * share, 200.0, 500 * share, 10, 1.0) for load, vad, share in shares
    ]
    lags = {"idle": {"p50": 0.1, "p99": 1.0, "max": 2.0}, "loaded": {"p50": 0.2, "p99": 3.0, "max": 4.0}}
    report = front.make_report(costs, lags, front.Handover(2.0, 1.0, 0.5), 10, 4.0)
    payload = json.loads(json.dumps(report.payload))
    assert payload["core_share_per_stream"] == 0.003
    assert payload["nobody_speaks_core_share"] == 0.0025
    assert [cost["rate_hz"] for cost in payload["rates"]] == [8_000, 16_000]
    assert [cost["vad"] for cost in payload["costs"]] == 3 * ["silero", "webrtc"]
    assert payload["loop_lag_ms"] == lags["loaded"]
    assert payload["handover"] == {"wall_ms": 2.0, "server_cpu_ms": 1.0, "worker_cpu_ms": 0.5}
    assert len(report.tables) == 3
    assert len(report.tables[0].rows) == 3
