"""Lines and numbers of text files, as manifests, users' tables, annotations and predictions have them."""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Scale = tuple[float, float]
"""Its lowest and its highest value."""


def json_objects(path: Path, text: str, error: Callable[[str], ValueError]) -> Iterator[tuple[str, dict[str, Any]]]:
    r"""(file:line, object) of every line of JSONL that is not blank.

    Lines end in \n alone: a text in JSON may hold other line separators. Raises ``error`` for a line that is not a JSON
    object; the message names file and line.
    """
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = json.loads(line)
        except ValueError as cause:
            raise error(f"{where}: not JSON ({cause})") from cause
        if not isinstance(row, dict):
            raise error(f"{where}: must be a JSON object, is {type(row).__name__}")
        yield where, row


def as_float(value: Any) -> float:
    """A number or the text of one as a float; anything else is NaN, which lies in no range."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def rescale(value: float, scale: Scale, target: Scale) -> float:
    """Map a value linearly from one scale to another, rounded to 6 decimals."""
    share = (value - scale[0]) / (scale[1] - scale[0])
    return round(target[0] + share * (target[1] - target[0]), 6)
