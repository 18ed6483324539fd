"""Certificates that tests make, and a client that trusts one."""

from __future__ import annotations

import atexit
import datetime
import ipaddress
import os
import ssl
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec


@dataclass(frozen=True, kw_only=True)
class TlsEnds:
    """A server's key and certificate for the names that tests request, and the client that trusts it."""

    server_file: str
    client: ssl.SSLContext


@cache
def tls_ends() -> TlsEnds:
    """Return the certificate of this process."""
    names = ["cdn.example.com", "other.example.org", "hooks.example.com"]
    pem = make_certificate(names, ["93.184.216.34"])
    descriptor, path = tempfile.mkstemp(suffix=".pem")
    atexit.register(os.unlink, path)
    with os.fdopen(descriptor, "wb") as file:
        file.write(pem)
    return TlsEnds(server_file=path, client=ssl.create_default_context(cadata=pem.decode()))


def make_certificate(names: Sequence[str], addresses: Sequence[str]) -> bytes:
    """Return a key and its own certificate, as PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, names[0])])
    alternatives = [*map(x509.DNSName, names), *(x509.IPAddress(ipaddress.ip_address(one)) for one in addresses)]
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=12))
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain)
    return secret + certificate.public_bytes(pem)
