"""The metrics of several processes as those of one: each of their series, with the label `front`.

They are counted where they arise and read over HTTP when Prometheus asks, so sums over `front` are the totals. A front
that does not answer is left out, but for `kibun_ready`, which is 0.
"""

from __future__ import annotations

import http.client
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

LABEL = "front"
READY = "kibun_ready"
TIMEOUT_S = 1.0  # for a front to answer

_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy reaches this machine's own address


class JoinedMetrics(Collector):
    """Reads the metrics of fronts from their ports on 127.0.0.1."""

    def __init__(self, ports: Callable[[], Mapping[int, int | None]]) -> None:
        """`ports`: of each front the port of its metrics, None where it has none now; called in other threads."""
        self._ports = ports
        self.registry = CollectorRegistry()
        self.registry.register(self)

    def describe(self) -> Iterable[Metric]:
        """Nothing, so that registering asks no front."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """Families of all fronts, each family once."""
        ports = self._ports()
        with ThreadPoolExecutor(len(ports)) as pool:
            answers = dict(zip(ports, pool.map(_read, ports.values()), strict=True))
        joined: dict[str, Metric] = {}
        for number, families in answers.items():
            for family in families or [_not_ready()]:
                whole = joined.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                for sample in family.samples:
                    whole.samples.append(sample._replace(labels={**sample.labels, LABEL: str(number)}))
        return joined.values()


def _read(port: int | None) -> list[Metric]:
    """Empty where the front does not answer."""
    if port is None:
        return []
    try:
        with _DIRECT.open(f"http://127.0.0.1:{port}/metrics", timeout=TIMEOUT_S) as answer:
            return list(text_string_to_metric_families(answer.read().decode()))
    except (OSError, http.client.HTTPException, ValueError):
        return []


def _not_ready() -> Metric:
    absent = Metric(READY, "1 while the health service reports SERVING.", "gauge")
    absent.add_sample(READY, {}, 0.0)
    return absent
