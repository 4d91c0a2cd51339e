"""Fixtures of the tests of the server."""

from tests.support.serving import stub

__all__ = ["stub"]
