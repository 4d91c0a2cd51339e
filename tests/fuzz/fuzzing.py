"""What the fuzz targets share: values read out of bytes, and the loop that makes the bytes.

A target is a module with `check(data)`, which raises where a promise is broken, and `seeds()`, inputs to begin with.
pytest runs it without atheris; run by itself it is fuzzed, guided by coverage:

    .venv/bin/python -m tests.fuzz.fuzz_decoder -max_total_time=60 corpus/
"""

import contextlib
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path


class Bytes:
    """Reads small values off the front of `data`; where it has ended, zeros."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __len__(self) -> int:
        return max(len(self._data) - self._at, 0)

    def take(self, size: int) -> bytes:
        """At most `size` bytes."""
        taken = self._data[self._at : self._at + size]
        self._at += size
        return taken

    def number(self, low: int, high: int) -> int:
        """low..high, of at most two bytes."""
        span = high - low + 1
        return low + int.from_bytes(self.take(1 if span <= 256 else 2), "big") % span

    def bit(self) -> bool:
        return self.number(0, 1) == 1


def cut(payload: bytes, sizes: Iterable[int]) -> list[bytes]:
    """The payload in pieces of these sizes, what is left as the last one."""
    pieces, begin = [], 0
    for size in sizes:
        pieces.append(payload[begin : begin + size])
        begin += size
    return [*pieces, payload[begin:]]


def instrumented(module: str) -> contextlib.AbstractContextManager[object]:
    """Around a target's imports of kibun: where the target is the script that runs, they are watched for coverage."""
    if module != "__main__":
        return contextlib.nullcontext()
    try:
        import atheris
    except ImportError:
        sys.exit("atheris is not installed: pip install -c constraints.txt -e '.[fuzz]' (Linux, CPython 3.11 to 3.13)")
    watched: contextlib.AbstractContextManager[object] = atheris.instrument_imports(include=["kibun.server"])
    return watched


def fuzz(check: Callable[[bytes], None], seeds: Iterable[bytes]) -> None:
    """Runs until libFuzzer's options in the command line say so, or `check` raises. Does not return.

    The seeds come on top of the corpus folders that the command line names.
    """
    import atheris

    with tempfile.TemporaryDirectory() as folder:
        for number, seed in enumerate(seeds):
            (Path(folder) / str(number)).write_bytes(seed)
        folders = [a for a in sys.argv[1:] if not a.startswith("-")] or [tempfile.mkdtemp(prefix="kibun-corpus-")]
        options = [a for a in sys.argv[1:] if a.startswith("-")]
        atheris.Setup([sys.argv[0], *options, *folders, folder], check)
        atheris.Fuzz()
