"""Traces: what a collector gets from a real `kibun serve`, and that one which does not answer delays nothing."""

import asyncio
import itertools
import re
import socket
import subprocess
import sys
import time
from typing import Any

import pytest

from kibun.server.errors import StartError
from kibun.server.observability.setup import Observability
from kibun.server.observability.telemetry import traces_wanted
from tests.support.collector import Collector, collector
from tests.support.serving import (
    chunks,
    command,
    config,
    connect,
    converse,
    encode,
    environment,
    finals,
    refused,
    serve,
    sound,
)

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
MARKER = "Jane-Doe"
TWO_UTTERANCES = encode(sound(("speech", 0.8), ("silence", 0.9), ("speech", 0.8), ("silence", 0.9)))
METHOD = "kibun.v1.SpeechAnalysisService/StreamingAnalyze"


def attributes(span: Any) -> dict[str, Any]:
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in span.attributes}


async def talk_and_stop(*arguments: str) -> None:
    """One stream of two utterances with its own trace, and one that is refused; then the server stops."""
    metadata = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": f"vendor={MARKER}", "baggage": f"who={MARKER}"}
    with serve(*arguments) as server:
        async with connect(server) as stub:
            names: dict[str, Any] = {"conversation_id": MARKER, "participant_id": MARKER, "turn_id": MARKER}
            responses = await converse(stub, [config(**names), *chunks(TWO_UTTERANCES)], metadata=metadata)
            assert len(finals(responses)) == 2
            await refused(stub, config(conversation_id="a\nb"), metadata={"traceparent": MARKER})
        server.terminate()
        assert await asyncio.to_thread(server.wait) == 0


@pytest.fixture(scope="module")
def got() -> Collector:
    """What a collector got of a server from its start to its end."""
    with collector() as (got, url):
        asyncio.run(talk_and_stop("--otlp-endpoint", f"{url}/"))
    return got


def test_a_stream_is_a_span_with_its_finals_below(got: Collector) -> None:
    assert got.paths == {"/v1/traces"}
    (call,) = (span for span in got.spans if span.trace_id.hex() == TRACE and span.name == METHOD)
    assert call.parent_span_id.hex() == PARENT
    assert call.kind == call.SPAN_KIND_SERVER
    found = attributes(call)
    assert found.pop("kibun.request_id").startswith("request-")
    assert found.pop("kibun.duration_ms") > 0
    assert found.pop("kibun.speech_s") > 1
    assert found == {
        "rpc.system": "grpc",
        "rpc.service": "kibun.v1.SpeechAnalysisService",
        "rpc.method": "StreamingAnalyze",
        "rpc.grpc.status_code": 0,
        "kibun.audio_s": round(len(TWO_UTTERANCES) / 32_000, 3),
        "kibun.finals": 2,
        "kibun.interims": 0,
    }
    utterances = got.below(call, "utterance")
    assert len(utterances) == 2
    for utterance in utterances:
        (queue,), (inference,) = got.below(utterance, "queue"), got.below(utterance, "inference")
        times = [call.start_time_unix_nano, utterance.start_time_unix_nano, queue.start_time_unix_nano]
        times += [queue.end_time_unix_nano, inference.end_time_unix_nano, utterance.end_time_unix_nano]
        times += [call.end_time_unix_nano]
        slack = 20e6  # the clocks of the machine are read one after the other
        assert all(b - a > -slack for a, b in itertools.pairwise(times)), times
        assert inference.start_time_unix_nano == queue.end_time_unix_nano
        assert abs(times[0] / 1e9 - time.time()) < 300, "the clock of the day"
        assert not utterance.attributes


def test_a_failed_call_shows_its_reason_and_no_personal_data(got: Collector) -> None:
    (refusal,) = (span for span in got.spans if attributes(span).get("kibun.reason") == "INVALID_ID")
    assert refusal.trace_id.hex() != TRACE
    assert not refusal.parent_span_id, "what was no traceparent is none"
    assert attributes(refusal)["rpc.grpc.status_code"] == 3
    assert refusal.status.code == 0, "the client's fault"
    assert MARKER.encode() in b"..Jane-Doe.."
    assert MARKER.encode() not in got.raw
    assert not any(span.trace_state for span in got.spans)
    names = {a.key: a.value.string_value for a in got.resources[0].attributes}
    assert names["service.name"] == "kibun"
    assert not {key for key in names if key.startswith(("process.", "host."))}


async def test_opentelemetrys_own_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    with collector() as (got, url):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        monkeypatch.setenv("OTEL_SERVICE_NAME", "our-kibun")
        await talk_and_stop()
        names = {a.key: a.value.string_value for a in got.resources[0].attributes}
        assert names["service.name"] == "our-kibun"
        assert any(span.name == METHOD for span in got.spans)


async def test_a_dead_collector_does_not_delay_the_end() -> None:
    """It takes the connection and never answers."""
    with socket.socket() as dead:
        dead.bind(("127.0.0.1", 0))
        dead.listen(16)
        with serve("--otlp-endpoint", f"http://127.0.0.1:{dead.getsockname()[1]}") as server:
            async with connect(server) as stub:
                for _ in range(3):
                    assert finals(await converse(stub, [config(), *chunks(TWO_UTTERANCES)]))
            server.terminate()
            assert await asyncio.to_thread(server.wait, 30) == 0
            assert "the last traces could not be sent" in server.log.read_text()


WITHOUT = "import sys; sys.modules['opentelemetry'] = None"


@pytest.mark.parametrize(
    ("endpoint", "variables", "message"),
    [
        ("127.0.0.1:4318", {}, "--otlp-endpoint: give the collector's base URL, such as http://127.0.0.1:4318"),
        ("ftp://collector", {}, "--otlp-endpoint: give the collector's base URL"),
        (
            None,
            {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
            "OTEL_EXPORTER_OTLP_PROTOCOL: traces are sent as http/protobuf",
        ),
    ],
)
def test_what_cannot_be_done_is_said_at_the_start(
    monkeypatch: pytest.MonkeyPatch, endpoint: str | None, variables: dict[str, str], message: str
) -> None:
    for name, value in {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", **variables}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(StartError, match=re.escape(message)):
        Observability(metrics_host="127.0.0.1", metrics_port=None, otlp_endpoint=endpoint)


@pytest.mark.parametrize(("name", "value"), [("OTEL_TRACES_EXPORTER", "none"), ("OTEL_SDK_DISABLED", "True")])
def test_the_variables_turn_traces_off(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    assert traces_wanted()
    monkeypatch.setenv(name, value)
    assert not traces_wanted()


def test_the_option_needs_the_extra() -> None:
    program = command("--port", "0", "--otlp-endpoint", "http://127.0.0.1:1", prelude=WITHOUT)
    done = subprocess.run(program, env=environment(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "--otlp-endpoint needs OpenTelemetry: pip install 'kibun[otel]'" in done.stderr


def test_the_variables_alone_ask_for_nothing_where_the_extra_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    with serve(prelude=WITHOUT) as server:
        assert server.process.poll() is None


def test_nothing_is_imported_unless_traces_are_wanted() -> None:
    code = "import sys, kibun.server.main; sys.exit('opentelemetry' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
