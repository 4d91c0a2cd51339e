"""TLS files, and the certificate that a server shows: dates, keys, names, authorities.

Judged by OpenSSL, in handshakes in memory, as the peer will judge them: with the standard library's `ssl` alone, which
every installation has. It tells no more of a certificate than what a peer would see, so that one without its key is
read only once the key is there.
"""

import re
import socket
import ssl
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kibun.client.checkup.clock import utc
from kibun.client.checkup.finding import Finding

Role = Literal["server", "client"]

# A certificate ends soon when less than this is left of it, or a quarter of its life where that is less.
SOON_S = 14 * 86_400.0
CONNECT_S = 5.0

# OpenSSL, x509_vfy.h. The standard library names neither.
_NO_CHECK_TIME = ssl.VerifyFlags(0x200000)
_WRONG_PURPOSE = 26
_WRONG_NAME = (62, 64)
_CERTIFICATE = re.compile(r"-----BEGIN (?:TRUSTED )?CERTIFICATE-----.+?-----END (?:TRUSTED )?CERTIFICATE-----", re.S)


@dataclass(frozen=True)
class Pair:
    """A certificate (PEM, with those between it and its authority after it), its key, and what both are for.

    The options are those that named the files.
    """

    certificate: Path
    key: Path
    role: Role
    options: tuple[str, str]


def pair(files: Pair, *, authorities: Path | None, names: list[str]) -> list[Finding]:
    """Whether a peer that trusts `authorities` (None: the system's) takes the pair, for a server under all `names`."""
    about = f"{files.role} certificate {files.certificate}"
    if (unusable := _unusable(files)) is not None:
        return [Finding(about, "broken", unusable)]
    told, purposes = _read(files)
    if told is None:
        text = "cannot be read: OpenSSL takes it for neither servers nor clients: have it issued again for TLS"
        return [Finding(about, "broken", text)]
    findings = [_dates(about, told)]
    if files.role not in purposes:
        text = (
            f"is for {purposes[0]}s only (extended key usage), so that peers refuse it as a {files.role}'s: have it "
            f"issued for {files.role}s"
        )
        return [*findings, Finding(f"{files.role} certificate, purpose", "broken", text)]
    if files.role == "server":
        findings += [_name(files, name, told) for name in names]
    findings.append(_chain(files, authorities))
    return findings


def authorities(path: Path, option: str) -> Finding:
    """Whether certificates that are signed by these authorities can be accepted now."""
    name = f"authorities {path}"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        if not _CERTIFICATE.search(path.read_text("latin-1")):
            return Finding(name, "broken", f"no PEM certificate is in it: {option} needs -----BEGIN CERTIFICATE-----")
        context.load_verify_locations(path)
    except ssl.SSLError as error:
        return Finding(name, "broken", f"is damaged ({error.reason}): copy it again for {option}")
    except OSError as error:
        return Finding(name, "broken", _unreadable(error, option))
    loaded = context.get_ca_certs()
    bad = [_dates(_common_name(told), told) for told in loaded]
    bad = [finding for finding in bad if finding.state != "ok"]
    if not loaded:
        return Finding(name, "ok", f"{_count(path)}, each trusted for itself: none is an authority")
    if not bad:
        return Finding(name, "ok", f"{_common_name(loaded[0])}, {_validity(loaded[0])}" + _more(len(loaded) - 1))
    text = "; ".join(f"{finding.name} {finding.detail}" for finding in bad[:3]) + _more(len(bad) - 3)
    if any(finding.state == "broken" for finding in bad) and len(bad) < len(loaded):
        return Finding(name, "warning", f"some of {len(loaded)}: {text}")
    return Finding(name, "broken" if any(finding.state == "broken" for finding in bad) else "warning", text)


def shown(host: str, port: int, trusted: Path | None, own: Pair | None) -> Finding | None:
    """Whether the certificate that a server shows is one that this machine takes, for that name.

    None where nobody answers, or where the files cannot be used, of which there are findings then.
    """
    name = f"certificate of {host}:{port}"
    try:
        context = ssl.create_default_context(cafile=trusted)
        context.set_alpn_protocols(["h2"])
        if own is not None:
            context.load_cert_chain(own.certificate, own.key, password="")
    except OSError:  # of which SSLError is one
        return None
    try:
        with (
            socket.create_connection((host, port), CONNECT_S) as plain,
            context.wrap_socket(plain, server_hostname=host) as secured,
        ):
            told: dict[str, Any] = dict(secured.getpeercert() or {})
    except ssl.SSLCertVerificationError as error:
        return Finding(name, "broken", f"{error.verify_message}: {_remedy(error.verify_code, trusted)}")
    except ssl.SSLError as error:
        text = f"no TLS there ({error.reason}): is the server started with --tls-cert? Else leave out --tls and --ca"
        return Finding(name, "broken", text)
    except (OSError, UnicodeError):
        return None
    return _dates(name, told)


