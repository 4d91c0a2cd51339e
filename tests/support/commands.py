"""Commands, run in the test's own process."""

import json
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from kibun.client import main as cli


class Kibun:
    """Runs `kibun` as a shell would, and remembers what it printed."""

    def __init__(self, capfd: pytest.CaptureFixture[str]) -> None:
        self._capfd = capfd
        self.out = self.err = ""

    def __call__(self, *arguments: object) -> int:
        """The exit code."""
        with pytest.raises(SystemExit) as caught:
            cli.main([str(argument) for argument in arguments])
        self.out, self.err = self._capfd.readouterr()
        return int(caught.value.code or 0)

    @property
    def lines(self) -> list[dict[str, Any]]:
        """Standard output, a JSON object per line."""
        return [json.loads(line) for line in self.out.splitlines()]


def invoke(app: typer.Typer, *arguments: object, code: int = 0) -> str:
    """Standard output of a command of `app`, or standard error where it is to fail with `code`."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return result.stderr if code else result.stdout
