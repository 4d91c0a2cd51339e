"""What is watched whether or not metrics are served."""

import asyncio
import time

from kibun.server.observability.setup import LAG_EVERY_S, Observability
from kibun.server.observability.telemetry import LATELY


async def test_the_event_loop_is_late_while_something_keeps_blocking_it() -> None:
    observability = Observability(otlp_endpoint=None, metrics_host="127.0.0.1", metrics_port=None)
    observability.open(ready=lambda: True, alive=lambda: True)
    try:
        for _ in range(LATELY + 1):
            time.sleep(LAG_EVERY_S + 0.2)  # noqa: ASYNC251 # blocks the loop beyond the moment of its next look
            await asyncio.sleep(0)
        assert observability.telemetry.loop_late_s > 0.1
    finally:
        await observability.close()
