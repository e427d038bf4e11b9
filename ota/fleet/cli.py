"""``edgeota``: make a repository, add releases and deltas, publish, serve.

One line an error, exit codes from ``sysexits.h``, ``--json`` everywhere.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ota.errors import ConfigError, UpdateError
from ota.fleet import cli_devices
from ota.fleet.examples import check_examples
from ota.fleet.keys import ROLES
from ota.fleet.repository import Added, Repository
from ota.fleet.responder import Responder, publish_notice
from ota.mqtt import Broker, Tls
from ota.site import cli as site
from ota.storage import read_release

PASSWORD_VARIABLE = "EDGEOTA_MQTT_PASSWORD"  # noqa: S105 - a name; not an option: others can read command lines
WARN_DAYS = 14  # what expires sooner is shown as such: two weeks are enough to act


class ExpiresSoon(UpdateError):
    """Something expires within the days that were asked about."""

    code = "expires_soon"
    exit_code = os.EX_TEMPFAIL


Result = tuple[dict[str, Any], str]
"""What a command says: as JSON, and to a person."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    args = _parser().parse_args(argv)
    command: Callable[[argparse.Namespace], Result] = args.command
    try:
        fields, text = command(args)
    except UpdateError as err:
        if args.json:
            print(json.dumps({"error": {"code": err.code, "message": str(err)}}))
        print(f"edgeota: {err}", file=sys.stderr)
        return err.exit_code
    print(json.dumps(fields) if args.json else text)
    return os.EX_OK


def _init(args: argparse.Namespace) -> Result:
    name = args.name or args.repo.resolve().name
    repo = Repository.create(args.repo, name, args.keys, args.root_keys, args.threshold)
    root = args.repo / "metadata" / "1.root.json"
    fields = {"repo": repo.name, "root_file": str(root)}
    return fields, f"made repository {repo.name}; devices need {root}"


def _release(args: argparse.Namespace) -> Result:
    repo = Repository.open(args.repo, args.keys)
    check_examples(args.model_dir, read_release(args.model_dir))
    added = repo.add_release(args.model_dir, tuple(args.hardware), args.min_agent)
    return _fields(added), (
        f"added {added.to_version} as the current release, full image {added.n_bytes} bytes; "
        f"publish it with `edgeota publish {args.repo}`"
    )


def _delta(args: argparse.Namespace) -> Result:
    repo = Repository.open(args.repo, args.keys)
    added = repo.add_delta(args.from_, args.to, args.name, args.way)
    ratio = added.full_bytes / added.n_bytes
    return _fields(added), (
        f"added delta {added.from_version} to {added.to_version}: {added.n_bytes} bytes, "
        f"{ratio:.1f} times smaller than the full image of {added.full_bytes}"
    )


def _publish(args: argparse.Namespace) -> Result:
    repo = Repository.open(args.repo, args.keys)
    version = repo.publish()
    fields: dict[str, Any] = {"repo": repo.name, "timestamp": version, "notice": None}
    text = f"published {repo.name}, timestamp version {version}"
    if args.mqtt is not None:
        notice = repo.notice()
        publish_notice(_broker(args), repo.name, notice)
        fields["notice"] = json.loads(notice)
        text += f", notice of {len(notice)} bytes at {args.mqtt}"
    return fields, text


def _serve(args: argparse.Namespace) -> Result:
    repo = Repository.open(args.repo, args.keys)
    stops = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, stops)  # before threads, so that all inherit it
    responder = Responder(_broker(args), repo.name, args.repo)
    responder.open()
    ready = {"repo": repo.name, "serving": args.mqtt}
    print(json.dumps(ready) if args.json else f"serving {repo.name} at {args.mqtt}", flush=True)
    signal.sigwait(stops)
    responder.close()
    fields = {"answers": responder.n_answers, "refused": responder.n_refused}
    return fields, f"answered {responder.n_answers} requests, refused {responder.n_refused}"


