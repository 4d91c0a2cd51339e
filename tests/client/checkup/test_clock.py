"""Clocks compared: what one told between two readings of the other."""

import pytest

from kibun.client.checkup import clock


@pytest.mark.parametrize(
    ("told", "answered_at", "state", "said"),
    [
        (1000.02, 1000.1, "ok", "the same within 0.080 s"),
        (1006.0, 1010.0, "ok", "the same within 6.000 s"),  # a slow answer: what differs is not known
        (1004.0, 1000.0, "ok", "the same within 4.000 s"),
        (1100.0, 1000.0, "warning", "100.0 s behind it"),
        (400.0, 1000.0, "broken", "10.0 minutes ahead of it"),
        (1000.0 + 30 * 86_400, 1000.0, "broken", "30.0 days behind it"),
    ],
)
def test_a_difference_counts_from_where_it_does_harm(told: float, answered_at: float, state: str, said: str) -> None:
    found = clock.compared("server", 1000.0, told, answered_at)
    assert (found.name, found.state) == ("clock, server", state)
    assert said in found.detail
