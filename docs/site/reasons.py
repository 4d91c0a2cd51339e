"""Every reason of an error or a warning with what it tells its reader, as the code has them, and the page of the site.

Texts are the code's own: each names the cause and what to do. They are read from the syntax trees, so that no second
list can differ from them; what is computed at run time shows as the name of what is computed.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TypeAlias

ROOT = Path(__file__).resolve().parents[2]
SERVER, CLIENT = ROOT / "server" / "kibun" / "server", ROOT / "client" / "kibun" / "client"

_Function: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef

_REASON = re.compile(r"(?=.{4})[A-Z][A-Z0-9]*(_[A-Z0-9]+)*\Z")
#: What is called with a reason: where that stands, and the status that follows from it.
_CALLS = {
    "Failure": (1, ""),
    "__init__": (1, ""),  # of what derives from Failure
    "invalid": (0, "INVALID_ARGUMENT"),
    "AudioError": (0, "INVALID_ARGUMENT"),
    "_exhausted": (0, "RESOURCE_EXHAUSTED"),
    "BackendError": (0, "INTERNAL"),
    "StreamWarning": (0, "warning"),
    "Suspicion": (0, "warning"),
    "ErrorDetails": (0, ""),
    "_error": (1, "AudioFileError"),
    "_details": (2, ""),
}
#: Of BackendError: at the start of a server, or what the session tells clients in its own words.
_NOT_TOLD = {"LOAD_FAILED", "NO_WORKER", "UNAVAILABLE"}
_TITLE = """# Errors and warnings

Each error of a call has a *reason*, which stays the same between versions, and a text, which names the cause and what
to do. In gRPC the reason is in `google.rpc.ErrorInfo` of the status (`grpc-status-details-bin`), beside it the field
at fault (`BadRequest`), the time to wait (`RetryInfo`) and the limit that was reached (`QuotaFailure`). In Python it
is `error.reason`, with `error.field`, `error.retry_after_s` and `error.request_id`. A warning (`StreamWarning`) has a
reason and a text too, and the stream goes on.

This page is made of the code. What is *slanted* is filled in when it happens; texts may change, reasons do not.
"""


@dataclass
class Reason:
    """`kinds`: names of status codes, "warning", "gap", or classes of the SDK's errors. `texts`: may be empty."""

    name: str
    kinds: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    def add(self, kind: str, texts: list[str]) -> None:
        self.kinds += [kind] if kind and kind not in self.kinds else []
        self.texts += [text for text in dict.fromkeys(texts) if text not in self.texts]


def of_server() -> dict[str, Reason]:
    """Reasons of statuses."""
    return _sources(SERVER).reasons(lambda kind: kind not in ("warning", "gap"))


def of_warnings() -> dict[str, Reason]:
    """Reasons of warnings."""
    return _sources(SERVER).reasons(lambda kind: kind == "warning")


def of_gaps() -> dict[str, Reason]:
    """Reasons of what is missing in a watch."""
    return _sources(SERVER).reasons(lambda kind: kind == "gap")


def of_client() -> dict[str, Reason]:
    """Reasons of errors that the SDK raises by itself."""
    return _sources(CLIENT).reasons(lambda kind: True)


