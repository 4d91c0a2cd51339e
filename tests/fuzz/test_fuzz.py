"""The fuzz targets without their engine: seeds, what fuzzing once found, and some random bytes."""

import random
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest

from kibun.server.api import requests
from kibun.server.errors import invalid
from kibun.v1 import speech_analysis_pb2 as pb
from tests.fuzz import fuzz_parser
from tests.fuzz.fuzzing import Bytes, cut

FOLDER = Path(__file__).parent
TARGETS = sorted(path.stem for path in FOLDER.glob("fuzz_*.py"))
RANDOM_INPUTS = 300  # per target: about half a second each


def parts(target: str) -> tuple[Callable[[bytes], None], list[bytes]]:
    """What checks an input of this target, and its seeds."""
    module = import_module(f"tests.fuzz.{target}")
    return module.check, list(module.seeds())


@pytest.mark.parametrize("target", TARGETS)
def test_seeds_and_earlier_findings(target: str) -> None:
    check, seeds = parts(target)
    assert len(seeds) > 10
    for seed in seeds:
        check(seed)
    for path in sorted((FOLDER / "regressions" / target.removeprefix("fuzz_")).glob("*")):
        check(path.read_bytes())


@pytest.mark.parametrize("target", TARGETS)
def test_random_and_mutated_bytes(target: str) -> None:
    check, seeds = parts(target)
    chance = random.Random(target)
    for _ in range(RANDOM_INPUTS):
        check(chance.randbytes(chance.choice((0, 3, 40, 400, 2000))))
        check(mutated(chance, chance.choice(seeds)))


def mutated(chance: random.Random, seed: bytes) -> bytes:
    """A few bytes changed, doubled or left out."""
    data = bytearray(seed)
    for _ in range(chance.randrange(1, 6)):
        at = chance.randrange(len(data) + 1)
        match chance.randrange(3):
            case 0:
                data[at : at + 1] = chance.randbytes(1)
            case 1:
                data[at:at] = data[at : at + chance.randrange(1, 9)]
            case 2:
                del data[at : at + chance.randrange(1, 9)]
    return bytes(data)


def test_a_target_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """An identifier that is let through, and an error that reveals the server's insides."""
    monkeypatch.setattr(requests, "identifier", lambda value, field: value)
    with pytest.raises(AssertionError):
        fuzz_parser.check(b"\2" + pb.GetConversationRequest(conversation_id="a\nb").SerializeToString())
    monkeypatch.undo()
    failure = invalid("INVALID_ID", "turn_id", "DecodeError in /srv/kibun/service.py")
    with pytest.raises(AssertionError):
        fuzz_parser.check_failure(failure)


def test_bytes_are_read_to_the_end_and_then_zeros() -> None:
    source = Bytes(b"\x05\x01\x00ab")
    assert (source.number(10, 12), source.number(0, 999), source.take(9), len(source)) == (12, 256, b"ab", 0)
    assert (source.number(3, 9), source.bit()) == (3, False)
    assert cut(b"abcde", [0, 2]) == [b"", b"ab", b"cde"]


def test_one_command_fuzzes_all_and_reports_what_it_did(tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="needs atheris, as in the extra fuzz")
    command = [sys.executable, "-m", "tests.fuzz.run", "decoder", "--minutes", "0.02", "--corpus", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert " executions in 1 s, " in done.stdout
    assert any((tmp_path / "decoder").iterdir()), "what reached new code is kept"
