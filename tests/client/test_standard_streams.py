"""`kibun` in a shell that closes or redirects its standard streams."""

import subprocess
import sys
from pathlib import Path

import pytest

KIBUN = "import sys; sys.argv[0] = 'kibun'; from kibun.client.main import main; main()"
# Opens a file as a command would, and has a child process print.
OPENS = """
import os, subprocess, sys
from kibun.client import standard_streams
standard_streams.prepare()
with open(sys.argv[1], "w") as file:
    assert file.fileno() > 2
    print("printed")
    print("printed", file=sys.stderr)
    subprocess.run(["sh", "-c", "read line; echo printed; echo printed >&2"])
    file.write("written")
"""


def shell(redirect: str, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The exit code is that of the program, also in a pipeline."""
    text = f'{{ "$0" "$@" {redirect}; }}; exit ${{PIPESTATUS[0]}}'
    return subprocess.run(
        ["bash", "-c", text, sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize("arguments", [("--version",), ("--help",), ("doctor", "--json")])
def test_output_that_cannot_be_written(arguments: tuple[str, ...]) -> None:
    full = shell(">/dev/full", KIBUN, *arguments)
    assert (full.returncode, full.stderr) == (1, "kibun: cannot write to standard output: No space left on device\n")


def test_notes_that_cannot_be_written_do_not_keep_results_back() -> None:
    notes = "import sys; from kibun.client import standard_streams; standard_streams.prepare()\n"
    notes += "print('note', file=sys.stderr, flush=True)\nprint('result')"
    done = shell("2>/dev/full", notes)
    assert (done.returncode, done.stdout) == (0, "result\n")


def test_what_libraries_write_past_python_is_left_out() -> None:
    program = "import os, sys; from kibun.client import standard_streams as streams\nstreams.prepare()\n"
    program += "streams.silence_libraries(); os.write(2, b'library'); print('note', file=sys.stderr)"
    done = shell("", program)
    assert (done.returncode, done.stderr) == (0, "note\n")


def test_names_and_texts_cannot_control_the_terminal(tmp_path: Path) -> None:
    done = shell("", KIBUN, "stream", f"{tmp_path}/x\x1b[31m\nred.wav")
    assert done.returncode == 2
    assert done.stderr == f"kibun: {tmp_path}/x\\x1b[31m\\nred.wav does not exist [NO_SUCH_FILE]\n"
    (tmp_path / "x.wav").write_bytes(b"")
    for option in ("--turns", "--traits"):
        done = shell("", KIBUN, "stream", f"{tmp_path}/x.wav", option, f"{tmp_path}/\x1b[31m.csv")
        assert "\x1b" not in done.stderr
        assert done.stderr.count("\n") == 1


def test_a_reader_that_has_had_enough() -> None:
    waits = "import select; gone = select.poll(); gone.register(1, 0); gone.poll()\n"
    done = shell("| true", waits + KIBUN, "models", "list")
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize("redirect", ["<&- >&- 2>&-", ">&-", "2>&-", "<&-", ">&- 2>&-", "<&- 2>&-"])
def test_no_file_takes_the_place_of_a_stream_that_is_closed(redirect: str, tmp_path: object) -> None:
    done = shell(redirect, OPENS, f"{tmp_path}/file")
    assert done.returncode == 0, done.stderr
    with open(f"{tmp_path}/file") as file:
        assert file.read() == "written"
    assert done.stdout.count("printed") == (0 if ">&-" in redirect.replace("2>&-", "") else 2)
    assert done.stderr.count("printed") == (0 if "2>&-" in redirect else 2)