class _Sources:
    """The modules of a folder, each node with its parent and module."""

    def __init__(self, folder: Path) -> None:
        files = sorted(path for path in folder.rglob("*.py") if "_pb2" not in path.name)
        self._names = [path.name for path in files]
        self._modules = [ast.parse(path.read_text(encoding="utf-8")) for path in files]
        self._nodes = [node for module in self._modules for node in ast.walk(module)]
        self._parents = {child: parent for parent in self._nodes for child in ast.iter_child_nodes(parent)}
        self._asking: set[tuple[ast.AST, str]] = set()  # parameters whose texts are being looked for
        self._calls: dict[str, list[ast.Call]] = {}
        self._assignments: dict[tuple[ast.AST, str], list[ast.Assign]] = {}
        for node in self._nodes:
            if isinstance(node, ast.Call):
                self._calls.setdefault(_name(node.func), []).append(node)
            elif isinstance(node, ast.Assign):
                for target in node.targets:
                    self._assignments.setdefault((self._scope(node), _name(target)), []).append(node)

    def reasons(self, wanted: Callable[[str], bool]) -> dict[str, Reason]:
        """By name: those of a kind that is wanted."""
        found: dict[str, Reason] = {}
        for node in self._nodes:
            for name, kind, texts in self._reasons_at(node):
                if wanted(kind):
                    found.setdefault(name, Reason(name)).add(kind, texts)
        return dict(sorted(found.items()))

    def returned(self, name: str) -> list[str]:
        """The texts that functions of a module return, in order."""
        module = self._modules[self._names.index(name)]
        returns = sorted((node for node in ast.walk(module) if isinstance(node, ast.Return)), key=lambda n: n.lineno)
        return list(dict.fromkeys(text for node in returns for text in self._resolve(node.value)))

    def _reasons_at(self, node: ast.AST) -> Iterator[tuple[str, str, list[str]]]:
        if isinstance(node, ast.Call) and (called := _CALLS.get(_name(node.func))):
            position, kind = called
            given = [*node.args[position : position + 1], *(k.value for k in node.keywords if k.arg == "reason")]
            for name in (name for argument in given for name in self._names_of(argument)):
                if not (_name(node.func) == "BackendError" and name in _NOT_TOLD):
                    yield name, kind or self._kind(node), self._texts(node)
        elif isinstance(node, ast.Tuple) and len(node.elts) == 2 and isinstance(self._parents[node], ast.Return):
            if name := _reason(node.elts[1]):  # what becomes of `self._error(*…)`
                yield name, "AudioFileError", self._resolve(node.elts[0])
        elif isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if key is not None and (name := _reason(key)) and (texts := self._resolve(value)):
                    yield name, "gap", texts
        elif isinstance(node, ast.ClassDef):
            for line in node.body:
                if isinstance(line, ast.Assign) and _name(line.targets[0]) == "default_reason":
                    name = _reason(line.value)
                    if name and name != "UNKNOWN":
                        yield name, node.name, [(ast.get_docstring(node) or "").split("\n")[0]]

    def _names_of(self, node: ast.expr) -> list[str]:
        if isinstance(node, ast.Name) and (value := self._assigned(node)) is not None:
            return self._names_of(value)
        if isinstance(node, ast.IfExp):
            return [*self._names_of(node.body), *self._names_of(node.orelse)]
        return list(filter(None, [_reason(node)]))

    # ---- the status, or the class of the error

    def _kind(self, call: ast.Call) -> str:
        if _name(call.func) == "ErrorDetails" or _name(call.func) == "_details":
            return next((name for c in self._around(call) if (name := _name(c.func)).endswith("Error")), "")
        kind = call.args[0]
        if isinstance(kind, ast.Name):
            kind = self._assigned(kind) or kind
        return _name(kind)

    # ---- texts

    def _texts(self, call: ast.Call) -> list[str]:
        for around in (call, *self._around(call)):
            for argument in around.args:
                if texts := self._resolve(argument):
                    return texts
        return []

    def _around(self, call: ast.Call) -> Iterator[ast.Call]:
        """The calls that this one is an argument of: directly, by the name of its result, or of what returns it."""
        node: ast.AST = call
        while not isinstance(parent := self._parents[node], ast.stmt):
            node = parent
            if isinstance(node, ast.Call):
                yield node
        if isinstance(parent, ast.Assign):
            names = {_name(target) for target in parent.targets}
            for other in ast.walk(self._scope(parent)):
                if isinstance(other, ast.Call) and names & {_name(argument) for argument in other.args}:
                    yield other
        elif isinstance(parent, ast.Return) and not isinstance(scope := self._scope(parent), ast.Module):
            for caller in self._calls_of(scope):
                yield from self._around(caller)

    def _resolve(self, node: ast.AST | None) -> list[str]:
        """The texts that an expression may be; none for what is no sentence."""
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            return [node.value] if " " in node.value else []
        if isinstance(node, ast.JoinedStr):
            text = "".join(self._part(part) for part in node.values)
            return [text] if " " in text else []
        if isinstance(node, ast.BoolOp | ast.IfExp):
            sides = node.values if isinstance(node, ast.BoolOp) else [node.body, node.orelse]
            return [text for side in sides for text in self._resolve(side)]
        if isinstance(node, ast.Name):
            if (value := self._assigned(node)) is not None:
                return self._resolve(value)
            return self._from_callers(node)
        return []

    def _part(self, part: ast.expr) -> str:
        """A part of an f-string: its text, the sentences that it may be, or a name for what it will be."""
        if not isinstance(part, ast.FormattedValue):
            return str(part.value) if isinstance(part, ast.Constant) else ""
        value = part.value
        if isinstance(value, ast.Name):
            if (number := self._number(value)) is not None:
                return f"{number:,g}" if number < 1e6 else f"{number:,.0f}"
            if texts := [text for text in self._resolve(value) if text.count(" ") > 1]:
                return " / ".join(dict.fromkeys(texts))
        name = _name(value).strip("_")
        return "*type*" if _name(value) == "__name__" else f"*{name}*" if name else "…"

    def _number(self, name: ast.Name) -> float | None:
        """That a module gives to a name, and this module may have imported from it."""
        module = self._module(name)
        for line in module.body:
            if isinstance(line, ast.ImportFrom) and any(name.id == (a.asname or a.name) for a in line.names):
                file = f"{(line.module or '').rpartition('.')[2]}.py"
                module = self._modules[self._names.index(file)] if file in self._names else module
        values = self._assignments.get((module, name.id))
        return _number(values[-1].value) if values else None

    def _assigned(self, name: ast.Name) -> ast.expr | None:
        """What was last assigned to a name before it is used, in its function or module."""
        scope = self._scope(name)
        while True:
            lines = self._assignments.get((scope, name.id), [])
            before = [line for line in lines if line.lineno < name.lineno or isinstance(scope, ast.Module)]
            if before:
                return max(before, key=lambda line: line.lineno).value
            if isinstance(scope, ast.Module):
                return None
            scope = self._scope(scope)

    def _from_callers(self, name: ast.Name) -> list[str]:
        """What callers of the function pass as its parameter of this name."""
        scope = self._scope(name)
        if isinstance(scope, ast.Module):
            return []
        parameters = [a.arg for a in scope.args.args if a.arg != "self"]
        if name.id not in parameters:
            return []
        if (scope, name.id) in self._asking:
            return []
        self._asking.add((scope, name.id))
        position = parameters.index(name.id)
        texts: list[str] = []
        for call in self._calls_of(scope):
            given = [*call.args[position : position + 1], *(k.value for k in call.keywords if k.arg == name.id)]
            for argument in given:
                texts += self._resolve(argument)
        self._asking.discard((scope, name.id))
        return texts

    def _calls_of(self, function: _Function) -> list[ast.Call]:
        """Of a private function, those in its module."""
        calls = [call for call in self._calls.get(function.name, []) if self._scope(call) is not function]
        if function.name.startswith("_"):
            return [call for call in calls if self._module(call) is self._module(function)]
        return calls

    def _scope(self, node: ast.AST) -> _Function | ast.Module:
        node = self._parents[node]
        while not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Module):
            node = self._parents[node]
        return node

    def _module(self, node: ast.AST) -> ast.Module:
        while not isinstance(node, ast.Module):
            node = self._parents[node]
        return node


