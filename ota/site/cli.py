"""``edgeota mirror``: a verified copy of a repository for the devices of one site."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ota.device.dir_source import DirSource
from ota.device.http_source import HttpSource
from ota.device.mqtt_source import MqttSource
from ota.device.source import Source
from ota.errors import ConfigError
from ota.fleet.responder import publish_notice
from ota.mqtt import Broker
from ota.site.mirror import Mirror

Result = tuple[dict[str, Any], str]
MAX_ROOT_BYTES = 1 << 18
NODE = "mirror"
"""What it is called at the origin's broker, after the repository's name."""


def mirror(args: argparse.Namespace, broker_of: Callable[[argparse.Namespace], Broker]) -> Result:
    """Bring the mirror up to date, and tell the site's devices."""
    try:
        with args.root_file.open("rb") as file:
            root = file.read(MAX_ROOT_BYTES)
    except OSError as err:
        raise ConfigError(
            f"{args.root_file}: {err.strerror}; give the origin's 1.root.json"
        ) from err
    with ExitStack() as stack:
        source = stack.enter_context(_source(args, broker_of))
        done = Mirror(source, args.repo, args.name, root).sync()
    if args.mqtt is not None:
        publish_notice(broker_of(args), args.name, done.notice)
    models = ", ".join(f"{name} {version}" for name, version in done.models.items()) or "no model"
    return asdict(done), (
        f"{args.name} as of timestamp version {done.timestamp}: {models}; "
        f"{done.n_fetched} objects of {done.fetched_bytes} bytes fetched"
    )


def _source(args: argparse.Namespace, broker_of: Callable[[argparse.Namespace], Broker]) -> Source:
    if args.from_dir is not None:
        return DirSource(args.from_dir)
    if args.from_http is not None:
        return HttpSource(args.from_http)
    origin = argparse.Namespace(**{**vars(args), "mqtt": args.from_mqtt})
    return MqttSource(broker_of(origin), args.name, f"{args.name}-{NODE}")


def add_commands(
    add: Callable[[str, Callable[[argparse.Namespace], Result], str], Any],
    broker_of: Callable[[argparse.Namespace], Broker],
    add_mqtt: Callable[..., None],
) -> None:
    """Add the command to the parser of ``edgeota``."""
    mirroring = add(
        "mirror",
        lambda args: mirror(args, broker_of),
        "copy a repository for one site: fetched once, served there with edgeota serve",
    )
    mirroring.add_argument("--name", required=True, help="of the repository, as at the origin")
    mirroring.add_argument(
        "--root-file", type=Path, required=True, metavar="FILE", help="the origin's 1.root.json"
    )
    origin = mirroring.add_mutually_exclusive_group(required=True)
    origin.add_argument("--from-mqtt", metavar="HOST:PORT", help="the origin's broker")
    origin.add_argument("--from-http", metavar="URL", help="the origin on a web server")
    origin.add_argument("--from-dir", type=Path, metavar="DIR", help="the origin on a medium")
    add_mqtt(mirroring, required=False)
