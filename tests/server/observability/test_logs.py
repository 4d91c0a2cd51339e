"""Log lines by allow-list: what may be in one, and that nothing else gets there."""

import ast
import io
import json
import logging
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kibun.server.observability import logs
from kibun.server.observability.logs import FIELDS, WITHHELD, LineFormatter
from tests.support import ROOT
from tests.support.certificates import make_certificates
from tests.support.serving import command, environment, serve

SERVER = ROOT / "server" / "kibun" / "server"
SECRET = "Jane-Doe-3.1415"


class Log:
    """A separate logger whose lines can be read."""

    def __init__(self, style: logs.Format, name: str = "kibun.server.tested") -> None:
        self._written = io.StringIO()
        handler = logging.StreamHandler(self._written)
        handler.setFormatter(LineFormatter(style))
        self.logger = logging.getLogger(name)
        self.logger.handlers, self.logger.propagate = [handler], False
        self.logger.setLevel("DEBUG")

    @property
    def text(self) -> str:
        return self._written.getvalue()

    @property
    def line(self) -> dict[str, object]:
        """The one line, of the JSON format."""
        (line,) = self.text.splitlines()
        fields: dict[str, object] = json.loads(line)
        return fields


@pytest.fixture
def log() -> Iterator[Log]:
    log = Log("json")
    yield log
    log.logger.handlers = []


def test_a_line_holds_what_happened_and_what_is_allowed(log: Log) -> None:
    fields = {"request_id": "request-0123456789abcdef", "code": "OK", "audio_s": 1.23456, "finals": 2}
    log.logger.info("call ended", extra=fields)
    line = log.line
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", str(line.pop("time")))
    assert line == {
        "level": "INFO",
        "logger": "kibun.server.tested",
        "event": "call ended",
        **fields,
        "audio_s": 1.235,
    }


def test_text_says_the_same_on_one_line() -> None:
    log = Log("text")
    log.logger.warning("worker ended\nand\0 gone", extra={"pid": 7, "reason": "WORKER_FAILED"})
    time, rest = log.text.split(" ", 1)
    assert time.endswith("Z")
    assert rest == "WARNING kibun.server.tested worker ended\\nand\\x00 gone: reason=WORKER_FAILED pid=7\n"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("request_id", SECRET),
        ("request_id", "request-0123456789abcdef\n"),
        ("request_id", b"request-0123456789abcdef"),
        ("tenant", "a\nb"),
        ("tenant", "a\0"),
        ("tenant", "Jane Doe"),
        ("tenant", ""),
        ("method", "Jane2"),
        ("code", "jane"),
        ("reason", "Jane Doe"),
        ("reason", "X" * 49),
        ("audio_s", "1.0"),
        ("audio_s", True),
        ("finals", [1]),
        ("frames", [SECRET]),
        ("frames", "a.py:1 f"),
        ("device", "cuda:x"),
    ],
)
@pytest.mark.parametrize("style", ["json", "text"])
def test_a_value_that_its_name_does_not_allow_is_withheld(style: logs.Format, name: str, value: object) -> None:
    log = Log(style)
    log.logger.info("call ended", extra={name: value})
    assert log.text.count("\n") == 1
    assert WITHHELD in log.text
    assert "Jane" not in log.text
    assert "\0" not in log.text


def test_every_field_takes_some_value() -> None:
    good: dict[str, object] = {
        "request_id": "request-0123456789abcdef",
        "tenant": "acme.eu-1",
        "method": "StreamingAnalyze",
        "code": "INVALID_ARGUMENT",
        "reason": "AUDIO_OUT_OF_RANGE",
        "device": "cuda:0",
        "frames": ["kibun/server/session.py:12 run"],
        "stacks": ["MainThread: asyncio/events.py:80 _run > kibun/server/session.py:12 run"],
    }
    for name in FIELDS:
        value = good.get(name, 3)
        assert logs.allowed({name: value}) == {name: value}


def test_names_that_are_not_allowed_are_not_shown(log: Log) -> None:
    log.logger.info("call ended", extra={"conversation_id": SECRET, "taskName": SECRET, "stack_info_": SECRET})
    assert SECRET not in log.text


