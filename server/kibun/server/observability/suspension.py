"""Detects that this process was suspended: timeouts then must not count that time.

That is so after SIGSTOP, a laptop's lid, or where other processes left it no processor time.
"""

OVERSLEPT_S = 0.25
"""The latest that a timer fires in a process that runs."""


def suspended(late_s: float, *, used_s: float = 0.0) -> bool:
    """Whether a timer that fires `late_s` seconds after it was due shows that this process did not run.

    For a timer of the event loop a blocked loop looks the same. A timer of another thread can tell them apart by
    `used_s`, the processor time that the process used since the timer was set: its own work held it up.
    """
    return late_s > OVERSLEPT_S and used_s <= late_s / 2