def _unusable(files: Pair) -> str | None:
    """Why no program could load the pair."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate_option, key_option = files.options
    try:
        texts = [(path, path.read_text("latin-1")) for path in (files.certificate, files.key)]
    except OSError as error:
        return _unreadable(error, certificate_option if error.filename == str(files.certificate) else key_option)
    (_, certificate), (_, key) = texts
    if not _CERTIFICATE.search(certificate):
        return f"no PEM certificate is in it: {certificate_option} needs -----BEGIN CERTIFICATE-----"
    if "PRIVATE KEY-----" not in key:
        return f"{files.key} has no PEM private key: {key_option} needs -----BEGIN PRIVATE KEY-----"
    if "ENCRYPTED" in key:
        return (
            f"its key {files.key} is encrypted, and nobody is there to type its password: "
            f"openssl pkey -in {files.key} -out decrypted.key, and protect that file"
        )
    try:
        # A password, so that OpenSSL asks no terminal for one.
        context.load_cert_chain(files.certificate, files.key, password="")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            return (
                f"the key {files.key} belongs to another certificate: give {key_option} the key that this one was "
                "requested with (dates and names are shown once it fits)"
            )
        return f"it or its key {files.key} cannot be used ({error.reason or error}): copy both files again"
    return None


def _unreadable(error: OSError, option: str) -> str:
    return f"cannot read {error.filename}: {error.strerror}: give {option} a PEM file that this user may read"


def _handshake(files: Pair, role: Role, peer: ssl.SSLContext, name: str | None = None) -> dict[str, Any]:
    """What the `peer` of a program in this role is told by its certificate. Raises ssl.SSLError, ValueError."""
    here = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if role == "server" else ssl.PROTOCOL_TLS_CLIENT)
    if role == "client":
        here.check_hostname, here.verify_mode = False, ssl.CERT_NONE
        # The judge is then a server, and cannot be one without a certificate.
        peer.load_cert_chain(files.certificate, files.key, password="")
    here.load_cert_chain(files.certificate, files.key, password="")
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    if role == "server":
        judge = peer.wrap_bio(down, up, server_hostname=name)
        judged = here.wrap_bio(up, down, server_side=True)
    else:
        judged = here.wrap_bio(down, up)
        judge = peer.wrap_bio(up, down, server_side=True)
    for _ in range(4):
        for end in (judged, judge):
            with suppress(ssl.SSLWantReadError):
                end.do_handshake()
    return dict(judge.getpeercert() or {})


def _judge(role: Role) -> ssl.SSLContext:
    """A peer of a program in this role, that asks for its certificate, trusts nobody yet, and looks at no clock."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT if role == "server" else ssl.PROTOCOL_TLS_SERVER)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= _NO_CHECK_TIME
    return context


def _trusting(files: Pair, role: Role) -> ssl.SSLContext:
    """Such a peer, that trusts the certificate itself."""
    context = _judge(role)
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    first = _CERTIFICATE.search(files.certificate.read_text("latin-1"))
    context.load_verify_locations(cadata=first[0] if first else "")
    return context


def _read(files: Pair) -> tuple[dict[str, Any] | None, list[Role]]:
    """What a certificate says of itself, and in which roles it may be used."""
    told: dict[str, Any] | None = None
    purposes: list[Role] = []
    roles: tuple[Role, Role] = ("server", "client")
    for role in roles:
        with suppress(ssl.SSLError):
            told = _handshake(files, role, _trusting(files, role))
            purposes.append(role)
    return told, purposes


