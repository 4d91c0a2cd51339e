"""The server's certificate and the CA of its clients' certificates, which can be reloaded while it runs."""

from __future__ import annotations

import re
import ssl
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc

from kibun.server.errors import StartError

# Verdicts of a client that trusts the authority: not valid yet, expired, not for servers (OpenSSL, x509_vfy.h). Others
# depend on which authority it trusts.
_REFUSED = (9, 10, 26)
_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


class Certificates:
    """The certificates of new connections, as `reload` last read them; open connections go on."""

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None) -> None:
        """Reads the files (PEM). Raises StartError naming the one that cannot be used."""
        self._certificate, self._key, self._client_ca = certificate, key, client_ca
        self._about = ""
        self._now = self._read()
        self._renewed: grpc.ServerCertificateConfiguration | None = None
        self._lock = threading.Lock()  # otherwise a handshake at the same moment could undo `reload`

    def __str__(self) -> str:
        return f"certificates{self._about}"

    def credentials(self) -> grpc.ServerCredentials:
        """For `server.add_secure_port`."""
        return grpc.dynamic_ssl_server_credentials(
            self._now, self._fetch, require_client_authentication=self._client_ca is not None
        )

    def reload(self) -> None:
        """Reads the files again. Raises StartError and keeps the old ones if they cannot be used."""
        renewed = self._read()
        with self._lock:
            self._renewed = renewed

    def _fetch(self) -> grpc.ServerCertificateConfiguration | None:
        """Called by gRPC at each handshake, in its own threads. Returns None if nothing has changed."""
        with self._lock:
            renewed, self._renewed = self._renewed, None
        return renewed

    def _read(self) -> grpc.ServerCertificateConfiguration:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            pair = (self._key.read_bytes(), self._certificate.read_bytes())
            client_ca = self._client_ca.read_bytes() if self._client_ca else None
            # gRPC would only report that it cannot listen. The password keeps an encrypted key from asking a terminal.
            context.load_cert_chain(self._certificate, self._key, password="")
            if self._client_ca:
                context.load_verify_locations(self._client_ca)
        except ssl.SSLError as error:
            files = f"--tls-cert {self._certificate}, --tls-key {self._key}"
            files += f", --tls-client-ca {self._client_ca}" if self._client_ca else ""
            text = "must be PEM, with a key that is not encrypted and belongs to the certificate"
            raise StartError(f"{files}: {text} ({error.reason})") from None
        except OSError as error:
            raise StartError(f"{error.filename}: {error.strerror}") from error
        if self._client_ca and not _any_valid(context.get_ca_certs()):
            raise StartError(f"--tls-client-ca {self._client_ca}: no certificate in it is valid now")
        self._about = self._seen_by_a_client(context, pair[1])
        return grpc.ssl_server_certificate_configuration([pair], client_ca)

    def _seen_by_a_client(self, context: ssl.SSLContext, chain: bytes) -> str:
        """Shakes hands with a client in memory; returns what the certificate says of itself, in words.

        Raises StartError for one that no client would take now.
        """
        client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        client.check_hostname = False  # the server does not know by which name it is called
        client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        with suppress(ssl.SSLError, IndexError, UnicodeDecodeError):
            client.load_verify_locations(cadata=_CERTIFICATE.findall(chain)[-1].decode("ascii"))
        up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
        ends = (client.wrap_bio(down, up), context.wrap_bio(up, down, server_side=True))
        try:
            for _ in range(3):
                for end in ends:
                    with suppress(ssl.SSLWantReadError):
                        end.do_handshake()
        except ssl.SSLCertVerificationError as error:
            if error.verify_code in _REFUSED:
                text = f"--tls-cert {self._certificate}: no client would accept it now: {error.verify_message}"
                raise StartError(text) from None
            return ""
        except ssl.SSLError:  # for instance where the key is of a kind that OpenSSL's defaults do not take
            return ""
        told = ends[0].getpeercert() or {}
        names: Any = told.get("subjectAltName", ())
        return f" for {', '.join(name for _, name in names)}, valid until {told.get('notAfter')}"


def _any_valid(authorities: list[Any]) -> bool:
    """Whether one of them is valid now; True where none says until when."""
    now = time.time()
    spans = [(ssl.cert_time_to_seconds(a["notBefore"]), ssl.cert_time_to_seconds(a["notAfter"])) for a in authorities]
    return not spans or any(begin <= now <= end for begin, end in spans)
