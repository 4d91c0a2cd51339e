"""The settings of a server, their defaults, and combinations that are refused before anything starts."""

from __future__ import annotations

import ipaddress
import sys
from dataclasses import dataclass, field
from pathlib import Path

from kibun.models.types import Precision
from kibun.server.api.service import ServiceLimits
from kibun.server.audio.endpointing import EndpointingOptions
from kibun.server.audio.vad import VadName
from kibun.server.conversation.tenant_limit import TENANT_CONVERSATIONS
from kibun.server.errors import StartError
from kibun.server.inference.admission import TARGET_DELAY_S
from kibun.server.inference.worker_pool import DEFAULT_LOADER, WorkerTimes
from kibun.server.observability.watchdog import WatchdogTimes
from kibun.server.session.events import Limits

SHORTEST_S, LONGEST_S = 0.01, 60.0  # of --target-delay


@dataclass(frozen=True, slots=True)
class Settings:
    """What `kibun serve` was asked for; its options take their defaults from here. Raises StartError."""

    models: tuple[str, ...]
    host: str = "127.0.0.1"
    port: int = 50051
    port_file: Path | None = None
    fronts: int = 1  # processes that serve the port; what is limited below is shared out among them
    device: str = "auto"
    threads: int | None = None
    allow_untrained: bool = False
    precision: Precision = "auto"
    vad: VadName = "silero"
    store: str = field(default="memory", repr=False)  # an address may hold a password
    tenant_conversations: int = TENANT_CONVERSATIONS  # stored at a time, per tenant
    token_file: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
    insecure: bool = False
    reflection: bool = False
    grace_s: float = 30.0
    target_delay_s: float | None = None  # None: see `admission.target_delay_s`
    max_connections: int = 4096
    metrics_host: str = "127.0.0.1"
    metrics_port: int | None = None  # None: no metrics
    otlp_endpoint: str | None = None  # None: traces only if OpenTelemetry's environment variables name a collector
    loader: str = DEFAULT_LOADER
    limits: ServiceLimits = field(default_factory=ServiceLimits)
    stream_limits: Limits = field(default_factory=Limits)
    endpointing: EndpointingOptions = field(default_factory=EndpointingOptions)
    worker_times: WorkerTimes = field(default_factory=WorkerTimes)
    watchdog: WatchdogTimes = field(default_factory=WatchdogTimes)

    def __post_init__(self) -> None:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise StartError("give both --tls-cert and --tls-key, or neither")
        if self.limits.conversation_ttl_s > self.limits.max_conversation_ttl_s:
            longest_s = self.limits.max_conversation_ttl_s
            raise StartError(
                f"--conversation-ttl is above --max-conversation-ttl ({longest_s:g} s): raise the maximum as well"
            )
        if self.fronts > 1:
            self._check_fronts()
        if self.target_delay_s is not None and not SHORTEST_S <= self.target_delay_s <= LONGEST_S:
            raise StartError(
                f"--target-delay {self.target_delay_s:g} is outside {SHORTEST_S:g} to {LONGEST_S:g} seconds; leave it"
                f" out for at most {TARGET_DELAY_S:g}, and less where a longer wait admits hardly more streams"
            )
        if self.tls_client_ca and not self.tls_cert:
            raise StartError("--tls-client-ca needs --tls-cert and --tls-key")
        if not self.insecure and self.tls_cert is None and not _is_loopback(self.host):
            raise StartError(
                f"{self.host} can be reached from other machines, and without TLS the audio can be intercepted: "
                "give --tls-cert and --tls-key, or --insecure if a proxy in front of this server encrypts"
            )

    def share(self, limit: int) -> int:
        """What one front gets of a limit, rounded up."""
        return -(-limit // self.fronts)

    def _check_fronts(self) -> None:
        if sys.platform != "linux":
            raise StartError(
                "--fronts needs Linux, whose kernel spreads the connections to one port over several processes: run "
                "servers on ports of their own, and a balancer in front of them"
            )
        if self.store == "memory":
            raise StartError(
                f"--fronts {self.fronts} needs --store redis://HOST:PORT (docs/store.md): each front is a process, and "
                "a conversation goes on at whichever of them its next connection reaches"
            )
        for option, limit in (("--threads", self.threads), ("--max-streams", self.limits.max_streams)):
            if limit is not None and limit < self.fronts:
                raise StartError(f"{option} {limit} is to be shared by {self.fronts} fronts: give at least as many")


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
