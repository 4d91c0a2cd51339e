"""Metrics and probes: what is counted, that it is right, and that they answer whatever the server is busy with."""

import asyncio
import os
import re
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from prometheus_client import generate_latest
from prometheus_client.samples import Sample

from kibun.server import __version__
from kibun.server.audio.decoder import AudioFormat
from kibun.server.audio.endpointing import EndpointingOptions
from kibun.server.conversation.audience import Audience
from kibun.server.conversation.store import MemoryStore, StoreUnavailable
from kibun.server.inference.backend import BackendError, Job, Superseded
from kibun.server.observability.exporter import Exporter
from kibun.server.observability.metrics import JOBS, MAX_REASONS, OTHER, Metrics
from kibun.server.observability.telemetry import CallTelemetry, Telemetry
from kibun.server.session.events import Audio, Limits, Request, StreamOptions
from kibun.server.session.open_streams import OpenStreams
from kibun.server.session.outbox import OUTBOX
from kibun.server.session.session import Dependencies, Session
from kibun.v1 import speech_analysis_pb2 as pb
from tests.support.processes import until
from tests.support.scraping import Scrape, fetch, scrape, scrape_until, site
from tests.support.scripted import MODEL, FakeAnalyzer, LoudnessVad
from tests.support.serving import (
    RunningServer,
    Talk,
    chunks,
    command,
    config,
    connect,
    converse,
    encode,
    environment,
    refused,
    serve,
    spoken,
    workers_of,
)

# ---- counting


def shown(metrics: Metrics) -> Scrape:
    """What Prometheus gets."""
    return Scrape(generate_latest(metrics.registry).decode())


def test_a_histogram_counts_up_to_each_bound_inclusively() -> None:
    metrics = Metrics()
    for jobs in (1, 2, 4, 3, 500):
        metrics.batch_jobs.observe(jobs)
    found = shown(metrics)
    buckets = {bound: found("kibun_batch_jobs_bucket", le=f"{float(bound)}") for bound in JOBS}
    assert buckets == {bound: min(bound, 4) for bound in JOBS}
    assert found("kibun_batch_jobs_bucket", le="+Inf") == found("kibun_batch_jobs_count") == 5
    assert found("kibun_batch_jobs_sum") == 510


def test_a_metric_that_has_counted_nothing_yet_is_zero_where_its_labels_are_known() -> None:
    found = shown(Metrics())
    counted = {(s.name, *s.labels.values()) for s in found.samples if s.labels and "le" not in s.labels}
    counted -= {sample for sample in counted if sample[0].startswith("kibun_queue_delay_seconds")}
    assert counted == {
        ("kibun_build_info", __version__),
        *(("kibun_utterances_total", kind) for kind in ("final", "interim")),
        *(("kibun_eager_finals_total", outcome) for outcome in ("final", "spoken_on", "recomputed", "dropped")),
        *(("kibun_interims_dropped_total", cause) for cause in ("superseded", "busy", "failed", "slow_reader")),
    }
    for kind in ("final", "eager", "interim"):
        assert found("kibun_queue_delay_seconds_bucket", kind=kind, le="+Inf") == 0
    assert all(sample.value == 0 for sample in found.samples if sample.name != "kibun_build_info")


def test_labels_are_bounded_whatever_comes() -> None:
    metrics = Metrics()
    for number in range(2 * MAX_REASONS):
        metrics.call_ended("StreamingAnalyze", "INTERNAL", f"REASON_{number}")
        metrics.call_refused(f"REASON_{number}")
    metrics.call_ended("StreamingAnalyze", "OK", "jane@example.org")
    reasons = {sample.labels["reason"] for sample in calls(metrics)}
    assert len(reasons) == MAX_REASONS + 1
    assert OTHER in reasons
    assert {s.labels["reason"] for s in shown(metrics).samples if s.name == "kibun_refusals_total"} == reasons
    telemetry = Telemetry()
    telemetry.begin("jane", "request-1").end("OK")
    assert [sample.labels for sample in calls(telemetry.metrics)] == [{"method": "Other", "code": "OK", "reason": ""}]


