"""Reads the metrics and probes of a running `kibun serve --metrics-port 0`."""

import asyncio
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable

from prometheus_client.parser import text_string_to_metric_families

from tests.support.serving import RunningServer


def site(server: RunningServer, within_s: float = 20.0) -> str:
    """Base URL of the metrics, as the server says it."""
    end = time.monotonic() + within_s
    while (found := re.search(r"metrics on (http://\S+)/metrics", server.log.read_text())) is None:
        assert time.monotonic() < end, server.log.read_text()
        time.sleep(0.02)
    return found[1]


def fetch(url: str, *, timeout_s: float = 10.0, method: str = "GET") -> tuple[int, str]:
    """Status and text."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=timeout_s) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


class Scrape:
    """The samples of one look at /metrics."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.families = list(text_string_to_metric_families(text))
        self.samples = [sample for family in self.families for sample in family.samples]

    def __call__(self, name: str, **labels: str) -> float:
        """The sum of the samples of this name with these labels."""
        return sum(s.value for s in self.samples if s.name == name and labels.items() <= s.labels.items())


def scrape(server: RunningServer) -> Scrape:
    status, text = fetch(f"{site(server)}/metrics")
    assert status == 200, text
    return Scrape(text)


async def scrape_until(server: RunningServer, condition: Callable[[Scrape], bool], within_s: float = 20.0) -> Scrape:
    """Looks until it is so: a call's end is counted a moment after its client has the status."""
    async with asyncio.timeout(within_s):
        while not condition(found := await asyncio.to_thread(scrape, server)):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        return found