def test_arguments_are_never_filled_in(log: Log) -> None:
    log.logger.info("token %s", SECRET)
    assert log.line["event"] == "token %s"


@pytest.mark.parametrize("name", ["kibun.server.tested", "grpc._cython.cygrpc", "asyncio", "transformers.x"])
def test_a_text_made_at_run_time_is_withheld(name: str) -> None:
    log = Log("json", name)
    log.logger.error(f"token {SECRET}")
    log.logger.error("token {}".format(SECRET))  # noqa: UP032
    log.logger.error("token " + SECRET)
    log.logger.error(SECRET)  # a literal, but of the module, not of the function that logs it
    log.logger.error(ValueError(SECRET))
    lines = [json.loads(line) for line in log.text.splitlines()]
    assert [line["event"] for line in lines] == [WITHHELD] * 5
    assert all(re.fullmatch(r"test_logs\.py:\d+ test_a_text_made_at_run_time_is_withheld", x["at"]) for x in lines)
    assert SECRET not in log.text


def test_a_literal_logged_from_within_a_helper_is_shown(log: Log) -> None:
    """Also in nested functions, and from where `stacklevel` points."""

    def helper() -> None:
        log.logger.info("from a helper")

    helper()
    assert log.line["event"] == "from a helper"


def test_asyncios_text_about_lost_tasks_is_cut_to_its_first_words(log: Log) -> None:
    log.logger.error(f"Task exception was never retrieved\nfuture: <Task exception=ValueError('{SECRET}')>")
    assert log.line["event"] == "Task exception was never retrieved"
    assert SECRET not in log.text


def test_of_an_exception_its_type_causes_and_lines_of_code(log: Log) -> None:
    def fail() -> None:
        try:
            int(SECRET)
        except ValueError as error:
            raise KeyError(SECRET) from error

    try:
        fail()
    except KeyError:
        log.logger.exception("a call failed")
    line = log.line
    assert (line["event"], line["error"], line["caused_by"]) == ("a call failed", "KeyError", ["ValueError"])
    frames = line["frames"]
    assert isinstance(frames, list)
    assert [f.split(" ")[1] for f in frames] == ["test_of_an_exception_its_type_causes_and_lines_of_code", "fail"]
    assert SECRET not in log.text


def test_paths_begin_at_the_package() -> None:
    assert logs.place(logs.__file__, 3, "place").endswith(":3 place")
    assert logs.place(logs.__file__, 3, "place").startswith("kibun/server/")
    assert logs.place(str(SERVER / "main.py"), 3, "run") == "kibun/server/main.py:3 run"
    # Folders that are only called like the package: a checkout, for one.
    assert logs.place("/home/jane/kibun/tests/server/test_x.py", 3, "f") == "test_x.py:3 f"
    assert logs.place("/home/jane/kibun/server/kibun/server/main.py", 3, "f") == "main.py:3 f"
    assert logs.place("/home/jane/venv/lib/python3.11/site-packages/torch/x.py", 3, "f") == "torch/x.py:3 f"
    assert logs.place("/usr/lib/python3.11/asyncio/tasks.py", 3, "f") == "asyncio/tasks.py:3 f"
    assert logs.place("/home/jane/x.py", 3, "f") == "x.py:3 f"


PROGRAM = """
import asyncio, gc, logging, sys, threading, warnings
from kibun.server.observability import logs
logs.configure("DEBUG", "json")
SECRET = "-".join(("Jane", "Doe"))  # no literal
class Dying:
    def __del__(self):
        raise ValueError(SECRET)
def fail():
    raise ValueError(SECRET)
Dying()
warnings.warn(SECRET)
thread = threading.Thread(target=fail)
thread.start()
thread.join()
async def main():
    asyncio.get_running_loop().call_soon(fail)
    task = asyncio.create_task(asyncio.to_thread(fail))
    await asyncio.sleep(0.05)
    del task
    gc.collect()
asyncio.run(main())
logging.getLogger().handlers[0].format = lambda record: fail()
logging.error("nobody can read this %s", SECRET)
del logging.getLogger().handlers[0].format
fail()
"""


