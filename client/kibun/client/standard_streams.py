"""Standard input, output and error of a command: closed, not writable, or shared with libraries that talk."""

import io
import os
import sys
from contextlib import suppress

STDERR = 2  # the highest number of a standard stream


def prepare() -> None:
    """Makes the standard streams fit for a command, whatever they are; `output_error` then tells of standard output.

    Notes that cannot be written to standard error, as on a full disk, do not end a command whose results can be.
    """
    _open_missing()
    if sys.stdout is sys.__stdout__ and isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout = _Output(sys.stdout)
    if sys.stderr is sys.__stderr__ and isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr = _Notes(sys.stderr)


def printable(text: str) -> str:
    """Text with characters that are no print, such as line ends and those that control a terminal, as escapes."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def output_error() -> OSError | None:
    """Writes what standard output still holds; returns the error that it has met, or None."""
    with suppress(OSError):
        sys.stdout.flush()
    return sys.stdout.error if isinstance(sys.stdout, _Output) else None


def silence_libraries() -> None:
    """Keeps libraries from writing to standard error past Python, as the MP3 decoder does of each damaged frame.

    Whoever asks for gRPC's lines, by GRPC_VERBOSITY, gets those of all.
    """
    before = sys.stderr
    if not isinstance(before, _Notes) or os.environ.get("GRPC_VERBOSITY", "NONE") != "NONE":
        return
    ours = os.fdopen(os.dup(STDERR), "w", encoding=before.encoding)
    sys.stderr = _Notes(ours)
    sys.stderr.kept = (ours, before)  # collected as garbage, they would close what they write to
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, STDERR)
    os.close(null)


def _open_missing() -> None:
    """Opens the null device in place of each stream that is closed.

    Otherwise the next file or connection would get its number, and what another library or a child process prints
    would be written into it.
    """
    closed = [name for name in ("stdin", "stdout", "stderr") if getattr(sys, name) is None]
    if not closed:
        return
    while (null := os.open(os.devnull, os.O_RDWR)) <= STDERR:  # the lowest free number
        os.set_inheritable(null, True)
    os.close(null)
    for name in closed:
        setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: SIM115


class _Stream(io.TextIOWrapper):
    def __init__(self, stream: io.TextIOWrapper) -> None:
        # What the encoding lacks, such as a file's name in a terminal that knows ASCII only, is written as an escape.
        super().__init__(
            stream.buffer, stream.encoding, "backslashreplace", None, stream.line_buffering, stream.write_through
        )


class _Output(_Stream):
    """Remembers the error that a write ended with: what called it may report another."""

    error: OSError | None = None

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            self.error = error
            raise


class _Notes(_Stream):
    """Loses what cannot be written."""

    kept: tuple[io.TextIOBase, ...] = ()

    def write(self, text: str) -> int:
        with suppress(OSError):
            super().write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            super().flush()
