"""Every reason that an update can end with: who must act, what to do, whether waiting helps.  Pure.

The one table that errors, events, the command line and ``docs/updates.md`` share.  A code never
changes its meaning.  Codes of errors are those of ``ota.errors``; ``health_*`` are verdicts of a
trial; the last ones say why a committed model was given up.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class RetryClass(Enum):
    """What kind of failure it is: who must do something before it can go better."""

    NETWORK = "network"  # nobody: links come back
    MISSING = "missing"  # the operator: an object was not copied, or is being replaced
    SPACE = "space"  # somebody who frees some
    DISK = "disk"  # the disk, rarely
    TRUST = "trust"  # the operator publishes again, or the clock is set
    CONDITION = "condition"  # the surroundings: battery, heat, hours; not a failure
    LOCAL = "local"  # another worker, which ends soon
    NEVER = "never"  # trying the same again gives the same


class Who(Enum):
    """Who must act."""

    NOBODY = "nobody"
    DEVICE = "who looks after the device"
    BROKER = "who runs the broker"
    PUBLISHER = "who publishes releases"
    AUTHOR = "who makes the model"
    US = "the makers of edgeagent"


@dataclass(frozen=True, slots=True)
class Reason:
    """One row."""

    who: Who
    advice: str
    retry: RetryClass = RetryClass.NEVER


def _rows(who: Who, retry: RetryClass, **advice: str) -> dict[str, Reason]:
    return {code: Reason(who, text, retry) for code, text in advice.items()}


_NEVER = RetryClass.NEVER

REASONS: dict[str, Reason] = {
    **_rows(
        Who.NOBODY,
        RetryClass.NETWORK,
        transport_failed="wait: it goes on by itself; if it lasts, look at link, broker and server",
        name_unknown="wait for the network; if it lasts, check the host's name and the DNS server",
    ),
    **_rows(Who.NOBODY, RetryClass.CONDITION, gated="wait: it goes on when the condition is met"),
    **_rows(Who.NOBODY, RetryClass.LOCAL, busy="wait until the other updater has ended"),
    **_rows(
        Who.NOBODY,
        _NEVER,
        cancelled="nothing: somebody stopped it; install again to go on from what was kept",
        quarantined="publish a newer release, or edgeagent update forgive; it failed here before",
        not_in_quarantine="see edgeagent update status for what is in quarantine",
        rollback_requested="nothing: somebody asked for the model before this one",
    ),
    **_rows(
        Who.BROKER,
        RetryClass.MISSING,
        broker_refused="check user, password and access list of this node at the broker",
    ),
    **_rows(
        Who.BROKER,
        RetryClass.TRUST,
        tls_failed="check the certificates of both ends, their dates, and this clock",
    ),
    **_rows(
        Who.DEVICE,
        RetryClass.SPACE,
        storage_full="free space on the disk; the update then goes on",
        storage_quota="raise the quota of the agent's user, or free some of its space",
        storage_reserve="free space: the release and a reserve of 16 MiB must fit",
    ),
    **_rows(
        Who.DEVICE,
        RetryClass.DISK,
        storage_failed="check the disk and the kernel's log; replace a medium that has errors",
    ),
    **_rows(
        Who.DEVICE,
        _NEVER,
        storage_read_only="mount the file system writable; one with errors is often mounted so",
        storage_denied="give the agent's user its state directory",
        file_too_large="keep the state on a file system without that limit (not FAT)",
        flash_budget="wait a day, or raise update.flash_budget_mib",
        patch_damaged="check the medium: it does not keep what is written",
        bad_config="correct the setting that the message names",
        root_missing="put the repository's 1.root.json where update.root_file says",
        agent_too_old="upgrade edgeagent on this device",
        health_failed="look at the event's reason, and at the agent's journal",
        health_start="look at the journal: the engine refuses its settings or cannot start here",
        health_memory="use a smaller model, or a board with more memory",
        health_timeout="raise update.trial_timeout_s, or give the board less to do meanwhile",
        health_no_verdict="look at the journal: the agent died in each trial of this model",
    ),
    **_rows(
        Who.PUBLISHER,
        RetryClass.TRUST,
        untrusted_metadata="check which repository is served, its keys, and that it is no old copy",
        metadata_expired="run edgeota expiry and renew what it names; or set this device's clock",
        root_expired="run edgeota keys-rotate REPO root with the root's keys, or set the clock",
        timestamp_expired="run edgeota publish, from a timer; or set this device's clock",
        snapshot_expired="run edgeota publish, from a timer; or set this device's clock",
        targets_expired="run edgeota renew REPO targets with the targets key; or set the clock",
        role_expired="run edgeota renew REPO MODEL with the model's own keys; or set the clock",
    ),
    **_rows(
        Who.PUBLISHER,
        RetryClass.MISSING,
        object_missing="copy the repository completely, metadata last",
    ),
    **_rows(
        Who.PUBLISHER,
        _NEVER,
        release_refused="release this model in the repository that the device follows",
        wrong_hardware="release for this board, or correct update.hardware",
        downgrade="release it again with a higher counter",
        no_payload="publish a delta from what the device has, or the full image again",
        payload_mismatch="publish the payload again: its bytes differ from the signed ones",
        wrong_base="make the delta from the release that devices run",
        delta_format="make the delta again with this version of edgeota",
        release_format="seal the model again: release.json breaks a rule",
        expires_soon="run edgeota publish; rotate or renew what it does not renew",
    ),
    **_rows(
        Who.AUTHOR,
        _NEVER,
        health_load="convert the model again and load it once with edgeagent ask",
        health_root="seal the model again: the engine loads another model than was signed",
        health_logits="seal the model with this engine; if it loads elsewhere, test this memory",
        health_example="correct health.examples in release.json, or the model",
        health_speed="use a layout or a size that this board computes as fast as the old model",
        health_crash="run the model on such a board and report the crash",
        soak_crashes="run the model on such a board and report the crashes",
    ),
    **_rows(
        Who.DEVICE, _NEVER, model_damaged="check the medium: a committed model does not load now"
    ),
    **_rows(
        Who.US,
        _NEVER,
        update_failed="report it with the journal",
        wire_format="use one version of edgeagent and edgeota; report it if it lasts",
    ),
}


def advice_on(code: str) -> str:
    """Return what to do about ``code``; nothing for a code of another version."""
    reason = REASONS.get(code)
    return "" if reason is None else reason.advice


def table() -> str:
    """Return the table of ``docs/updates.md``."""
    lines = ["| code | who must act | what to do | tried again |", "|---|---|---|---|"]
    lines += [
        f"| `{code}` | {row.who.value} | {row.advice} | "
        f"{'no' if row.retry is RetryClass.NEVER else row.retry.value} |"
        for code, row in sorted(REASONS.items())
    ]
    return "\n".join(lines)
