"""Lines on their way to a descriptor that is full, closed, torn or not read."""

import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from kibun.server.observability.log_output import MAX_LINE, MAX_WAITING_BYTES, LogOutput, LogStream


class Pipe:
    """A pipe that holds one page, and what was read from it."""

    def __init__(self) -> None:
        self.end, self.begin = os.pipe()
        fcntl.fcntl(self.begin, fcntl.F_SETPIPE_SZ, 4096)

    def read_until(self, last: bytes) -> bytes:
        content = b""
        while not content.endswith(last):
            piece = os.read(self.end, 1 << 16)
            assert piece
            content += piece
        return content

    def close(self) -> None:
        os.close(self.end)
        os.close(self.begin)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    with closing(Pipe()) as pipe:
        yield pipe


def told(count: int) -> bytes:
    return b"lost %d\n" % count


def test_lines_come_out_whole_and_in_order(pipe: Pipe) -> None:
    output = LogOutput(pipe.begin, told)
    lines = [b"%d %s\n" % (number, b"x" * number) for number in range(300)]
    for line in lines:
        output.write(line)
    assert pipe.read_until(lines[-1]) == b"".join(lines)
    output.flush(20)
    assert output.lost == 0


@pytest.mark.parametrize("blocking", [True, False])
def test_who_logs_does_not_wait_for_the_reader(pipe: Pipe, blocking: bool) -> None:
    """Lines beyond what may wait are lost, and told of once all others were written."""
    os.set_blocking(pipe.begin, blocking)
    output = LogOutput(pipe.begin, told)
    line = b"x" * 1023 + b"\n"
    taken = MAX_WAITING_BYTES // len(line)
    for _ in range(taken + 10):
        output.write(line)
    output.flush(0.01)
    # The pipe has taken some; whether before or after the last lines came, only the thread knows.
    lost = output.lost
    assert 0 < lost <= 10
    assert pipe.read_until(told(lost)) == line * (taken + 10 - lost) + told(lost)
    output.write(b"another\n")
    assert pipe.read_until(b"another\n") == b"another\n", "it is told of once"


def test_a_reader_that_has_ended_loses_lines(pipe: Pipe) -> None:
    output = LogOutput(pipe.begin, told)
    with Path(os.devnull).open() as null:
        os.dup2(null.fileno(), pipe.end)
    output.write(b"one\ntwo\n")
    output.write(b"three\n")
    output.flush(20)
    assert output.lost == 3


def test_without_a_descriptor_all_lines_are_lost() -> None:
    output = LogOutput(None, told)
    output.write(b"one\n")
    output.flush(20)
    assert output.lost == 1


def test_a_line_that_was_cut_off_is_ended(pipe: Pipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a disk that becomes full within a line, and then has room again."""
    with (tmp_path / "log").open("wb") as log:
        output, full = LogOutput(log.fileno(), told), threading.Event()
        write = os.write

        def write_three(descriptor: int, data: bytes) -> int:
            if full.is_set():
                raise OSError(28, "no space")
            full.set()
            return write(descriptor, data[:3])

        monkeypatch.setattr(os, "write", write_three)
        output.write(b"abcdef\n")
        output.flush(20)
        monkeypatch.undo()
        output.write(b"ghi\n")
        output.flush(20)
    assert (tmp_path / "log").read_bytes() == b"abc\nghi\nlost 1\n"


def test_what_is_printed_comes_in_lines(pipe: Pipe) -> None:
    output = LogOutput(pipe.begin, told)
    stream = LogStream(output, pipe.begin)
    print("a", "b", file=stream)
    print("begun ", end="", file=stream)
    output.write(b"logged\n")
    print("and ended: \udce9", file=stream)
    assert pipe.read_until(b"e9\n") == b"a b\nlogged\nbegun and ended: \\udce9\n"
    stream.write("x" * (MAX_LINE + 1))
    stream.write("y")
    stream.flush()
    assert pipe.read_until(b"y\n") == b"x" * (MAX_LINE + 1) + b"\ny\n"
    assert stream.fileno() == pipe.begin
    assert not stream.isatty()