def calls(metrics: Metrics) -> list[Sample]:
    return [sample for sample in shown(metrics).samples if sample.name == "kibun_calls_ended_total"]


def test_a_call_ends_once() -> None:
    telemetry = Telemetry()
    call = telemetry.begin("StreamingAnalyze", "request-1")
    assert shown(telemetry.metrics)("kibun_open_streams") == 1
    call.end("INTERNAL", "MODEL_FAILED")
    call.end("CANCELLED")
    assert shown(telemetry.metrics)("kibun_open_streams") == 0
    (counted,) = calls(telemetry.metrics)
    assert counted.labels == {"method": "StreamingAnalyze", "code": "INTERNAL", "reason": "MODEL_FAILED"}
    assert counted.value == 1


def test_watches_are_counted_beside_streams() -> None:
    telemetry = Telemetry()
    call = telemetry.begin("WatchConversation", "request-1")
    assert [shown(telemetry.metrics)(f"kibun_open_{kind}") for kind in ("watches", "streams")] == [1, 0]
    call.end("OK")
    assert shown(telemetry.metrics)("kibun_open_watches") == 0


async def test_questions_that_the_store_does_not_answer_are_counted() -> None:
    resilient = pytest.importorskip(
        "kibun.server.conversation.resilient_store", reason="needs the extra redis", exc_type=ImportError
    )

    class Away:
        audience = Audience()

        async def get(self, *_: object) -> None:
            raise StoreUnavailable

        ping = get

        def watch(self, _: object) -> None:
            pass

        async def close(self) -> None:
            pass

    metrics = Metrics()
    store = resilient.ResilientStore(Away(), on_error=metrics.store_errors.inc)
    for _ in range(3):
        with pytest.raises(StoreUnavailable):
            await store.get(("", "c"))
    await store.close()
    assert shown(metrics)("kibun_store_errors_total") == 3


# ---- interims that are not sent


def session(metrics: Metrics, analyzer: FakeAnalyzer) -> Session:
    endpointing = EndpointingOptions(min_speech_ms=40, pre_roll_ms=40, hang_over_ms=40, max_utterance_ms=30_000)
    options = StreamOptions("", "c", "p", "t", "fake", AudioFormat("linear16", 16_000), endpointing, interims=True)
    dependencies = Dependencies(
        analyzer, MemoryStore(), OpenStreams(), lambda _: LoudnessVad(), lambda: "made", Limits()
    )
    telemetry = CallTelemetry(metrics, "StreamingAnalyze", "request")
    return Session("request", replace(options, interim_interval=8_000), MODEL, dependencies, telemetry)


async def loud(seconds: float) -> AsyncIterator[Request]:
    block = np.full(1_600, 16_000, "<i2").tobytes()
    for _ in range(round(seconds * 10)):
        yield Audio(block)
        for _ in range(30):  # so that what an interim waits for comes before the next falls due
            await asyncio.sleep(0)


def raising(error: Exception) -> Callable[[Job, bool], Any]:
    def before(job: Job, final: bool) -> None:
        if not final:
            raise error

    return before


@pytest.mark.parametrize(
    ("analyzer", "cause"),
    [
        (FakeAnalyzer(raising(Superseded())), "busy"),
        (FakeAnalyzer(full=True), "busy"),
        (FakeAnalyzer(raising(BackendError("MODEL_FAILED", "it failed"))), "failed"),
        (FakeAnalyzer(lambda job, final: None if final else asyncio.Event().wait()), "superseded"),
    ],
)
async def test_interims_that_are_not_sent_are_counted_by_cause(analyzer: FakeAnalyzer, cause: str) -> None:
    metrics = Metrics()
    async for _ in session(metrics, analyzer).run(loud(2.3)):
        pass
    found = shown(metrics)
    assert found("kibun_interims_dropped_total") == found("kibun_interims_dropped_total", cause=cause) == 4
    assert found("kibun_utterances_total", kind="final") == found("kibun_utterances_total") == 1


