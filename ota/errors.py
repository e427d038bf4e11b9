"""What can go wrong with an update, sorted by what follows from it.

Every error is one line (what was expected, what came, what to do), has a ``code`` that never
changes its meaning (the worker reports it, ``edgeota --json`` prints it) and an ``exit_code`` from
``sysexits.h`` for the command line::

    UpdateError
      ConfigError           the operator or the agent asked for something impossible
        RootMissing           there is no root of trust
      UntrustedMetadata     signature, version or delegation check failed
        ExpiredMetadata       ... because it is too old
          RootExpired           ... in each role: another command renews it
          TimestampExpired
          SnapshotExpired
          TargetsExpired
          RoleExpired           a model's own
      ReleaseRefused        the release is genuine, and not for this device now
        WrongHardware
        AgentTooOld
        Downgrade             its counter is not above what was committed
        Quarantined           it was tried here and rolled back
        NoPayload             neither a delta from our base nor a full image can be used
      PayloadError          this payload cannot be used; another one may
        PayloadMismatch       length or hash differs from the signed one
        WrongBase             the delta is for another base
        DeltaFormatError      the container breaks its own rules
        ReleaseFormatError    release.json breaks its own rules
      ExampleFailed         a model does not answer its release's own examples
      StorageError          the disk failed
        StorageFull
          QuotaFull             ... for this user
          NoRoom                ... for the release and the reserve
          FileTooLarge          ... for a file of this length in this file system
        StorageReadOnly
        StorageDenied
        FlashBudget           the day's writes are used up
        PatchDamaged          what an update in place keeps is not what was written
      TransportError        the network failed; back off and retry
        NameUnknown           the host's name leads nowhere
        TlsFailed             there is no encrypted connection that both ends believe
        BrokerRefused         user, password or access list
        ObjectMissing         the other side has no such object
      WireError             a peer sent a message that breaks the protocol
      Busy                  another worker is at it
      NothingToForgive      nothing in quarantine is called that
      Gated                 a condition holds the next stage back
      Cancelled             we were asked to stop; progress is kept

Whatever is raised, the committed model stays in place.
"""

from __future__ import annotations

EX_DATAERR = 65
EX_SOFTWARE = 70
EX_IOERR = 74
EX_TEMPFAIL = 75
EX_PROTOCOL = 76
EX_CONFIG = 78


MAX_LINE_CHARS = 1000
"""Of a message: it may quote what came from outside, which may be megabytes."""
_TAIL_CHARS = 300  # kept when the middle is left out: what to do stands at the end


class UpdateError(Exception):
    """Base of everything that ends an update; the device keeps its model."""

    code = "update_failed"
    exit_code = EX_SOFTWARE
    retry_after_s: float | None = None
    """How long to wait before trying again; None where trying again cannot help."""

    def __str__(self) -> str:
        """Return the message as one line that every log can take, whatever it quotes."""
        text = super().__str__()
        if len(text) > MAX_LINE_CHARS:
            text = f"{text[: MAX_LINE_CHARS - _TAIL_CHARS - 3]} … {text[-_TAIL_CHARS:]}"
        return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


class ConfigError(UpdateError):
    """The operator or the agent asked for something impossible."""

    code = "bad_config"
    exit_code = EX_CONFIG


class RootMissing(ConfigError):
    """There is no root of trust to begin with."""

    code = "root_missing"


class UntrustedMetadata(UpdateError):
    """A signature, version or delegation check failed."""

    code = "untrusted_metadata"
    exit_code = EX_DATAERR


class ExpiredMetadata(UntrustedMetadata):
    """The metadata is genuine, and too old to be believed."""

    code = "metadata_expired"


class RootExpired(ExpiredMetadata):
    """The newest root that was found is too old."""

    code = "root_expired"


class TimestampExpired(ExpiredMetadata):
    """The timestamp is too old: nobody has published for a while, or somebody holds it back."""

    code = "timestamp_expired"


class SnapshotExpired(ExpiredMetadata):
    """The snapshot is too old."""

    code = "snapshot_expired"


class TargetsExpired(ExpiredMetadata):
    """What the targets key has signed is too old."""

    code = "targets_expired"


class RoleExpired(ExpiredMetadata):
    """What a model's own keys have signed is too old."""

    code = "role_expired"


