"""When a late timer shows that this process did not run."""

import pytest

from kibun.server.observability.suspension import OVERSLEPT_S, suspended


@pytest.mark.parametrize(
    ("late_s", "used_s", "expected"),
    [
        (0.0, 0.0, False),
        (OVERSLEPT_S, 0.0, False),
        (OVERSLEPT_S + 0.01, 0.0, True),
        (12.0, 5.9, True),
        (12.0, 6.1, False),
    ],
    ids=["in time", "the latest", "too late", "used less than half of it", "computed for most of it"],
)
def test_a_late_timer(late_s: float, used_s: float, expected: bool) -> None:
    assert suspended(late_s, used_s=used_s) is expected
