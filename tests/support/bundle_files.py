"""Files of bundles and checkpoints, as tests change them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def edit_json(path: Path, **changes: Any) -> None:
    """Replaces some values of a JSON object."""
    write_json(path, {**json.loads(path.read_text(encoding="utf-8")), **changes})


def each(name: str, *values: Any) -> list[tuple[str, Any]]:
    """A field with each of these values, for a parametrized test."""
    return [(name, value) for value in values]


class Payload:
    """Leaves a mark if anything unpickles it."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.mark,)
