"""The signing keys of a repository: Ed25519, one PEM file a key that only its owner reads.

``root.pem``, ``root-2.pem``, ... are the root's keys, of which a threshold must sign; the other
roles have one each.  The keys of a model are ``models/NAME/1.pem``, ``2.pem``, ... (``edgeota
delegate``).  Root keys are used at ``edgeota init`` and ``edgeota keys-rotate``; keep them
off the machine in between.  With ``$EDGEOTA_KEY_PASSPHRASE`` they are written encrypted.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from securesystemslib.signer._crypto_signer import CryptoSigner

from ota.errors import ConfigError

PASSPHRASE_VARIABLE = "EDGEOTA_KEY_PASSPHRASE"  # noqa: S105 - a name
ROLES = ("root", "targets", "snapshot", "timestamp")


def create_keys(directory: Path, n_root: int = 1) -> dict[str, list[CryptoSigner]]:
    """Make the keys of each role, ``n_root`` of them for the root.

    Raises:
        ConfigError: there are keys already; they are not overwritten.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    counts = {role: n_root if role == "root" else 1 for role in ROLES}
    return {role: create_role_keys(directory, role, n) for role, n in counts.items()}


def create_role_keys(
    directory: Path, role: str, n_keys: int, is_delegated: bool = False
) -> list[CryptoSigner]:
    """Make the keys of one role; those of a model's role are in a directory of their own.

    Raises:
        ConfigError: there are keys already; they are not overwritten.
    """
    signers = [CryptoSigner.generate_ed25519() for _ in range(n_keys)]
    try:
        for number, signer in enumerate(signers, 1):
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
            path = _path(directory, role, number, is_delegated)
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with os.fdopen(os.open(path, flags, 0o600), "wb") as file:
                file.write(_pem(signer, role))
                file.flush()
                os.fsync(file.fileno())
    except OSError as err:
        raise ConfigError(f"{err.filename}: {err.strerror}; choose another --keys") from err
    return signers


def load_keys(directory: Path, role: str, is_delegated: bool = False) -> list[CryptoSigner]:
    """Read all keys of a role that are here; they need not all be.

    Raises:
        ConfigError: none is here, or others may read one.
    """
    paths = _present(directory, role, is_delegated)
    return [_load(path) for path in paths or [_path(directory, role, 1, is_delegated)]]


def retire_keys(directory: Path, role: str, is_delegated: bool = False) -> None:
    """Rename the keys of a role, so that new ones take their place."""
    for path in _present(directory, role, is_delegated):
        path.rename(path.with_suffix(f".retired-{time.time_ns()}"))


def _load(path: Path) -> CryptoSigner:
    try:
        mode = path.stat().st_mode
        text = path.read_bytes()
    except OSError as err:
        raise ConfigError(f"{path}: {err.strerror}; give the key directory with --keys") from err
    if mode & 0o077:
        raise ConfigError(f"{path}: expected mode 0600, got {mode & 0o777:04o}; chmod 600 it")
    passphrase = _passphrase() if b"ENCRYPTED" in text[:64] else None
    try:
        return CryptoSigner(load_pem_private_key(text, passphrase))
    except (ValueError, TypeError) as err:
        raise ConfigError(
            f"{path}: expected a PEM private key, and its ${PASSPHRASE_VARIABLE} if it is "
            f"encrypted ({err})"
        ) from err


def _pem(signer: CryptoSigner, role: str) -> bytes:
    passphrase = _passphrase()
    if role != "root" or passphrase is None:
        return bytes(signer.private_bytes)
    key = load_pem_private_key(signer.private_bytes, None)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(passphrase))


def _passphrase() -> bytes | None:
    value = os.environ.get(PASSPHRASE_VARIABLE)
    return value.encode() if value else None


def _present(directory: Path, role: str, is_delegated: bool) -> list[Path]:
    first = _path(directory, role, 1, is_delegated)
    if is_delegated:
        return sorted(first.parent.glob("*.pem"))
    return [first] * first.exists() + sorted(directory.glob(f"{role}-*.pem"))


def _path(directory: Path, role: str, number: int, is_delegated: bool) -> Path:
    if is_delegated:
        return directory / "models" / role / f"{number}.pem"
    return directory / (f"{role}.pem" if number == 1 else f"{role}-{number}.pem")
