"""Fixtures of the tests of the contract."""

from tests.support.serving import stub

__all__ = ["stub"]
