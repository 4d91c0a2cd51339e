"""What tests of several rooms share. No test module imports another; what two need lies here."""

from pathlib import Path
from typing import TypeVar

#: Of the repository.
ROOT = Path(__file__).resolve().parents[2]

T = TypeVar("T")


def present(value: T | None) -> T:
    """A value that must not be None."""
    assert value is not None
    return value
