"""Log lines that hold nothing but what is allowed in them: a time, a fixed text, and fields that pass their check.

    log.info("stream ended", extra={"request_id": request_id, "code": "OK", "audio_s": 12.5})

A line is built by allow-list, so that no mistake elsewhere can write what people said, how they were scored, who they
are, or a token. Its text must be a literal of the function that logs it: a text made at run time is withheld, of other
packages too, and arguments (`%s`) are never filled in. Values come as `extra`, under the names in `FIELDS`, and each
must pass that name's check. Of an exception its type and its lines of code are told, never its text.

The check for literals looks at the stack of the caller: format records where they are logged, not in another thread.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import re
import sys
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from types import FrameType, TracebackType
from typing import Literal

Format = Literal["text", "json"]
LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
WITHHELD = "(withheld)"
MAX_FRAMES = 12  # the innermost
MAX_CAUSES = 4

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
    """Lines of code, see `place`, as many as they are."""
    if not isinstance(value, list) or not all(isinstance(line, str) and _PLACE.fullmatch(line) for line in value):
        return None
    return value


def _stacks(value: object) -> Value | None:
    """Of threads, see `stack`."""
    if not isinstance(value, list) or not all(isinstance(line, str) and _STACK.fullmatch(line) for line in value):
        return None
    return value


def _package_folders() -> list[str]:
    """Every folder that the namespace package `kibun` is made of."""
    spec = importlib.util.find_spec("kibun")
    return list(spec.submodule_search_locations or ()) if spec is not None else []


_A_PLACE = r"[\w./<>-]{1,200}:\d{1,7} [\w<>]{1,80}"
_PLACE = re.compile(_A_PLACE, re.ASCII)
_STACK = re.compile(rf"[\w .()-]{{1,60}}: {_A_PLACE}(?: > {_A_PLACE})*", re.ASCII)

#: Every field that a line may have, and what its value must be. A value that fails its check is written as WITHHELD.
FIELDS: dict[str, Check] = {
    "request_id": _matching(r"request-[0-9a-f]{16}"),
    "tenant": _matching(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}"),  # as in the token file
    "method": _matching(r"[A-Z][A-Za-z]{1,30}"),  # telemetry.METHODS
    "code": _matching(r"[A-Z][A-Z_]{1,24}"),  # of gRPC
    "reason": _matching(r"[A-Z][A-Z0-9_]{1,47}"),
    "device": _matching(r"cpu|cuda(:\d{1,3})?"),
    "duration_ms": _number,
    "audio_s": _number,  # received
    "speech_s": _number,  # analysed in finals
    "finals": _number,
    "interims": _number,
    "count": _number,  # of what the text says
    "seconds": _number,  # of what the text says
    "pid": _number,
    "exit_code": _number,
    "signal": _number,
    "frames": _places,
    "stacks": _stacks,
}

#: Texts of asyncio and Python that say what happened. Their beginning or the words in them are told, and no more.
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
# Where this package's rooms lie: asked of the import system, as a path alone cannot tell `kibun` from a folder of that
# name somewhere above it.
_HOMES = tuple(os.path.join(os.path.dirname(home), "") for home in _package_folders())


class LineFormatter(logging.Formatter):
    """One line per record, as text or as a JSON object."""

    def __init__(self, style: Format) -> None:
        super().__init__()
        self.choice: Format = style

    def format(self, record: logging.LogRecord) -> str:
        parts: dict[str, object] = {
            "time": _time(record.created),
            "level": record.levelname,
            "logger": record.name,
            "event": record.msg if _is_literal(record) else _known(record.msg),
        }
        if parts["event"] is not record.msg:
            parts["at"] = place(record.pathname, record.lineno, record.funcName or "?")
        parts |= allowed(record.__dict__)
        if record.exc_info and record.exc_info[1] is not None:
            parts |= _exception(record.exc_info[1])
        return _line(parts, self.choice)


class _Stderr(logging.StreamHandler):  # type: ignore[type-arg]
    """Unlike its base, never prints a record that could not be written, as that shows its arguments."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass


def configure(level: str | int, style: Format) -> None:
    """Sends all logging of this process, warnings and unforeseen exceptions included, to stderr in these lines."""
    handler = _Stderr(sys.stderr)
    handler.setFormatter(LineFormatter(style))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.captureWarnings(True)
    sys.excepthook = _on_exception
    threading.excepthook = lambda args: _on_exception(args.exc_type, args.exc_value, args.exc_traceback)
    sys.unraisablehook = lambda args: _on_exception(args.exc_type, args.exc_value, args.exc_traceback)


def chosen() -> Format:
    """The format that `configure` was called with; text before that."""
    formatters = (handler.formatter for handler in logging.getLogger().handlers)
    return next((f.choice for f in formatters if isinstance(f, LineFormatter)), "text")


def stack(name: str, frame: FrameType) -> str:
    """Where a thread of this name is: places in the code, the innermost last."""
    places = []
    outer: FrameType | None = frame
    while outer is not None:
        places.append(place(outer.f_code.co_filename, outer.f_lineno, outer.f_code.co_name))
        outer = outer.f_back
    return f"{name}: {' > '.join(reversed(places[:MAX_FRAMES]))}"


def say(text: str, level: str = "INFO", *, who: str = "kibun") -> None:
    """Tells the operator on stderr, whatever the level, what follows from options and files of theirs.

    Nothing that came from a client may be in `text`.
    """
    line = f"{who}: {text}"
    if chosen() == "json":
        now = datetime.now(UTC).timestamp()
        line = _line({"time": _time(now), "level": level, "logger": "kibun.server", "event": text}, "json")
    print(line, file=sys.stderr, flush=True)


def quiet_grpc() -> None:
    """Silences what gRPC's core writes to stderr by itself, peers' addresses for one, unless the operator asked for it.

    Must come before grpc is imported, which reads this then. (GRPC_TRACE would write metadata, tokens included.)
    """
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")


# ---- parts of a line


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
    """Types of the exception and of its causes, and where it came through, innermost last."""
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
    told: dict[str, object] = {"error": type(error).__qualname__}
    if causes:
        told["caused_by"] = causes
    return told | {"frames": frames[-MAX_FRAMES:]}


def _cause(error: BaseException) -> BaseException | None:
    return error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def allowed(fields: Mapping[str, object]) -> dict[str, Value]:
    """What of `fields` may be told."""
    checked = ((name, check(fields[name])) for name, check in FIELDS.items() if name in fields)
    return {name: WITHHELD if value is None else value for name, value in checked}


def place(path: str, line: int, function: str) -> str:
    """As "kibun/server/session.py:120 run"; other packages' paths begin at the package."""
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
    logging.getLogger(__name__).critical("an unforeseen error", exc_info=error)
