"""Shows comments above attributes, which the code has in place of docstrings, in the reference of the Python API.

Not what a constructor computes attributes from, which is no default.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import griffe


class Comments(griffe.Extension):
    """The extension that griffe loads."""

    def on_attribute_instance(self, *, attr: griffe.Attribute, **_: Any) -> None:
        """Takes the lines of comment right above an attribute for its docstring, unless it has one."""
        if "class-attribute" not in attr.labels:
            attr.value = None
        if attr.docstring is not None or attr.lineno is None or not isinstance(attr.filepath, Path):
            return
        lines: list[str] = []
        for line in reversed(_lines(attr.filepath)[: attr.lineno - 1]):
            if not line.startswith("#"):
                break
            lines.insert(0, line.removeprefix("#").removeprefix(":").strip())
        if lines:
            attr.docstring = griffe.Docstring("\n".join(lines), parent=attr)


@cache
def _lines(path: Path) -> list[str]:
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