def test_nothing_else_of_the_process_writes_what_an_exception_says() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.returncode == 1
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    events = [line["event"] for line in lines if line["level"] in ("ERROR", "CRITICAL")]
    unhandled = "an unhandled exception"
    expected = [unhandled, unhandled, "Exception in callback", "Task exception was never retrieved", unhandled]
    assert events == expected, done.stderr
    assert [line for line in lines if line["logger"] == "py.warnings"]
    assert "Jane" not in done.stderr


def test_a_report_is_a_line_of_the_chosen_format(capfd: pytest.CaptureFixture[str]) -> None:
    logs.report("serving on 127.0.0.1:1")
    logs.flush(10)
    assert capfd.readouterr().err == "kibun: serving on 127.0.0.1:1\n"
    code = "from kibun.server.observability import logs; logs.configure('ERROR', 'json'); logs.report('serving')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    line = json.loads(done.stderr)
    assert (line["level"], line["event"]) == ("INFO", "serving")


def test_a_start_that_fails_is_logged_in_the_chosen_format() -> None:
    program = command("--log-format", "json", "--tls-cert", "x.pem")
    done = subprocess.run(program, capture_output=True, text=True, env=environment())
    assert done.returncode == 1
    line = json.loads(done.stderr)
    assert (line["level"], line["event"]) == ("CRITICAL", "give both --tls-cert and --tls-key, or neither")


def test_grpc_writes_nothing_of_its_peers(tmp_path: Path) -> None:
    """gRPC's core writes a line for every failed TLS handshake, unless it is silenced."""
    make_certificates(tmp_path)
    tls = ("--tls-cert", str(tmp_path / "server.pem"), "--tls-key", str(tmp_path / "server.key"))
    with serve(*tls) as server:
        for _ in range(3):
            with socket.create_connection(("127.0.0.1", server.port)) as peer:
                peer.sendall(b"GET / HTTP/1.1\r\n\r\n")
                peer.settimeout(20)
                while peer.recv(4096):
                    pass
        server.terminate()
        server.wait()
        log = server.log.read_text()
    assert "handshake" not in log.lower()
    assert all(re.match(r"\d{4}-\d\d-\d\dT|kibun: |loading stub", line) for line in log.splitlines()), log


# ---- the server's own code

CODE = sorted(SERVER.rglob("*.py"))


def test_the_guards_below_look_at_all_of_the_server() -> None:
    assert {"logs.py", "service.py", "worker.py", "session.py"} <= {path.name for path in CODE}


def calls(path: Path) -> Iterator[ast.Call]:
    return (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))


def is_literal(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(SERVER)))
def test_log_calls_have_a_fixed_text_and_allowed_fields(path: Path) -> None:
    """Anything else would show up as withheld, or not at all."""
    for call in calls(path):
        method = call.func
        if not isinstance(method, ast.Attribute) or not isinstance(method.value, ast.Name):
            continue
        if method.value.id not in ("log", "_log") or method.attr == "isEnabledFor":
            continue
        where = f"{path.name}:{call.lineno}"
        assert len(call.args) == 1, f"{where}: give values as extra={{…}}"
        assert is_literal(call.args[0]), f"{where}: give a fixed text, and values as extra={{…}}"
        for keyword in call.keywords:
            if keyword.arg == "extra" and isinstance(keyword.value, ast.Dict):
                names = {key.value for key in keyword.value.keys if isinstance(key, ast.Constant)}
                assert names <= set(FIELDS), f"{where}: {names - set(FIELDS)} are not in logs.FIELDS"


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(SERVER)))
def test_reasons_are_literals(path: Path) -> None:
    """They become labels of metrics and fields of log lines: never something that a client sent."""
    place = {"Failure": 1, "invalid": 0, "AudioError": 0, "BackendError": 0}
    for call in calls(path):
        name = call.func.id if isinstance(call.func, ast.Name) else ""
        if name not in place or len(call.args) <= place[name]:
            continue
        reason = call.args[place[name]]
        passed_on = isinstance(reason, ast.Attribute | ast.Name) and ast.unparse(reason).endswith("reason")
        assert passed_on or is_literal(reason), f"{path.name}:{call.lineno}: {ast.unparse(reason)}"
        if is_literal(reason):
            assert logs.allowed({"reason": ast.literal_eval(reason)})["reason"] != WITHHELD
