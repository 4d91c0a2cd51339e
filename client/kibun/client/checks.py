"""Values that callers give: of the type that is documented, and in a range that can be sent."""

import math
import numbers
import os
import types
from dataclasses import fields
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from kibun.client.errors import ErrorDetails, InvalidRequestError, WrongTypeError

# What the contract can carry: int32, and durations of 10,000 years.
_MAX_INT = 2**31 - 1
_MAX_S = 315_576_000_000.0
_KINDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    str: "a string",
    bool: "True or False",
    bytes: "bytes",
    Path: "a path",
    os.PathLike: "a path",
    datetime: "a datetime",
    types.NoneType: "None",
}


def check_timeout(value: float | None, name: str = "timeout_s") -> None:
    """Raises InvalidRequestError unless `value` is None or a finite number of seconds above 0."""
    if value is None:
        return
    check_value(name, value, float)
    if value <= 0:
        raise _wrong(f"{name} must be above 0 seconds, not {value!r}: give seconds, or None for no limit", name)


def check_fields(options: Any, prefix: str = "") -> None:
    """Raises InvalidRequestError naming the first field of a dataclass whose value is not as it is annotated."""
    hints = _hints(options.__class__)
    for field in fields(options):
        check_value(prefix + field.name, getattr(options, field.name), hints[field.name])


def check_value(name: str, value: object, kind: Any) -> None:
    """Raises InvalidRequestError unless `value` is of the annotated type `kind`: a class, a union, or a Literal."""
    if get_origin(kind) is Literal:
        if not (isinstance(value, str) and value in get_args(kind)):
            raise _wrong(f"{name} cannot be {value!r}: choose one of {', '.join(get_args(kind))}", name)
        return
    kinds = get_args(kind) if get_origin(kind) is types.UnionType else (kind,)
    if not any(_is_kind(value, one) for one in kinds):
        wanted = " or ".join(_KINDS.get(one, f"kibun.client.{one.__name__}") for one in kinds)
        message = f"{name} must be {wanted}, not {_shown(value)} ({type(value).__name__})"
        raise WrongTypeError(message, _details(name, message, WrongTypeError.default_reason))
    if isinstance(value, str):
        _check_text(name, value)
    elif int in kinds or float in kinds:
        _check_range(name, value, _MAX_INT if int in kinds else _MAX_S)


def _is_kind(value: object, kind: Any) -> bool:
    if kind is int:  # also numpy's
        return isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if kind is float:
        return isinstance(value, numbers.Real) and not isinstance(value, bool)
    return isinstance(value, kind)


def _check_text(name: str, value: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise _wrong(f"{name} holds characters that cannot be written as UTF-8 (lone surrogates)", name) from None


def _check_range(name: str, value: Any, limit: float) -> None:
    if value is not None and not (math.isfinite(value) and abs(value) <= limit):
        raise _wrong(f"{name} must be a finite number within ±{limit:.12g}, not {value!r}", name)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}…"


@cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


def _wrong(message: str, name: str) -> InvalidRequestError:
    return InvalidRequestError(message, _details(name, message, "INVALID_OPTION"))


def _details(name: str, message: str, reason: str) -> ErrorDetails:
    return ErrorDetails(reason=reason, fields={name: message})