def _name(files: Pair, name: str, told: dict[str, Any]) -> Finding:
    about = f"server certificate, name {name}"
    peer = _trusting(files, "server")
    peer.check_hostname = True
    peer.hostname_checks_common_name = False
    covered = _names(told)
    try:
        _handshake(files, "server", peer, name)
    except ssl.SSLCertVerificationError as error:
        if error.verify_code not in _WRONG_NAME:
            return Finding(about, "broken", error.verify_message)
        text = (
            f"not covered, so that clients that call the server so refuse it; it covers {covered or 'no name'} "
            "(subjectAltName): have it issued for this name too, or let clients use one that it covers"
        )
        return Finding(about, "broken", text)
    except (ValueError, ssl.SSLError) as error:
        return Finding(about, "broken", f"not a host name or address ({error}): give --name as clients write it")
    return Finding(about, "ok", "covered")


def _chain(files: Pair, trusted: Path | None) -> Finding:
    """Whether the certificate leads to an authority that peers trust; dates are looked at elsewhere."""
    about = f"{files.role} certificate, authority"
    peer = _judge(files.role)
    try:
        if trusted is None:
            peer.load_default_certs(ssl.Purpose.SERVER_AUTH if files.role == "server" else ssl.Purpose.CLIENT_AUTH)
        else:
            peer.load_verify_locations(trusted)
        _handshake(files, files.role, peer)
    except ssl.SSLCertVerificationError as error:
        if trusted is None:
            others = "clients need --ca" if files.role == "server" else "the server needs --tls-client-ca"
            text = (
                f"the authorities of this system do not vouch for it ({error.verify_message}), so that {others} with "
                "the file of its authority; give the doctor that file too, to check it"
            )
            return Finding(about, "warning", text)
        text = (
            f"{trusted} does not vouch for it ({error.verify_message}): give the authority that signed it, and put "
            f"certificates in between into {files.certificate}, after its own"
        )
        return Finding(about, "broken", text)
    except (ssl.SSLError, OSError) as error:
        return Finding(about, "broken", f"cannot be checked: {error}")
    return Finding(about, "ok", f"trusted by {trusted or 'the authorities of this system'}")


def _dates(about: str, told: dict[str, Any]) -> Finding:
    now = time.time()
    begin, end = _span(told)
    if now < begin:
        text = (
            f"is not valid before {utc(begin)}: this machine's clock reads {utc(now)}; if that is right, wait or have "
            "it issued again, else set the clock (NTP)"
        )
        return Finding(about, "broken", text)
    if now > end:
        return Finding(about, "broken", f"expired at {utc(end)}, and every peer refuses it: renew it")
    if end - now < min(SOON_S, (end - begin) / 4):
        text = f"{_validity(told)}: renew it; a server takes the new one at SIGHUP"
        return Finding(about, "warning", text)
    names = _names(told)
    return Finding(about, "ok", f"{f'for {names}, ' if names else ''}{_validity(told)}")


def _names(told: dict[str, Any]) -> str:
    """The hosts and addresses that a certificate covers."""
    return ", ".join(value for kind, value in told.get("subjectAltName", ()) if kind in ("DNS", "IP Address"))


def _span(told: dict[str, Any]) -> tuple[float, float]:
    return ssl.cert_time_to_seconds(told["notBefore"]), ssl.cert_time_to_seconds(told["notAfter"])


def _validity(told: dict[str, Any]) -> str:
    _, end = _span(told)
    left_s = max(end - time.time(), 0.0)
    left = f"{left_s / 86_400:.0f} days" if left_s >= 2 * 86_400 else f"{left_s / 3600:.1f} hours"
    return f"valid until {utc(end)}, {left} from now"


def _common_name(told: dict[str, Any]) -> str:
    names = [value for part in told.get("subject", ()) for key, value in part if key == "commonName"]
    return names[0] if names else "an authority without a name"


def _count(path: Path) -> str:
    count = len(_CERTIFICATE.findall(path.read_text("latin-1")))
    return f"{count} certificate{'' if count == 1 else 's'}"


def _more(count: int) -> str:
    return f", and {count} more" if count > 0 else ""


def _remedy(code: int, trusted: Path | None) -> str:
    """What to do about a certificate that this machine refuses."""
    if code in (9, 10):
        return f"this machine's clock reads {utc(time.time())}; if that is right, the server needs a new certificate"
    if code in _WRONG_NAME:
        return "use a name in --server that it covers, or have the server's certificate issued for this one too"
    if code == _WRONG_PURPOSE:
        return "the server needs a certificate that is for servers"
    if trusted is None:
        return "give --ca the file of its authority"
    return f"{trusted} is not its authority: give --ca the one that signed it"