@cache
def _sources(folder: Path) -> _Sources:
    return _Sources(folder)


def _reason(node: ast.expr) -> str:
    value = node.value if isinstance(node, ast.Constant) else None
    return value if isinstance(value, str) and _REASON.match(value) else ""


def _name(node: ast.AST) -> str:
    """The last name of an expression such as `a.b`; "" for others."""
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def _number(node: ast.expr) -> float | None:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool):
        return node.value
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult | ast.Pow):
        left, right = _number(node.left), _number(node.right)
        if left is not None and right is not None:
            return left * right if isinstance(node.op, ast.Mult) else float(left**right)
    return None


# ---- the page

_OF_CALLS = """## Errors of a call

With `INTERNAL` the server failed, not the request: try again, and if that fails too, give the operator the request's
id (`request_id`), by which its log has the rest. Where the text says that the turn can be resumed, the SDK does so.
"""
_OF_GAPS = """## Gaps of a watch

What a `WatchGap` of `WatchConversation` says is missing; the watch goes on.
"""
_OF_SDK = """## Raised by the SDK

Before anything is sent, or about the connection: these have no status (`error.code` is empty, but for those that a
status of gRPC's own became).
"""
_OF_CONNECTIONS = """## No connection

`UnavailableError`, `AuthenticationError` and `DeadlineError` of the SDK say what was tried and what to check:
"""


def page() -> str:
    """The table of reasons, in markdown."""
    refused = _table(of_server(), "status")
    warnings = _table(of_warnings(), "")
    gaps = _table(of_gaps(), "")
    raised = _table(of_client(), "class")
    texts = [text for text in _sources(CLIENT).returned("explain.py") if not text.startswith("…")]  # gRPC's own alone
    unreachable = "\n".join(f"- {_cell(text)}" for text in texts)
    parts = [
        _TITLE,
        _OF_CALLS,
        refused,
        "## Warnings",
        warnings,
        _OF_GAPS,
        gaps,
        _OF_SDK,
        raised,
        _OF_CONNECTIONS,
        unreachable,
    ]
    return "\n\n".join(parts) + "\n"


def _table(reasons: dict[str, Reason], kind: str) -> str:
    head = (
        f"| reason | {kind} | cause, and what to do |\n|---|---|---|"
        if kind
        else "| reason | cause, and what to do |\n|---|---|"
    )
    lines = [head]
    for reason in reasons.values():
        kinds = ", ".join(f"`{k}`" for k in reason.kinds)
        cells = [f"`{reason.name}`", *([kinds] if kind else []), "<br>".join(map(_cell, reason.texts)) or "see above"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").replace("[", "\\[").split())
