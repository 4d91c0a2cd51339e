from __future__ import annotations

import pytest

from tests.support import session_world


@pytest.fixture(params=[True, False], ids=["eager", "plain"])
def eager(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """All that a session promises holds with eager finals and without them."""
    monkeypatch.setattr(session_world, "EAGER", request.param)
    wanted: bool = request.param
    return wanted
