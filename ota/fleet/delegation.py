"""Handing a model to keys of its own, and taking it back: the ceremonies of the targets key."""

from __future__ import annotations

from collections.abc import Sequence

from securesystemslib.signer._crypto_signer import CryptoSigner
from tuf.api._payload import DelegatedRole, Targets
from tuf.api.metadata import Metadata

from ota.errors import ConfigError
from ota.fleet.keys import ROLES, create_role_keys, retire_keys
from ota.fleet.metadata import (
    LIFE_DAYS,
    TARGETS_LIFE,
    MetadataFiles,
    delegations_of,
    until,
    within,
)
from ota.release import is_name
from ota.trust import model_patterns

MAX_KEYS = 16  # people who release one model
MAX_LIFE_DAYS = 3650
MAX_DELEGATED = 256
"""Models with keys of their own.  A device reads the list of them and only its own model's role."""


def delegate(
    files: MetadataFiles, model: str, n_keys: int, threshold: int, life_days: int | None
) -> None:
    """Hand ``model`` to ``n_keys`` new keys; what was released of it moves along.

    Raises:
        ConfigError: it has keys already, the name is taken, or the numbers make no sense.
    """
    days = TARGETS_LIFE.days if life_days is None else life_days
    _check(model, n_keys, threshold, days)
    targets = files.load("targets", Targets)
    delegations = delegations_of(targets.signed)
    roles = delegations.roles
    if roles is None or model in roles or len(roles) >= MAX_DELEGATED:
        raise ConfigError(
            f"{model}: expected a model without keys of its own, and at most {MAX_DELEGATED} that "
            "have some; change keys with `edgeota keys-rotate`"
        )
    entry = DelegatedRole(
        name=model,
        keyids=[],
        threshold=threshold,
        terminating=True,
        paths=model_patterns(model),
        unrecognized_fields={LIFE_DAYS: days},
    )
    roles[model] = entry
    _give_keys(targets.signed, model, create_role_keys(files.keys_dir, model, n_keys, True))
    moved = within(targets.signed, model)
    part = Targets(expires=until(TARGETS_LIFE))
    part.targets.update(moved)
    files.write(model, Metadata(part), files.next_version(model), entry)
    for name in moved:
        del targets.signed.targets[name]
    files.write("targets", targets, files.next_version("targets"))


def undelegate(files: MetadataFiles, model: str, *, drop: bool) -> int:
    """Take ``model`` back: its keys sign nothing any more.  Returns how many targets were kept.

    Args:
        files: of the repository
        model: which one
        drop: forget what its keys had signed; otherwise ``targets`` signs it from now on

    Raises:
        ConfigError: it has no keys of its own, or what they signed is not whole.
    """
    targets = files.load("targets", Targets)
    entry = _entry(targets.signed, model)
    adopted = {} if drop else within(files.verified(model, targets.signed).signed, model)
    for keyid in list(entry.keyids):
        targets.signed.revoke_key(keyid, model)
    delegations = delegations_of(targets.signed)
    if delegations.roles is not None:
        del delegations.roles[model]
    if not delegations.roles:
        targets.signed.delegations = None
    targets.signed.targets.update(adopted)
    files.write("targets", targets, files.next_version("targets"))
    retire_keys(files.keys_dir, model, is_delegated=True)
    return len(adopted)


def rotate_delegated(files: MetadataFiles, model: str) -> int:
    """Give a model's role new keys; returns the version of ``targets`` that says so."""
    targets = files.load("targets", Targets)
    entry = _entry(targets.signed, model)
    part = files.verified(model, targets.signed)
    old = list(entry.keyids)
    retire_keys(files.keys_dir, model, is_delegated=True)
    new = create_role_keys(files.keys_dir, model, len(old), True)
    for keyid in old:
        targets.signed.revoke_key(keyid, model)
    _give_keys(targets.signed, model, new)
    files.write(model, part, files.next_version(model), entry)
    version = files.next_version("targets")
    files.write("targets", targets, version)
    return version


def _give_keys(targets: Targets, model: str, signers: Sequence[CryptoSigner]) -> None:
    for signer in signers:
        targets.add_key(signer.public_key, model)


def _entry(targets: Targets, model: str) -> DelegatedRole:
    roles = delegations_of(targets).roles or {}
    if model not in roles:
        raise ConfigError(
            f"{model}: expected a model with keys of its own, got one of "
            f"{', '.join(sorted(roles)) or 'none'}; make them with `edgeota delegate`"
        )
    return roles[model]


def _check(model: str, n_keys: int, threshold: int, days: int) -> None:
    if not is_name(model) or model in ROLES:
        raise ConfigError(f"expected the name of a model, no role of TUF itself, got {model!r}")
    if not 1 <= threshold <= n_keys <= MAX_KEYS:
        raise ConfigError(
            f"{model}: expected 1 <= threshold <= keys <= {MAX_KEYS}, got {threshold} of {n_keys}"
        )
    if not 1 <= days <= MAX_LIFE_DAYS:
        raise ConfigError(f"{model}: expected a life of 1 to {MAX_LIFE_DAYS} days, got {days}")
