"""This machine's clock, compared with others."""

import time
from datetime import UTC, datetime

from kibun.client.checkup.finding import Finding

# A certificate or token made a moment ago is refused by a clock that is behind by more than that moment.
TOLERATED_S = 5.0
BROKEN_S = 300.0
_FIX = "synchronise both machines by NTP (timedatectl set-ntp true)"


def compared(with_whom: str, asked_at: float, told: float, answered_at: float) -> Finding:
    """What `with_whom` told between two readings of this clock, all three in seconds since 1970.

    The other clock was read at any moment between them, so that half of that time is the error of the comparison.
    """
    uncertain_s = (answered_at - asked_at) / 2
    ahead_s = (asked_at + answered_at) / 2 - told
    name = f"clock, {with_whom}"
    if abs(ahead_s) <= TOLERATED_S + uncertain_s:
        return Finding(name, "ok", f"the same within {max(abs(ahead_s) + uncertain_s, 0.001):.3f} s")
    text = (
        f"this machine's clock is {_span(abs(ahead_s))} {'ahead of' if ahead_s > 0 else 'behind'} it: tokens and "
        "certificates expire, or are not valid yet, on one side only, and times in results are off (deadlines are not: "
        f"they are spans): {_FIX}"
    )
    return Finding(name, "broken" if abs(ahead_s) > BROKEN_S + uncertain_s else "warning", text)


def alone() -> Finding:
    """Of a clock that could be compared with none."""
    text = f"reads {utc(time.time())}; compared with none, as neither --server nor --store answered with its time"
    return Finding("clock", "absent", text)


def utc(seconds: float) -> str:
    """For people."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _span(seconds: float) -> str:
    for unit, size in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"
