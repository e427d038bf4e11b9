"""The signing keys of a repository: one Ed25519 key a role, PEM files that only their owner reads.

The root key is used once, at ``edgeota init``; take it off the machine afterwards.
"""

from __future__ import annotations

import os
from pathlib import Path

from cryptography.hazmat.primitives.serialization import load_pem_private_key
from securesystemslib.signer._crypto_signer import CryptoSigner

from ota.errors import ConfigError

ROLES = ("root", "targets", "snapshot", "timestamp")


def create_keys(directory: Path) -> dict[str, CryptoSigner]:
    """Make a key for each role.

    Raises:
        ConfigError: there are keys already; they are not overwritten.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        signers = {role: CryptoSigner.generate_ed25519() for role in ROLES}
        for role, signer in signers.items():
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
            with os.fdopen(os.open(_path(directory, role), flags, 0o600), "wb") as file:
                file.write(signer.private_bytes)
    except OSError as err:
        raise ConfigError(f"{err.filename}: {err.strerror}; choose another --keys") from err
    return signers


def load_key(directory: Path, role: str) -> CryptoSigner:
    """Read one role's key.

    Raises:
        ConfigError: it is missing, or others may read it.
    """
    path = _path(directory, role)
    try:
        mode = path.stat().st_mode
        text = path.read_bytes()
    except OSError as err:
        raise ConfigError(f"{path}: {err.strerror}; give the key directory with --keys") from err
    if mode & 0o077:
        raise ConfigError(f"{path}: expected mode 0600, got {mode & 0o777:04o}; chmod 600 it")
    try:
        return CryptoSigner(load_pem_private_key(text, None))
    except ValueError as err:
        raise ConfigError(f"{path}: expected a PEM private key ({err})") from err


def _path(directory: Path, role: str) -> Path:
    return directory / f"{role}.pem"
