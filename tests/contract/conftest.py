"""Fixtures of the tests of the contract."""

from collections.abc import Iterator

import pytest

from tests.support import serving
from tests.support.serving import stub

__all__ = ["eager_finals", "stub"]


@pytest.fixture(params=[True, False], ids=["eager", "plain"], scope="module")
def eager_finals(request: pytest.FixtureRequest) -> Iterator[None]:
    """What the contract promises holds with eager finals and without them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(serving, "EAGER_FINALS", request.param)
        yield