def _status(args: argparse.Namespace) -> Result:
    status = Repository.open(args.repo, args.keys).status()
    lines = [f"repository {status['name']}" + ("" if status["is_published"] else ", not published")]
    for role, entry in status["roles"].items():
        warning = ""
        if entry["days_left"] < WARN_DAYS:
            warning = "  expired" if entry["days_left"] < 0 else "  expires soon: publish again"
        lines.append(f"  {role:<10} version {entry['version']:<5} {entry['expires']}{warning}")
    for name, model in status["models"].items():
        lines.append(f"  {name}: current {model['current']}")
        lines += [
            f"    {entry['version']:<12} counter {entry['counter']:<4} root {entry['root'][:16]} "
            f"full {entry['full_bytes']} bytes"
            for entry in model["releases"]
        ]
        lines += [
            f"    delta {entry['base']} to {entry['root']} {entry['bytes']} bytes"
            for entry in model["deltas"]
        ]
    return status, "\n".join(lines)


def _expiry(args: argparse.Namespace) -> Result:
    roles = Repository.open(args.repo, args.keys).status()["roles"]
    soon = sorted(role for role, entry in roles.items() if entry["days_left"] < args.days)
    lines = [f"{role:<10} {entry['expires']}" for role, entry in roles.items()]
    if soon:
        raise ExpiresSoon(
            f"{', '.join(soon)}: fewer than {args.days} days left; publish again, "
            "or `edgeota renew` where it is targets or a model"
        )
    return {"roles": roles, "soon": soon}, "\n".join(lines)


def _keys_list(args: argparse.Namespace) -> Result:
    keys = Repository.open(args.repo, args.keys).keys()
    lines = [
        f"{role:<10} {entry['threshold']} of {' '.join(key[:16] for key in entry['keys'])}"
        for role, entry in keys.items()
    ]
    return {"roles": keys}, "\n".join(lines)


def _keys_rotate(args: argparse.Namespace) -> Result:
    version = Repository.open(args.repo, args.keys).rotate(args.role)
    by = "root" if args.role in ROLES else "targets"
    return {"role": args.role, by: version}, (
        f"{args.role} has new keys as of {by} version {version}; take the {by} keys away again"
    )


def _delegate(args: argparse.Namespace) -> Result:
    repo = Repository.open(args.repo, args.keys)
    version = repo.delegate(args.model, args.role_keys, args.threshold, args.expires)
    where = repo.keys_dir / "models" / args.model
    return {"role": args.model, "keys": str(where), "timestamp": version}, (
        f"{args.model} is signed by {args.threshold} of {args.role_keys} keys in {where}; give "
        "them to who releases it, and take the targets key away"
    )


def _undelegate(args: argparse.Namespace) -> Result:
    n_kept = Repository.open(args.repo, args.keys).undelegate(args.model, drop=args.drop)
    what = f"targets signs its {n_kept} targets" if n_kept else "nothing of it is signed any more"
    return {"role": args.model, "kept": n_kept}, f"{args.model} has no keys of its own; {what}"


def _renew(args: argparse.Namespace) -> Result:
    version = Repository.open(args.repo, args.keys).renew(args.role)
    return {"role": args.role, "version": version}, f"{args.role} is version {version} now"


def _fields(added: Added) -> dict[str, Any]:
    return {
        "target": added.target,
        "bytes": added.n_bytes,
        "full_bytes": added.full_bytes,
        "from": added.from_version,
        "to": added.to_version,
        "root": added.root,
    }