async def test_interims_that_a_slow_reader_misses_are_counted() -> None:
    metrics = Metrics()
    replies = session(metrics, FakeAnalyzer()).run(loud(0.5 * (OUTBOX + 20)))
    await anext(replies)

    def dropped() -> float:
        return shown(metrics)("kibun_interims_dropped_total", cause="slow_reader")

    await until(lambda: dropped() > 0)
    async for _ in replies:
        pass
    assert dropped() + shown(metrics)("kibun_utterances_total", kind="interim") in (OUTBOX + 19, OUTBOX + 20)


# ---- the port


@pytest.fixture
def sites() -> Iterator[Callable[..., str]]:
    opened: list[Exporter] = []

    def open_site(host: str = "127.0.0.1", *, ready: bool = True, alive: bool = True) -> str:
        metrics = Metrics()
        metrics.worker_restarts.set_function(lambda: 2)
        metrics.load_ratio.set_function(lambda: 0.5)
        metrics.describe_process(lambda: ready)
        exporter = Exporter(metrics.registry, ready=lambda: ready, alive=lambda: alive)
        opened.append(exporter)
        port = exporter.open(host, 0)
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    yield open_site
    for exporter in opened:
        exporter.close()


def test_probes(sites: Callable[..., str]) -> None:
    well = sites()
    assert fetch(f"{well}/healthz") == (200, "alive\n")
    assert fetch(f"{well}/readyz?verbose") == (200, "ready\n")
    assert fetch(f"{well}/readyz", method="HEAD") == (200, "")
    assert fetch(f"{well}/")[0] == fetch(f"{well}/metrics/x")[0] == 404
    assert fetch(f"{well}/metrics", method="DELETE")[0] == 501
    ill = sites(ready=False, alive=False)
    assert fetch(f"{ill}/healthz")[0] == fetch(f"{ill}/readyz")[0] == 503
    found = Scrape(fetch(f"{ill}/metrics")[1])
    assert (found("kibun_ready"), found("kibun_worker_restarts_total"), found("kibun_load_ratio")) == (0, 2, 0.5)
    assert "_created" not in found.text


def test_prometheus_gets_the_format_it_asks_for(sites: Callable[..., str]) -> None:
    import urllib.request

    request = urllib.request.Request(
        f"{sites()}/metrics", headers={"Accept": "application/openmetrics-text;version=1.0.0"}
    )
    with urllib.request.urlopen(request, timeout=10) as response:
        assert "openmetrics" in response.headers["Content-Type"]
        assert response.read().endswith(b"# EOF\n")


def test_ipv6(sites: Callable[..., str]) -> None:
    try:
        url = sites("::1")
    except OSError:
        pytest.skip("this machine has no IPv6")
    assert fetch(f"{url}/healthz")[0] == 200


