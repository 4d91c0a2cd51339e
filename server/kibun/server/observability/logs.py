"""Log lines built by allow-list: a time, a fixed text, and fields that pass their check.

    log.info("stream ended", extra={"request_id": request_id, "code": "OK", "audio_s": 12.5})

No mistake elsewhere can then log what people said, how they were scored, who they are, or a token. The text must be a
literal of the function that logs it; one made at run time is withheld, and arguments (`%s`) are never filled in. A test
checks that of our own code; the check at run time is for the records of other packages. Values come as `extra`, under
the names in `FIELDS`, and must pass that name's check. Exceptions are logged by type and lines of code, without their
text.

The check for literals looks at the stack of the caller: records are formatted where they are logged; only the lines
are written in another thread (`log_output`), so that a log that nobody reads stops nothing.
"""

from __future__ import annotations

import atexit
import importlib.util
import json
import logging
import os
import re
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from types import FrameType, TracebackType
from typing import Literal

from kibun.server.observability.log_output import LogOutput, LogStream, encoded

Format = Literal["text", "json"]
LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
WITHHELD = "(withheld)"
MAX_FRAMES = 12  # the innermost
MAX_CAUSES = 4
STDERR = 2  # its file descriptor
FLUSH_S = 0.5

Value = str | int | float | list[str]
Check = Callable[[object], Value | None]


def _matching(pattern: str) -> Check:
    compiled = re.compile(pattern, re.ASCII)
    return lambda value: value if isinstance(value, str) and compiled.fullmatch(value) else None


def _number(value: object) -> Value | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if isinstance(value, int) else round(value, 3)


def _places(value: object) -> Value | None:
    """Any number of lines of code, see `place`."""
    if not isinstance(value, list) or not all(isinstance(line, str) and _PLACE.fullmatch(line) for line in value):
        return None
    return value


def _stacks(value: object) -> Value | None:
    """Stacks of threads, see `stack`."""
    if not isinstance(value, list) or not all(isinstance(line, str) and _STACK.fullmatch(line) for line in value):
        return None
    return value


def _package_folders() -> list[str]:
    """Returns every folder of the namespace package `kibun`."""
    spec = importlib.util.find_spec("kibun")
    return list(spec.submodule_search_locations or ()) if spec is not None else []


_A_PLACE = r"[\w./<>-]{1,200}:\d{1,7} [\w<>]{1,80}"
_PLACE = re.compile(_A_PLACE, re.ASCII)
_STACK = re.compile(rf"[\w .()-]{{1,60}}: {_A_PLACE}(?: > {_A_PLACE})*", re.ASCII)

#: Every field that a line may have, with the check of its value. A value that fails it is written as WITHHELD.
FIELDS: dict[str, Check] = {
    "request_id": _matching(r"request-[0-9a-f]{16}"),
    "tenant": _matching(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}"),  # as in the token file
    "method": _matching(r"[A-Z][A-Za-z]{1,30}"),  # telemetry.METHODS
    "code": _matching(r"[A-Z][A-Z_]{1,24}"),  # of gRPC
    "reason": _matching(r"[A-Z][A-Z0-9_]{1,47}"),
    "front": _number,  # of `kibun serve --fronts`
    "device": _matching(r"cpu|cuda(:\d{1,3})?"),
    "duration_ms": _number,
    "audio_s": _number,  # received
    "speech_s": _number,  # analysed in finals
    "finals": _number,
    "interims": _number,
    "count": _number,  # of what the text names
    "seconds": _number,  # of what the text names
    "pid": _number,
    "exit_code": _number,
    "signal": _number,
    "frames": _places,
    "stacks": _stacks,
}

#: Parts of texts of asyncio and Python that name what happened; of a text that holds one, this part alone is logged.
KNOWN_TEXTS = (
    "Task exception was never retrieved",
    "Future exception was never retrieved",
    "Task was destroyed but it is pending!",
    "Exception in callback",
    "was never awaited",
    "unclosed",
)

_UNPRINTABLE = re.compile(r"[^\x20-\x7e]")
_PACKAGES = re.compile(r".*[/\\](?:site-packages|dist-packages|lib[/\\]python3\.\d+)[/\\]")
# Folders of the rooms of this package, from the import system: a path alone does not tell the package from a folder
# above it that is also called `kibun`.
_HOMES = tuple(os.path.join(os.path.dirname(home), "") for home in _package_folders())


class LineFormatter(logging.Formatter):
    """One line per record, as text or as a JSON object; `front`: as for `configure`."""

    def __init__(self, style: Format, front: int | None = None) -> None:
        super().__init__()
        self.choice: Format = style
        self.front = front

    def format(self, record: logging.LogRecord) -> str:
        parts: dict[str, object] = {
            "time": _time(record.created),
            "level": record.levelname,
            "logger": record.name,
            "event": record.msg if _is_literal(record) else _known(record.msg),
        }
        if parts["event"] is not record.msg:
            parts["at"] = place(record.pathname, record.lineno, record.funcName or "?")
        parts |= {} if self.front is None else {"front": self.front}
        parts |= allowed(record.__dict__)
        if record.exc_info and record.exc_info[1] is not None:
            parts |= _exception(record.exc_info[1])
        return _line(parts, self.choice)


class _Handler(logging.Handler):
    """Formats at once, and has the line written in another thread."""

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(Exception):  # not `handleError`, which shows the record's arguments
            _output.write(encoded(self.format(record)))

    def flush(self) -> None:
        """Does nothing: nothing that logs may wait for the log."""


