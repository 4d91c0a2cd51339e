"""The peers: how each is started and reached, which settings were tried on it, and which were kept."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

from peers.settings import Settings

HERE = Path(__file__).parent
SERVERS = HERE / "servers"


@dataclass(frozen=True)
class Peer:
    """One way of serving the model."""

    name: str
    package: str | None  # requirements file; None: runs in the environment of this script
    server: Path | None  # what a user has to write
    starts: str  # its command; {python}, {bin}, {server}, {servers}, {port} and {bundle} are filled in
    kept: Settings
    tried: tuple[Settings, ...]  # the others
    sheds: str  # what `Settings.shed` is here
    restarts: bool = True  # a worker that died is started again by the server itself

    def command(self, python: Path, settings: Settings) -> list[str]:
        """What starts it."""
        known = {"python": python, "bin": python.parent, "port": settings.port, "bundle": settings.bundle}
        known["bound"] = "" if settings.shed is None else f"--target-delay={settings.shed:g}"
        words = (word.format(**known, server=self.server, servers=SERVERS) for word in self.starts.split())
        return [word for word in words if word]


_PAIRS = Settings(batch=2, wait_s=0.01)
_WIDE = Settings(workers=1, threads=2)
_WIDE_PAIRS = replace(_PAIRS, workers=1, threads=2)

PEERS = {
    peer.name: peer
    for peer in (
        Peer(
            "kibun",
            None,
            None,
            # Its generated voices are whole utterances to this detector.
            "{python} -m kibun.client.main serve --model {bundle} --port {port} --allow-untrained --vad webrtc {bound}",
            kept=Settings(shed=0.5),
            tried=(Settings(), Settings(shed=0.25)),
            sheds="--target-delay, s of predicted wait; None: kibun's default",
        ),
        Peer(
            "plain gRPC",
            None,
            SERVERS / "plain.py",
            "{python} {server}",
            kept=replace(_WIDE, shed=4),
            tried=(Settings(shed=4),),
            sheds="maximum_concurrent_rpcs",
            restarts=False,
        ),
        Peer(
            "LitServe",
            "litserve",
            SERVERS / "litserve_server.py",
            "{python} {server}",
            kept=replace(_WIDE, shed=1),
            tried=(Settings(shed=1),),
            sheds="timeout, s in the queue",
        ),
        Peer(
            "BentoML",
            "bentoml",
            SERVERS / "bentoml_service.py",
            "{bin}/bentoml serve bentoml_service:Emotions --working-dir {servers} --host 127.0.0.1 --port {port}",
            kept=replace(_WIDE_PAIRS, shed=2),
            tried=(replace(_PAIRS, shed=2),),
            sheds="max_latency_ms, here in s",
        ),
        Peer(
            "Ray Serve",
            "ray",
            SERVERS / "ray_deployment.py",
            "{python} {server}",
            kept=replace(_WIDE_PAIRS, shed=2),
            tried=(replace(_PAIRS, shed=2),),
            sheds="max_queued_requests",
        ),
    )
}


def python_of(peer: Peer, cache: Path) -> Path:
    """The interpreter that runs a peer's server."""
    return Path(sys.executable) if peer.package is None else cache / peer.package / "bin" / "python"