def test_a_taken_port_ends_the_start_and_is_named() -> None:
    """It comes from the environment here, from the option everywhere else."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        variables = {**environment(), "KIBUN_METRICS_PORT": port}
        done = subprocess.run(command("--port", "0"), env=variables, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert f"--metrics-port {port}" in done.stderr
    assert "error=" not in done.stderr


# ---- a real server


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with serve("--metrics-port", "0", "--max-streams", "2") as running:
        yield running


async def test_every_second_of_audio_and_every_utterance_is_counted(server: RunningServer) -> None:
    before = scrape(server)
    audio = [encode(spoken(seconds, seed=number)) for number, seconds in enumerate((0.7, 1.3))]
    async with connect(server) as stub:
        features = pb.AnalysisFeatures(disable_eager_finals=True)  # every utterance runs once, as a final
        one = await converse(stub, [config(features=features), *chunks(audio[0])])
        recording = pb.AnalyzeRequest(config=config().streaming_config, audio_content=audio[1])
        other = await stub.Analyze(recording)
    after = await scrape_until(server, lambda s: _gain(before, s, "kibun_calls_ended_total", code="OK") == 2)

    def gain(name: str, **labels: str) -> float:
        return _gain(before, after, name, **labels)

    seconds = sum(map(len, audio)) / 32_000
    speech = one[-1].stream_ended.speech_duration.ToTimedelta().total_seconds()
    speech += sum(u.analyzed_duration.ToTimedelta().total_seconds() for u in other.utterances)
    assert gain("kibun_audio_received_seconds_total") == pytest.approx(seconds, abs=1e-6)
    assert gain("kibun_speech_analyzed_seconds_total") == pytest.approx(speech, abs=1e-6)
    assert gain("kibun_utterances_total", kind="final") == 2
    for histogram in ("final_latency_seconds", "inference_seconds", "batch_jobs"):
        assert gain(f"kibun_{histogram}_count") == 2
    assert gain("kibun_queue_delay_seconds_count", kind="final") == 2
    assert 0 < gain("kibun_final_latency_seconds_sum") < 20
    assert gain("kibun_calls_ended_total", method="StreamingAnalyze", code="OK", reason="") == 1
    assert gain("kibun_calls_ended_total", method="Analyze", code="OK", reason="") == 1
    assert after("kibun_open_streams") == 0
    assert after("kibun_conversations") == before("kibun_conversations") + 2
    assert after("kibun_workers") == after("kibun_ready") == 1
    assert after("process_resident_memory_bytes") > 10e6
    await scrape_until(server, lambda s: s("kibun_event_loop_lag_seconds_count") > 0)


def _gain(before: Scrape, after: Scrape, name: str, **labels: str) -> float:
    return after(name, **labels) - before(name, **labels)


async def test_calls_are_counted_by_how_they_ended(server: RunningServer) -> None:
    before = scrape(server)
    async with connect(server) as stub:
        await refused(stub, config(conversation_id="a\nb"))
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.GetConversation(pb.GetConversationRequest(conversation_id="nobody"))
        async with Talk(stub) as one, Talk(stub) as two:
            for talk in (one, two):
                await talk.start()
            assert (await asyncio.to_thread(scrape, server))("kibun_open_streams") == 2
            await refused(stub)
    wanted = {
        ("StreamingAnalyze", "INVALID_ARGUMENT", "INVALID_ID"): 1,
        ("GetConversation", "NOT_FOUND", "CONVERSATION_NOT_FOUND"): 1,
        ("StreamingAnalyze", "RESOURCE_EXHAUSTED", "TOO_MANY_STREAMS"): 1,
        ("StreamingAnalyze", "CANCELLED", ""): 2,
    }

    def ended(found: Scrape) -> bool:
        return all(
            _gain(before, found, "kibun_calls_ended_total", method=m, code=c, reason=r) == count
            for (m, c, r), count in wanted.items()
        )

    after = await scrape_until(server, ended)
    assert _gain(before, after, "kibun_refusals_total") == 1
    assert _gain(before, after, "kibun_refusals_total", reason="TOO_MANY_STREAMS") == 1
    assert after("kibun_open_streams") == 0


async def test_a_killed_worker_is_counted(server: RunningServer) -> None:
    before = scrape(server)("kibun_worker_restarts_total")
    (worker,) = workers_of(server)
    os.kill(worker, signal.SIGKILL)
    await scrape_until(server, lambda s: s("kibun_worker_restarts_total") == before + 1 and s("kibun_workers") == 1)


async def test_labels_hold_no_personal_data_and_every_metric_is_explained(
    server: RunningServer, tmp_path: Path
) -> None:
    marker = "Marker7"
    async with connect(server) as stub:
        names: dict[str, Any] = {"conversation_id": marker, "participant_id": marker, "turn_id": marker}
        await converse(stub, [config(**names), *chunks(encode(spoken(0.7)))])
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.GetConversation(pb.GetConversationRequest(conversation_id=f"{marker}-{marker}"))
    found = await scrape_until(server, lambda s: s("kibun_calls_ended_total", method="GetConversation") >= 1)
    assert marker.lower() not in found.text.lower()
    allowed = {
        "le": r"[\d.]+|\+Inf",
        "method": r"[A-Z][A-Za-z]+",
        "code": r"[A-Z_]+",
        "reason": r"[A-Z0-9_]*",
        "kind": "final|eager|interim",
        "cause": "[a-z_]+",
        "outcome": "[a-z_]+",
        "version": r"[\d.]+\w*",
    }
    for sample in found.samples:
        for name, value in sample.labels.items():
            assert re.fullmatch(allowed[name], value), sample
    ours = [family for family in found.families if family.name.startswith("kibun_")]
    assert len(ours) >= 20
    for family in found.families:
        assert family.documentation.endswith("."), family.name
        assert family.type in ("counter", "gauge", "histogram"), family.name
        if family.type == "histogram" and family.name != "kibun_batch_jobs":
            assert family.name.endswith("_seconds")


def test_without_the_option_nothing_listens(server: RunningServer) -> None:
    assert len(listening(server.process.pid)) == 2
    with serve() as silent:
        assert "metrics on" not in silent.log.read_text()
        assert len(listening(silent.process.pid)) == 1


def listening(pid: int) -> set[str]:
    """Sockets of a process that accept connections."""
    fds = [os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir() if fd.is_symlink()]
    tables = "".join(Path(f"/proc/{pid}/net/{name}").read_text() for name in ("tcp", "tcp6"))
    accepting = re.findall(r"^ *\d+: \S+ \S+ 0A (?:\S+ +){5}(\d+)", tables, re.MULTILINE)
    return {f"socket:[{inode}]" for inode in accepting} & set(fds)


async def test_readiness_follows_the_health_service() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with serve("--metrics-port", "0", "--grace", "20", model="sleepy", wait=False, port=port) as server:
        url = site(server)
        assert fetch(f"{url}/readyz") == (503, "not serving\n")
        assert fetch(f"{url}/healthz")[0] == 200
        assert scrape(server)("kibun_ready") == 0
    with serve("--metrics-port", "0", "--grace", "20") as server:
        url = site(server)
        assert fetch(f"{url}/readyz")[0] == 200
        async with connect(server) as stub, Talk(stub) as talk:
            await talk.start()
            server.terminate()
            await talk.until("stream_warning", reason="GOING_AWAY")
            assert (await asyncio.to_thread(fetch, f"{url}/readyz"))[0] == 503
            assert (await asyncio.to_thread(fetch, f"{url}/healthz"))[0] == 200


BLOCKED = """
import time
from kibun.server import serving
make = serving.make_vad
class Sleepy:
    def __init__(self, vad): self.vad, self.frame_samples, self.reset = vad, vad.frame_samples, vad.reset
    def decide(self, frames):
        time.sleep(3600)
serving.make_vad = lambda *arguments: Sleepy(make(*arguments))
"""


async def test_they_answer_while_the_event_loop_is_blocked_and_say_so() -> None:
    with serve("--metrics-port", "0", "--watchdog-exit", "60", prelude=BLOCKED) as server:
        url = site(server)
        async with connect(server) as stub, Talk(stub) as talk:
            await talk.send(config(), *chunks(encode(spoken(0.7))))
            async with asyncio.timeout(30):
                while (await asyncio.to_thread(fetch, f"{url}/healthz"))[0] != 503:  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
            assert (await asyncio.to_thread(fetch, f"{url}/readyz"))[0] == 503
            found = await asyncio.to_thread(scrape, server)
            assert found("kibun_open_streams") == 1
            assert found("kibun_ready") == 0