class ReleaseRefused(UpdateError):
    """The release is genuine, and not for this device now."""

    code = "release_refused"
    exit_code = EX_DATAERR


class WrongHardware(ReleaseRefused):
    """The release is for other boards."""

    code = "wrong_hardware"


class AgentTooOld(ReleaseRefused):
    """The release needs a newer agent."""

    code = "agent_too_old"


class Downgrade(ReleaseRefused):
    """The release's counter is not above what this device has committed."""

    code = "downgrade"


class Quarantined(ReleaseRefused):
    """The release was tried on this device and rolled back."""

    code = "quarantined"


class NoPayload(ReleaseRefused):
    """Neither a delta from our base nor a full image can be used."""

    code = "no_payload"


class PayloadError(UpdateError):
    """This payload cannot be used; another one of the same release may."""

    code = "payload_unusable"
    exit_code = EX_DATAERR


class PayloadMismatch(PayloadError):
    """A length or a hash differs from the signed one."""

    code = "payload_mismatch"


class WrongBase(PayloadError):
    """The delta starts from another model than the one that is here."""

    code = "wrong_base"


class DeltaFormatError(PayloadError):
    """The container breaks its own rules."""

    code = "delta_format"


class ReleaseFormatError(PayloadError):
    """release.json breaks its own rules."""

    code = "release_format"


class ExampleFailed(UpdateError):
    """A model does not answer its release's own examples."""

    code = "health_example"
    exit_code = EX_DATAERR


class StorageError(UpdateError):
    """The disk failed."""

    code = "storage_failed"
    exit_code = EX_IOERR


class StorageFull(StorageError):
    """There is no room on the disk."""

    code = "storage_full"
    retry_after_s = 3600.0  # space comes back when somebody makes it, not within minutes


class QuotaFull(StorageFull):
    """There is no room left for this user."""

    code = "storage_quota"


class NoRoom(StorageFull):
    """The release would not leave the reserve free; nothing was written."""

    code = "storage_reserve"


class FileTooLarge(StorageFull):
    """The file system takes no file of this length."""

    code = "file_too_large"


class StorageReadOnly(StorageError):
    """The file system takes no writes."""

    code = "storage_read_only"


class StorageDenied(StorageError):
    """This user may not write there."""

    code = "storage_denied"


class PatchDamaged(StorageError):
    """What an update in place keeps on the disk is not what was written."""

    code = "patch_damaged"


class FlashBudget(StorageError):
    """So much was written for updates today that more would wear out the medium."""

    code = "flash_budget"

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class TransportError(UpdateError):
    """The network failed; back off and retry."""

    code = "transport_failed"
    exit_code = EX_TEMPFAIL
    retry_after_s = 60.0  # a broker restart takes seconds, an uplink minutes


class NameUnknown(TransportError):
    """The host's name leads nowhere."""

    code = "name_unknown"


class TlsFailed(TransportError):
    """There is no encrypted connection that both ends believe."""

    code = "tls_failed"


class BrokerRefused(TransportError):
    """The broker does not let this user in."""

    code = "broker_refused"


class ObjectMissing(TransportError):
    """The other side has no such object."""

    code = "object_missing"


class WireError(UpdateError):
    """A peer sent a message that breaks the protocol."""

    code = "wire_format"
    exit_code = EX_PROTOCOL


class Busy(UpdateError):
    """Another worker has this state directory."""

    code = "busy"
    exit_code = EX_TEMPFAIL
    retry_after_s = 10.0  # a worker that was told to stop needs a second or two


class NothingToForgive(UpdateError):
    """Somebody wants to lift a quarantine that is not there."""

    code = "not_in_quarantine"
    exit_code = EX_DATAERR


class Gated(UpdateError):
    """A condition (battery, heat, network, load, hours) holds the next stage back."""

    code = "gated"
    exit_code = EX_TEMPFAIL

    def __init__(
        self, message: str, retry_after_s: float, gate: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.gate = gate or {}
        """Stage, reason and detail, for those who watch the condition themselves."""


class Cancelled(UpdateError):
    """We were asked to stop; what was fetched is kept."""

    code = "cancelled"
    exit_code = EX_TEMPFAIL
