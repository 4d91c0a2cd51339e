"""The contract reads well and stays compatible: comments on everything, and buf's rules."""

import io
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from docs.site import contract
from tests.support import ROOT

PROTO = "kibun/v1/speech_analysis.proto"
BUF = shutil.which("buf", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
needs_buf = pytest.mark.skipif(BUF is None, reason="needs buf: pip install buf-bin")


def buf(*arguments: str) -> subprocess.CompletedProcess[str]:
    assert BUF is not None
    return subprocess.run([BUF, *arguments], cwd=ROOT / "protos", capture_output=True, text=True, check=False)


def test_everything_in_it_has_a_comment() -> None:
    elements = dict(contract.flat(contract.contract()))
    assert {"AudioConfig.sample_rate_hertz", "EndReason.END_REASON_SILENCE", "Conversation.State"} <= elements.keys()
    assert "SpeechAnalysisService.StreamingAnalyze" in elements
    assert not [name for name, element in elements.items() if not element.comment.strip()]


@needs_buf
def test_it_is_lint_free_and_formatted() -> None:
    for arguments in (["lint"], ["format", "--diff", "--exit-code"]):
        done = buf(*arguments)
        assert done.returncode == 0, done.stdout + done.stderr


@needs_buf
def test_the_rules_find_what_breaks_clients(tmp_path: Path) -> None:
    """So that the next test can fail."""
    earlier = tmp_path / PROTO
    earlier.parent.mkdir(parents=True)
    text = (ROOT / "protos" / PROTO).read_text(encoding="utf-8")
    earlier.write_text(text.replace("int32 sample_rate_hertz = 2;", "int64 sample_rate_hertz = 2;"), encoding="utf-8")
    assert earlier.read_text(encoding="utf-8") != text
    done = buf("breaking", "--against", str(tmp_path))
    assert done.returncode != 0
    assert "sample_rate_hertz" in done.stdout


@needs_buf
def test_clients_of_the_last_release_go_on_working(tmp_path: Path) -> None:
    def git(*arguments: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, check=False)

    tag = git("describe", "--tags", "--abbrev=0")
    if tag.returncode:
        pytest.skip("there is no tag: nothing was released yet, or this is no clone with its history")
    archive = git("archive", tag.stdout.decode().strip(), "protos")
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
        files.extractall(tmp_path, filter="data")
    done = buf("breaking", "--against", str(tmp_path / "protos"))
    assert done.returncode == 0, done.stdout + done.stderr
