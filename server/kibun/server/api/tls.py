"""The server's certificate and the authority of its clients'. Renewed files are taken over while it runs."""

from __future__ import annotations

import ssl
import threading
from pathlib import Path

import grpc

from kibun.server.errors import StartError


class Certificates:
    """What connections are encrypted with. New connections use what `reload` last read; old ones go on."""

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None) -> None:
        """Reads the files, PEM. Raises StartError naming the one that cannot be used."""
        self._certificate, self._key, self._client_ca = certificate, key, client_ca
        self._now = self._read()
        self._renewed: grpc.ServerCertificateConfiguration | None = None
        self._lock = threading.Lock()  # or a handshake that begins at that moment could undo `reload`

    def __str__(self) -> str:
        return "certificates"

    def credentials(self) -> grpc.ServerCredentials:
        """For `server.add_secure_port`."""
        return grpc.dynamic_ssl_server_credentials(
            self._now, self._fetch, require_client_authentication=self._client_ca is not None
        )

    def reload(self) -> None:
        """Reads the files again. Raises StartError, and the old ones stay."""
        renewed = self._read()
        with self._lock:
            self._renewed = renewed

    def _fetch(self) -> grpc.ServerCertificateConfiguration | None:
        """Called by gRPC at each handshake, in a thread of its own. None: nothing has changed."""
        with self._lock:
            renewed, self._renewed = self._renewed, None
        return renewed

    def _read(self) -> grpc.ServerCertificateConfiguration:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            pair = (self._key.read_bytes(), self._certificate.read_bytes())
            client_ca = self._client_ca.read_bytes() if self._client_ca else None
            # gRPC itself would only say that it cannot listen. No password: an encrypted key must not ask a terminal.
            context.load_cert_chain(self._certificate, self._key, password="")
            if self._client_ca:
                context.load_verify_locations(self._client_ca)
        except ssl.SSLError as error:
            files = f"--tls-cert {self._certificate}, --tls-key {self._key}"
            files += f", --tls-client-ca {self._client_ca}" if self._client_ca else ""
            text = "must be PEM, the key not encrypted and that of the certificate"
            raise StartError(f"{files}: {text} ({error.reason})") from None
        except OSError as error:
            raise StartError(f"{error.filename}: {error.strerror}") from error
        return grpc.ssl_server_certificate_configuration([pair], client_ca)
