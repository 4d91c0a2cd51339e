"""A server that leaks, to show that a leak would be found: `python -m kibun.bench.load.soak_server BYTES PORT_FILE`.

kibun's own server, except that it keeps BYTES bytes for every stream ever opened.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

from kibun.bench.load.front_servers import STUB_LOADER
from kibun.server.serving import Server
from kibun.server.session.session import Session
from kibun.server.settings import Settings


def leak(size: int) -> None:
    """From now on every stream leaves `size` bytes behind."""
    leaked: list[bytearray] = []
    make = Session.__init__

    def make_and_leak(self: Session, *arguments: Any) -> None:
        leaked.append(bytearray(size))
        make(self, *arguments)

    Session.__init__ = make_and_leak  # type: ignore[method-assign,assignment]


if __name__ == "__main__":
    leak(int(sys.argv[1]))
    asyncio.run(Server(Settings(models=("stub",), port=0, port_file=Path(sys.argv[2]), loader=STUB_LOADER)).run())
