"""Settings that are refused before anything starts, with the option at fault and the fix."""

import math
import subprocess
import sys

import pytest

from kibun.server.errors import StartError
from kibun.server.settings import Settings


@pytest.mark.parametrize("seconds", [0.0, -1.0, 0.009, 60.1, math.inf, math.nan])
def test_target_delay_is_a_time_that_a_dialogue_can_wait(seconds: float) -> None:
    with pytest.raises(StartError, match=r"--target-delay \S+ is outside 0.01 to 60 seconds; leave it out for at most"):
        Settings(("m",), target_delay_s=seconds)


@pytest.mark.parametrize("seconds", [None, 0.01, 1.5, 60.0])
def test_target_delay_may_be_left_out(seconds: float | None) -> None:
    assert Settings(("m",), target_delay_s=seconds).target_delay_s == seconds


def test_the_command_says_which_option_is_wrong() -> None:
    said = subprocess.run(
        [sys.executable, "-m", "kibun.client.main", "serve", "--model", "demo-tiny", "--target-delay", "0"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert said.returncode == 1
    assert "kibun serve: --target-delay 0 is outside 0.01 to 60 seconds" in said.stderr