def configure(level: str | int, style: Format, *, front: int | None = None) -> None:
    """Sends all logging of this process to stderr in such lines, with warnings and unhandled exceptions.

    What is printed goes there too: a stdout or stderr that cannot be written must stop nothing. `front`: which of
    several processes on one port this is, or works for; each line says so.
    """
    handler = _Handler()
    handler.setFormatter(LineFormatter(style, front))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.captureWarnings(True)
    sys.stdout = sys.stderr = LogStream(_output, STDERR)
    sys.excepthook = _on_exception
    threading.excepthook = lambda args: _on_exception(args.exc_type, args.exc_value, args.exc_traceback)
    sys.unraisablehook = lambda args: _on_exception(args.exc_type, args.exc_value, args.exc_traceback)


def lost_lines() -> int:
    """How many lines could not be written so far."""
    return _output.lost


def pass_on(lines: bytes) -> None:
    """Writes lines of another process, which are whole and end with a newline, as they are."""
    _output.write(lines)


@atexit.register
def flush(timeout_s: float = FLUSH_S) -> None:
    """Waits until all lines are written; no longer than this, as their reader may have stopped."""
    _output.flush(timeout_s)


def chosen() -> Format:
    """Returns the format that `configure` was called with; "text" before that."""
    return _formatter().choice


def front() -> int | None:
    """Returns the front that `configure` was called with."""
    return _formatter().front


def _formatter() -> LineFormatter:
    formatters = (handler.formatter for handler in logging.getLogger().handlers)
    return next((found for found in formatters if isinstance(found, LineFormatter)), LineFormatter("text"))


def stack(name: str, frame: FrameType) -> str:
    """Describes where a thread is: its name and places in the code, the innermost last."""
    places = []
    outer: FrameType | None = frame
    while outer is not None:
        places.append(place(outer.f_code.co_filename, outer.f_lineno, outer.f_code.co_name))
        outer = outer.f_back
    return f"{name}: {' > '.join(reversed(places[:MAX_FRAMES]))}"


def report(text: str, level: str = "INFO", *, who: str = "kibun") -> None:
    """Prints to stderr, whatever the log's level, what the operator must know about their options and files.

    `text` must hold nothing that came from a client.
    """
    _output.write(_report(text, level, who))


def quiet_grpc() -> None:
    """Silences what gRPC's core writes to stderr, such as peers' addresses, unless the operator asked for it.

    Must be called before grpc is imported. (GRPC_TRACE would write metadata, tokens included.)
    """
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")


# ---- parts of a line


def _report(text: str, level: str, who: str = "kibun") -> bytes:
    number = front()
    if chosen() == "json":
        now = datetime.now(UTC).timestamp()
        parts: dict[str, object] = {"time": _time(now), "level": level, "logger": "kibun.server", "event": text}
        return encoded(_line(parts if number is None else parts | {"front": number}, "json"))
    return encoded(f"{who}: {text}" if number is None else f"{who}, front {number}: {text}")


def _line(parts: dict[str, object], style: Format) -> str:
    if style == "json":
        return json.dumps(parts)
    head = [str(parts.pop(name)) for name in ("time", "level", "logger", "event")]
    head[-1] += ":" if parts else ""
    fields = [f"{name}={', '.join(v) if isinstance(v, list) else v}" for name, v in parts.items()]
    return _UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode(), " ".join([*head, *fields]))


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _is_literal(record: logging.LogRecord) -> bool:
    """Whether the record's text is a constant in the code of the function that logged it."""
    if type(record.msg) is not str:
        return False
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        code = frame.f_code
        if code.co_name == record.funcName and code.co_filename == record.pathname:
            return record.msg in code.co_consts
        frame = frame.f_back
    return False


def _known(message: object) -> str:
    return next((text for text in KNOWN_TEXTS if text in str(message)), WITHHELD)


def _exception(error: BaseException) -> dict[str, object]:
    """Fields for an exception: its type, those of its causes, and the lines it came through, innermost last."""
    frames = []
    traceback = error.__traceback__
    while traceback is not None:
        code = traceback.tb_frame.f_code
        frames.append(place(code.co_filename, traceback.tb_lineno, code.co_name))
        traceback = traceback.tb_next
    causes: list[str] = []
    cause = _cause(error)
    while cause is not None and len(causes) < MAX_CAUSES:
        causes.append(type(cause).__qualname__)
        cause = _cause(cause)
    fields: dict[str, object] = {"error": type(error).__qualname__}
    if causes:
        fields["caused_by"] = causes
    return fields | {"frames": frames[-MAX_FRAMES:]}


def _cause(error: BaseException) -> BaseException | None:
    return error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def allowed(fields: Mapping[str, object]) -> dict[str, Value]:
    """Returns those of `fields` that may be logged, with WITHHELD for values that fail their check."""
    checked = ((name, check(fields[name])) for name, check in FIELDS.items() if name in fields)
    return {name: WITHHELD if value is None else value for name, value in checked}


def place(path: str, line: int, function: str) -> str:
    """Names a line of code as "kibun/server/session/session.py:120 run"; other packages' paths begin at the package."""
    for home in _HOMES:
        if path.startswith(home):
            return f"{path.removeprefix(home).replace(os.sep, '/')}:{line} {function}"
    if match := _PACKAGES.match(path):
        return f"{path[match.end() :]}:{line} {function}"
    return f"{os.path.basename(path)}:{line} {function}"


def _on_exception(kind: type[BaseException], error: BaseException | None, traceback: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt | SystemExit):
        return
    error = error if error is not None else kind()
    error = error if error.__traceback__ is traceback else error.with_traceback(traceback)
    logging.getLogger(__name__).critical("an unhandled exception", exc_info=error)


def _loss(count: int) -> bytes:
    return _report(f"{count} lines of this log could not be written", "WARNING")


# Where stderr was closed before the start, its number may belong to another file by now.
_output = LogOutput(STDERR if sys.__stderr__ is not None else None, _loss)
