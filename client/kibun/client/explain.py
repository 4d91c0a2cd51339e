"""Why a server could not be reached or refused to talk, in words: what was tried, and what to check."""

import ipaddress
import os
from collections.abc import Sequence

from kibun.client.channel import Credentials, is_local

# Where gRPC looks for a proxy, and for who needs none, in this order.
_PROXY = ("grpc_proxy", "https_proxy", "http_proxy")
_NO_PROXY = ("no_grpc_proxy", "no_proxy")

# Parts of gRPC's texts, in lower case; it has no codes for these.
_NOT_RESOLVED = ("errors resolving", "name resolution", "dns resolution", "lookup error", "empty address list")
_NOT_CONNECTED = ("failed to connect", "connections to all backends failing", "handshake", "connection refused")
_TLS = ("ssl", "tls", "handshake", "certificate", "verification check")
_NO_GRPC = ("failed parsing http/2", "expected settings frame as the first", "http1.x", "http/1")
_HUNG_UP = ("socket closed", "connection reset", "end of file")

_TLS_OPTIONS = "tls=True or root_certificates (on the command line --tls or --ca)"
_TOKEN_OPTIONS = "token= (on the command line --token, or KIBUN_TOKEN in the environment)"


def explain_unauthenticated(text: str, target: str, credentials: Credentials) -> str:
    """A message for a call that `target` refused for want of a token that it accepts; `text` is the server's."""
    if credentials.token:
        return f"{target} does not accept the token: check {_TOKEN_OPTIONS}, or get another ({text})"
    if "certificate" in text:
        return f"{target} does not accept the client certificate: pass another certificate_chain (--cert) ({text})"
    return f"{target} requires a token, and none was given: pass {_TOKEN_OPTIONS} ({text})"


def explain_unavailable(text: str, target: str, credentials: Credentials) -> str:
    """A message for a failure of the transport itself, which has no reason from the server; `text` is gRPC's."""
    lowered = text.lower()

    def says(*words: str) -> bool:
        return any(word in lowered for word in words)

    if not says(*_NOT_RESOLVED, *_NOT_CONNECTED):
        return f"the connection to {target} was lost ({text or 'no reason given'})"
    if says("http proxy") or (proxy_of(target) and not says(*_TLS, *_NO_GRPC)):
        return (
            f"cannot reach {target} through the proxy of {proxy_of(target)} in the environment: check that proxy, or "
            f"add {host_of(target)} to no_proxy ({text})"
        )
    if says(*_NOT_RESOLVED):
        return (
            f"cannot find {target}: the name {host_of(target)!r} has no address here: check its spelling, and the "
            f"name server of this machine ({text})"
        )
    if says(*_NO_GRPC):
        return (
            f"what listens at {target} is no gRPC server: check the port, which `kibun serve` prints as it starts; "
            f"that of its metrics is another ({text})"
        )
    if says(*_TLS):
        return f"{_explain_tls(lowered, target)} ({text})"
    if says(*_HUNG_UP):
        return f"{_explain_hang_up(target, credentials)} ({text})"
    if says("settings frame"):
        return (
            f"something listens at {target} but does not answer: check the port, and that the server there is not "
            f"stopped ({text})"
        )
    if target.startswith("unix:"):
        return f"cannot reach {target}: start a server there with `kibun serve`, or check the path ({text})"
    return f"cannot reach {target}: start a server there with `kibun serve`, or check host, port and firewall ({text})"


def explain_deadline(target: str, timeout_s: float) -> str:
    """A message for a call that got no answer in its time."""
    return (
        f"{target} did not answer within {timeout_s:g} s: check that a kibun server is listening there, or give it "
        "longer by timeout_s"
    )


def _explain_tls(text: str, target: str) -> str:
    if "wrong_version_number" in text or "http_request" in text:
        return (
            f"no TLS connection to {target}: the server there does not use TLS: leave out {_TLS_OPTIONS}, or start the "
            "server with --tls-cert and --tls-key"
        )
    if "hostname" in text or "peer name" in text:
        return (
            f"no TLS connection to {target}: its certificate is for another name: use the name that is in it, in "
            f"place of {host_of(target)}"
        )
    if "expired" in text or "not yet valid" in text:
        return (
            f"no TLS connection to {target}: its certificate is not valid now: renew it, or check this machine's clock"
        )
    if "create security handshaker" in text:
        return (
            f"no TLS connection to {target}: what root_certificates, certificate_chain or private_key (on the command "
            "line --ca, --cert or --key) hold cannot be used: give PEM files that are whole and belong together"
        )
    if "certificate_verify_failed" in text:
        return (
            f"no TLS connection to {target}: its certificate is not signed by an authority that is trusted here: pass "
            "that authority's certificate as root_certificates (on the command line --ca)"
        )
    return (
        f"no TLS connection to {target}: check that the server uses TLS, and that root_certificates (on the command "
        "line --ca) holds the authority that signed its certificate"
    )


def _explain_hang_up(target: str, credentials: Credentials) -> str:
    if not credentials.secure:
        return f"something listens at {target} but hangs up: if the server uses TLS, pass {_TLS_OPTIONS}"
    if credentials.certificate_chain is None:
        return (
            f"the server at {target} hangs up once TLS is agreed on: if it requires client certificates, pass "
            "certificate_chain and private_key (on the command line --cert and --key)"
        )
    return (
        f"the server at {target} hangs up once TLS is agreed on: check that it trusts who signed certificate_chain "
        "(--cert)"
    )


def proxy_of(target: str) -> str | None:
    """The variable of the environment that names the proxy which gRPC uses to reach `target`, or None."""
    variable = next((name for name in _PROXY if os.environ.get(name)), None)
    if variable is None or is_local(target) or target.startswith(("unix:", "xds:")):
        return None
    excepted = next((value for name in _NO_PROXY if (value := os.environ.get(name))), "")
    return None if _is_among(host_of(target), excepted.split(",")) else variable


def _is_among(host: str, entries: Sequence[str]) -> bool:
    for entry in filter(None, map(str.strip, entries)):
        if entry == "*" or host.endswith(entry.removeprefix("*")):
            return True
        try:
            if ipaddress.ip_address(host) in ipaddress.ip_network(entry, strict=False):
                return True
        except ValueError:
            continue  # a name
    return False


def host_of(target: str) -> str:
    """The host of an address, without scheme and port."""
    for scheme in ("ipv4:", "ipv6:", "dns:"):
        target = target.removeprefix(scheme)
    return target.rpartition("/")[2].rpartition(":")[0].strip("[]")