def _broker(args: argparse.Namespace) -> Broker:
    host, colon, port = args.mqtt.rpartition(":")
    if not colon or not host or not port.isdigit():
        raise ConfigError(f"--mqtt: expected host:port, got {args.mqtt!r}")
    password = os.environ.get(PASSWORD_VARIABLE)
    encrypted = args.mqtt_tls or args.mqtt_ca or args.mqtt_cert
    tls = Tls(args.mqtt_ca, args.mqtt_cert, args.mqtt_key) if encrypted else None
    return Broker(host, int(port), args.mqtt_user, password, args.mqtt_protocol, tls)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="edgeota", description="Signed model updates for a fleet."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: Callable[[argparse.Namespace], Result], text: str) -> Any:
        sub = commands.add_parser(name, help=text, description=text)
        sub.add_argument("repo", type=Path, metavar="REPO", help="the repository's directory")
        sub.add_argument("--keys", type=Path, metavar="DIR", help="signing keys (REPO/keys)")
        sub.add_argument("--json", action="store_true", help="answer in JSON")
        sub.set_defaults(command=command)
        return sub

    init = add("init", _init, "make a repository and its keys")
    init.add_argument("--name", help="its name in topics (the directory's name)")
    init.add_argument("--root-keys", type=int, default=1, metavar="N", help="root keys to make (1)")
    init.add_argument(
        "--threshold", type=int, default=1, metavar="M", help="how many of them must sign (1)"
    )

    release = add("release", _release, "add a model directory as the current release")
    release.add_argument("model_dir", type=Path, metavar="MODEL_DIR")
    release.add_argument(
        "--hardware", action="append", default=[], metavar="BOARD", help="only for this board"
    )
    release.add_argument("--min-agent", default="0", metavar="VERSION", help="oldest agent (0)")

    delta = add("delta", _delta, "add the delta between two releases")
    delta.add_argument("from_", metavar="FROM", help="a version, or a model directory")
    delta.add_argument("to", metavar="TO", help="a version, or a model directory")
    delta.add_argument("--name", help="which model, if several have that version")
    ways = delta.add_mutually_exclusive_group()
    ways.add_argument(
        "--reversible", dest="way", action="store_const", const="reversible", default="direct",
        help="a delta that adds up and turns round without a model; 4 to 7 %% larger",
    )  # fmt: skip
    ways.add_argument(
        "--compose", dest="way", action="store_const", const="compose",
        help="add up the reversible deltas that lead from FROM to TO",
    )  # fmt: skip

    publish = add("publish", _publish, "sign what was added, and tell devices")
    _add_mqtt(publish, required=False)
    serve = add("serve", _serve, "answer devices over MQTT until interrupted")
    _add_mqtt(serve, required=True)
    add("status", _status, "show versions, expiry and releases")
    expiry = add("expiry", _expiry, "show what expires when; exit code 75 if soon (for cron)")
    expiry.add_argument("--days", type=int, default=WARN_DAYS, help=f"what is soon ({WARN_DAYS})")
    add("keys-list", _keys_list, "show which keys sign each role")
    rotate = add("keys-rotate", _keys_rotate, "give a role new keys, signed by the root's")
    rotate.add_argument("role", metavar="ROLE", help=f"{', '.join(ROLES)}, or a model")
    _add_delegation(add)
    for others in (cli_devices, site):
        others.add_commands(add, _broker, _add_mqtt)
    return parser


def _add_delegation(add: Callable[[str, Callable[[argparse.Namespace], Result], str], Any]) -> None:
    delegate = add("delegate", _delegate, "hand a model to keys of its own; needs the targets key")
    delegate.add_argument("model", metavar="MODEL")
    delegate.add_argument("--role-keys", type=int, default=1, metavar="N", help="keys to make (1)")
    delegate.add_argument(
        "--threshold", type=int, default=1, metavar="M", help="how many of them must sign (1)"
    )
    delegate.add_argument(
        "--expires", type=int, metavar="DAYS", help="life of what they sign (365)"
    )
    undelegate = add("undelegate", _undelegate, "take a model back from its keys")
    undelegate.add_argument("model", metavar="MODEL")
    undelegate.add_argument(
        "--drop", action="store_true", help="forget what those keys signed; else targets signs it"
    )
    renew = add("renew", _renew, "sign a role again, unchanged, before it expires")
    renew.add_argument("role", metavar="ROLE", help="targets, or a model with keys of its own")


def _add_mqtt(parser: argparse.ArgumentParser, *, required: bool) -> None:
    parser.add_argument("--mqtt", required=required, metavar="HOST:PORT", help="the broker")
    parser.add_argument("--mqtt-user", metavar="USER", help=f"password in ${PASSWORD_VARIABLE}")
    parser.add_argument("--mqtt-tls", action="store_true", help="encrypt, verify by the system")
    parser.add_argument("--mqtt-ca", metavar="FILE", help="encrypt, verify by this authority")
    parser.add_argument("--mqtt-cert", metavar="FILE", help="our certificate")
    parser.add_argument("--mqtt-key", metavar="FILE", help="its private key")
    parser.add_argument("--mqtt-protocol", choices=("auto", "5", "3.1.1"), default="auto")


if __name__ == "__main__":
    sys.exit(main())
