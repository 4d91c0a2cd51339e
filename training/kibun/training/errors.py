"""Errors of a corpus, worded so that it can be fixed, and how commands end with an error."""

from collections.abc import Sequence
from typing import NoReturn

import typer

SHOWN = 50


class ManifestError(ValueError):
    """A manifest, its splits or its audio cannot be used; the message names file, line, field and the fix."""


class CorpusError(ManifestError):
    """A corpus cannot be made into a manifest. ``problems`` lists all of them, the message the first 50."""

    def __init__(self, what: str, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        count = len(self.problems)
        more = [f"… and {count - SHOWN} more (all of them with --json)"] if count > SHOWN else []
        noun = "problem" if count == 1 else "problems"
        super().__init__("\n  ".join([f"{what}: {count} {noun}; nothing was written", *self.problems[:SHOWN], *more]))


def fail(message: str) -> NoReturn:
    """End a command: the message goes to standard error, the exit code is 2."""
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(2)


def check_one_form(*, as_json: bool, as_markdown: bool) -> None:
    """End a command that was asked for two forms of its tables."""
    if as_json and as_markdown:
        fail("--json and --markdown exclude each other: choose one")
