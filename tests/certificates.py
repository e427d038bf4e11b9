"""An authority and a broker's certificate, made for one test."""

from __future__ import annotations

import datetime
import ipaddress

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


def make_certificates(directory):
    """Write an authority and a server certificate for 127.0.0.1."""
    now = datetime.datetime.now(datetime.UTC)
    keys = {name: ec.generate_private_key(ec.SECP256R1()) for name in ("ca", "server")}
    names = {n: x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, n)]) for n in keys}
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    for name, key in keys.items():
        extensions = [
            (x509.BasicConstraints(ca=name == "ca", path_length=None), True),
            (x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False),
            (
                x509.AuthorityKeyIdentifier.from_issuer_public_key(keys["ca"].public_key()),
                False,
            ),
            (address, False),
        ]
        builder = x509.CertificateBuilder(
            issuer_name=names["ca"],
            subject_name=names[name],
            public_key=key.public_key(),
            serial_number=x509.random_serial_number(),
            not_valid_before=now - datetime.timedelta(hours=1),
            not_valid_after=now + datetime.timedelta(hours=1),
        )
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical)
        certificate = builder.sign(keys["ca"], hashes.SHA256())
        pem = serialization.Encoding.PEM
        (directory / f"{name}.pem").write_bytes(certificate.public_bytes(pem))
        private = key.private_bytes(
            pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        (directory / f"{name}.key").write_bytes(private)
        (directory / f"{name}.key").chmod(0o644)  # Mosquitto reads it as another user


def encrypt(broker):
    """Restart a Mosquitto with TLS; return the authority's file."""
    make_certificates(broker.directory)
    conf, place = broker.directory / "mosquitto.conf", broker.directory
    lines = f"certfile {place}/server.pem\nkeyfile {place}/server.key\n"
    conf.write_text(conf.read_text().replace("allow_anonymous", f"{lines}allow_anonymous", 1))
    broker.restart()
    return place / "ca.pem"
