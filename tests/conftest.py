"""Fixtures that every room's tests share."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from kibun.client.server_process import ServerProcess
from tests.support import ROOT
from tests.support.commands import Kibun

# Tests run side by side, and a process with more threads than its share of the cores waits for them at every product.
# Child processes inherit this; those that choose their number of threads are not affected.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# An example may take as long as it takes: nothing is asserted about time, and other programs may be busy.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of recordings and annotations that are not part of the repository."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no such folder: {folder}")
    return folder


@pytest.fixture
def kibun(capfd: pytest.CaptureFixture[str]) -> Kibun:
    """The command `kibun`."""
    return Kibun(capfd)


@pytest.fixture(scope="session")
def demo_server() -> Iterator[ServerProcess]:
    """`kibun serve --model demo-tiny`: the real server with real models, which takes seconds to start."""
    # As `kibun demo`: it hears generated voices. However slow the machine that tests, nothing is refused or skipped.
    with ServerProcess("demo-tiny", ["--vad", "webrtc", "--target-delay", "60"]) as server:
        yield server
