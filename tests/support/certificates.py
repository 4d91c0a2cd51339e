"""An authority, and certificates signed by it, valid for an hour unless asked otherwise."""

import datetime
import ipaddress
from collections.abc import Sequence
from pathlib import Path

import pytest


def make_certificates(
    folder: Path,
    clients: Sequence[str] = ("client",),
    *,
    hours: tuple[float, float] = (-1, 1),
    authority_hours: tuple[float, float] = (-1, 1),
    usage: str = "server",
) -> None:
    """`hours`: from now, within which server.pem is valid, and ca.pem; `usage`: "server" or "client", what it is for.

    ca.pem, and server.pem/.key and those of clients, NAME.pem/.key with NAME as common name, signed by it.

    A NUL in a name does not show in the names of its files.
    """
    pytest.importorskip("cryptography", reason="needs cryptography, as in the extra dev")
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    usages = {"server": ExtendedKeyUsageOID.SERVER_AUTH, "client": ExtendedKeyUsageOID.CLIENT_AUTH}
    now = datetime.datetime.now(datetime.UTC)
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test CA")])
    ca_key = ec.generate_private_key(ec.SECP256R1())
    for who in ("ca", "server", *clients):
        key = ca_key if who == "ca" else ec.generate_private_key(ec.SECP256R1())
        name = ca_name if who == "ca" else x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, who)])
        address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        begin, end = {"server": hours, "ca": authority_hours}.get(who, (-1, 1))
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(ca_name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + datetime.timedelta(hours=begin))
            .not_valid_after(now + datetime.timedelta(hours=end))
            .add_extension(address, critical=False)
            .add_extension(x509.BasicConstraints(ca=who == "ca", path_length=None), critical=True)
        )
        if who == "server":
            builder = builder.add_extension(x509.ExtendedKeyUsage([usages[usage]]), critical=False)
        certificate = builder.sign(ca_key, hashes.SHA256())
        file = who.replace("\0", "")
        (folder / f"{file}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        (folder / f"{file}.key").write_bytes(private)
