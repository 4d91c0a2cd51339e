"""What operators see: log lines, metrics, traces, and a watchdog over the event loop.

Every other room reports to it through `telemetry` and `logs`.
"""
