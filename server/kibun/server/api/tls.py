"""The server's certificate and the CA of its clients' certificates, which can be reloaded while it runs."""

from __future__ import annotations

import ssl
import threading
from pathlib import Path

import grpc

from kibun.server.errors import StartError


class Certificates:
    """The certificates of new connections, as `reload` last read them; open connections go on."""

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None) -> None:
        """Reads the files (PEM). Raises StartError naming the one that cannot be used."""
        self._certificate, self._key, self._client_ca = certificate, key, client_ca
        self._now = self._read()
        self._renewed: grpc.ServerCertificateConfiguration | None = None
        self._lock = threading.Lock()  # otherwise a handshake at the same moment could undo `reload`

    def __str__(self) -> str:
        return "certificates"

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
        return grpc.ssl_server_certificate_configuration([pair], client_ca)
