"""Address, credentials and settings of the connection."""

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from kibun.client.errors import ErrorDetails, InvalidRequestError

# Keepalive finds a frozen server within 25 s; without ping_timeout beside it, it takes a minute. Retries of gRPC are
# off because a stream can only be resumed with the audio that the SDK keeps (see `turn`). Calls take turns among the
# addresses of a name, so that one refused by a server that drains goes to another at its next attempt. Each client has
# connections of its own, not those of others in its process: a server's fronts share connections out, not streams.
CHANNEL_OPTIONS: tuple[tuple[str, int | str], ...] = (
    ("grpc.service_config", '{"loadBalancingConfig": [{"round_robin": {}}]}'),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.enable_retries", 0),
    ("grpc.use_local_subchannel_pool", 1),
    # After a lost connection try again soon: the default backs off to two minutes. `min_` is the time that one attempt
    # to connect may take, TLS included.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 5_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)

_TOKEN = re.compile(r"[!-~]([ -~]*[!-~])?")
_PASSED_ON = ("unix:", "dns:", "ipv4:", "ipv6:", "xds:")


@dataclass(frozen=True)
class Credentials:
    """How the SDK authenticates itself and the server. All empty: plaintext, no token."""

    # Sent as `authorization: Bearer …` with every call.
    token: str | None = field(default=None, repr=False)
    # Use TLS even without the files below: the system's authorities are trusted.
    tls: bool = False
    # PEM: authorities to trust in place of the system's.
    root_certificates: bytes | None = None
    # PEM: the client's own certificate and key (mutual TLS).
    certificate_chain: bytes | None = None
    private_key: bytes | None = field(default=None, repr=False)
    # A token over plaintext can be read by anyone on the way; allowed without this only to the same machine.
    allow_plaintext_token: bool = False

    @property
    def secure(self) -> bool:
        """True when the connection uses TLS."""
        return self.tls or self.root_certificates is not None or self.certificate_chain is not None


def check_connection(target: str, credentials: Credentials) -> None:
    """Raises InvalidRequestError for a bad address or bad credentials."""
    check_target(target)
    if (credentials.certificate_chain is None) != (credentials.private_key is None):
        raise _invalid("mutual TLS needs both certificate_chain and private_key", "private_key")
    if credentials.token and not _TOKEN.fullmatch(credentials.token):
        raise _invalid(
            "the token begins or ends with a blank or line end, or holds characters outside of ASCII, and cannot be "
            "sent: give the token alone (token=, --token, KIBUN_TOKEN)",
            "token",
        )
    _check_pem("root_certificates", credentials.root_certificates, "CERTIFICATE")
    _check_pem("certificate_chain", credentials.certificate_chain, "CERTIFICATE")
    _check_pem("private_key", credentials.private_key, "PRIVATE KEY")
    exposed = credentials.token and not credentials.secure and not credentials.allow_plaintext_token
    if exposed and not is_local(target):
        raise _invalid(
            f"the token would travel to {target} in clear text: pass tls=True (on the command line --tls or --ca), or "
            "allow_plaintext_token=True where the network is protected by other means",
            "token",
        )


def open_channel(target: str, credentials: Credentials) -> grpc.aio.Channel:
    """A channel to `target` for the running event loop; connects on first use. See `check_connection`."""
    # Bypasses any proxy named in the environment: what is meant for this machine must not leave it.
    local = (("grpc.enable_http_proxy", 0),) if is_local(target) else ()
    options = (*CHANNEL_OPTIONS, *local)
    if not credentials.secure:
        return grpc.aio.insecure_channel(target, options=options)
    tls = grpc.ssl_channel_credentials(
        root_certificates=credentials.root_certificates,
        private_key=credentials.private_key,
        certificate_chain=credentials.certificate_chain,
    )
    return grpc.aio.secure_channel(target, tls, options=options)


def call_metadata(credentials: Credentials) -> Sequence[tuple[str, str]]:
    """Metadata of every call."""
    return (("authorization", f"Bearer {credentials.token}"),) if credentials.token else ()


def check_target(target: str) -> None:
    """Raises InvalidRequestError unless `target` is HOST:PORT (or one of gRPC's own schemes, e.g. unix:/path)."""
    if target.startswith(_PASSED_ON):
        if not target.partition(":")[2].strip("/"):
            raise _invalid(f"{target!r} names nothing: write what it is to reach, e.g. unix:/run/kibun.sock")
        return
    host, colon, port = target.rpartition(":")
    if "://" in target:
        raise _invalid(f"{target!r} is a URL: write HOST:PORT, e.g. localhost:50051 (TLS is a separate option)")
    if not colon or not host or (":" in host and not (host[0] == "[" and host[-1] == "]")):
        raise _invalid(f"{target!r} is not an address: write HOST:PORT, e.g. localhost:50051 or [::1]:50051")
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise _invalid(f"{target!r} has no usable port: write HOST:PORT with a port between 1 and 65535")


def _check_pem(name: str, data: bytes | None, kind: str) -> None:
    if data is not None and not re.search(rf"-----BEGIN [A-Z0-9 ]*{kind}-----".encode(), data):
        raise _invalid(f"{name} holds no PEM {kind.lower()}: give a file with a line -----BEGIN {kind}-----", name)


def read_pem(value: bytes | str | Path | None) -> bytes | None:
    """PEM data given as bytes, or as the path of a file. Raises InvalidRequestError when it cannot be read."""
    if value is None or isinstance(value, bytes):
        return value
    try:
        return Path(value).read_bytes()
    except OSError as error:
        raise _invalid(f"cannot read {value}: {error.strerror}: give a PEM file that exists") from error


def is_local(target: str) -> bool:
    """Whether all addresses of a target are this machine's own."""
    if target.startswith("unix:"):
        return True
    for scheme in ("ipv4:", "ipv6:", "dns:"):
        target = target.removeprefix(scheme)
    return all(_is_loopback(address) for address in target.lstrip("/").split(","))


def _is_loopback(address: str) -> bool:
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _invalid(message: str, field: str = "target") -> InvalidRequestError:
    return InvalidRequestError(message, ErrorDetails(reason="INVALID_CONNECTION_SETTINGS", fields={field: message}))
