"""`update`: look for models, install, cancel, go back, and what became of it.

Without ``--mqtt`` or ``--node`` it is the agent on this machine that is meant, and it is asked at
its own socket, so nothing here needs a broker.  Where no agent runs, what only reads the disk, and
the way back, are done on the disk.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeagent.cli_remote import connect, load_config
from edgeagent.errors import (
    EX_TEMPFAIL,
    EX_UNAVAILABLE,
    AdapterError,
    ConfigError,
    EdgeAgentError,
)
from edgeagent.protocol.commands import FORGIVE
from edgeagent.protocol.topics import Topics

if TYPE_CHECKING:
    from edgeagent.config import Config

POLL_S = 0.25
BEGIN_S = 5.0
"""From an accepted request to its first sign: the agent reads its sensors and starts a process."""

READING = {"status", "history", "forgive"}
"""Verbs whose answer is all there is."""
RESTING = {"idle", "failed", "rolled_back", "gated"}
BY_REQUEST = "rolled back on request"
ROOT_CHARS = 16
"""Of a root, as slots are named; enough to name it to forgive."""

Ask = Callable[[str], dict[str, Any]]


class UpdateRefused(EdgeAgentError):
    """The agent says no."""

    exit_code = 1


class NoAgent(EdgeAgentError):
    """There is nobody to ask."""

    code = "no_agent"
    exit_code = EX_UNAVAILABLE


class NotInTime(EdgeAgentError):
    """It was accepted, and is not over."""

    code = "not_in_time"
    exit_code = EX_TEMPFAIL


def update(args: argparse.Namespace) -> int:
    """Ask one thing of an agent, or of the disk where none runs."""
    if args.mqtt or args.node:
        return _over_mqtt(args)
    config = load_config(args.config)
    answer = _of_this_machine(config, args.verb, **_details(args))
    if answer is None:
        return _without_agent(config, args)
    return _told(args, lambda action: _of_this_machine(config, action) or {}, answer)


def _details(args: argparse.Namespace) -> dict[str, str]:
    """Return what a request says besides its action.

    Raises:
        ConfigError: A directory of this machine means nothing to another one.
    """
    if args.verb == FORGIVE:
        return {"model": args.model}
    place = getattr(args, "place", None)
    if place is None:
        return {}
    if args.mqtt or args.node:
        raise ConfigError("--from is a directory of this machine: leave out --mqtt and --node")
    return {"from": str(place.absolute())}


def _of_this_machine(config: Config, action: str, **details: str) -> dict[str, Any] | None:
    from edgeagent.adapters import control
    from edgeagent.config import control_socket

    return control.ask(control_socket(config.paths), {"update": action, **details})


def _over_mqtt(args: argparse.Namespace) -> int:
    client, node = connect(args)
    topics = Topics(node, client.prefix)
    with client:

        def ask(action: str, **details: str) -> dict[str, Any]:
            return client.request(
                topics.update_request,
                topics.update_response,
                {"action": action, **details},
                timeout_s=args.timeout,
            )

        return _told(args, ask, ask(args.verb, **_details(args)))


def _told(args: argparse.Namespace, ask: Ask, answer: dict[str, Any]) -> int:
    """Show an answer, or wait for what it began."""
    if answer.get("status") != "ok":
        raise UpdateRefused(f"update {args.verb}: {answer.get('error', 'refused')}")
    data = answer.get("data", {})
    if args.verb in READING:
        return _show(args, data)
    if getattr(args, "wait", 0.0) <= 0:
        return _show(args, {"accepted": args.verb})
    return _show(args, _wait(ask, args.verb, args.wait))


def _wait(ask: Ask, verb: str, wait_s: float) -> dict[str, Any]:
    """Return the state once what was asked for is over.

    Raises:
        NotInTime: It is not, yet.
        UpdateRefused: It failed.
    """
    begun_s = time.monotonic()
    has_begun, state = False, {}
    while time.monotonic() - begun_s < wait_s:
        time.sleep(POLL_S)
        state = ask("status").get("data", {})
        has_begun = has_begun or state.get("phase") not in RESTING
        if state.get("phase") in RESTING and (has_begun or time.monotonic() - begun_s > BEGIN_S):
            return _ended(verb, state)
    raise NotInTime(
        f"update {verb}: not over within {wait_s:g} s, {state.get('phase', 'unknown')} now; "
        "it goes on: see edgeagent update status"
    )


def _ended(verb: str, state: dict[str, Any]) -> dict[str, Any]:
    phase, summary = state["phase"], state.get("release_summary", "")
    if phase == "gated":
        raise NotInTime(f"update {verb}: it waits: {summary}")
    if phase == "failed" or (phase == "rolled_back" and verb != "rollback"):
        raise UpdateRefused(f"update {verb}: {state.get('code') or phase}: {summary}")
    return state


# -- where no agent runs -------------------------------------------------------------------------


def _without_agent(config: Config, args: argparse.Namespace) -> int:
    """Do on the disk what can be done there.

    Raises:
        NoAgent: The agent must do it; or it runs, and does not listen.
    """
    from edgeagent.adapters.control import only_agent
    from edgeagent.config import control_socket

    state_dir = config.paths.state_dir
    if not state_dir.is_dir():
        raise NoAgent(f"{state_dir}: no agent has ever run here; start it, or name one with --node")
    if args.verb == "history":
        from edgeagent.update_history import History

        return _show(args, {"history": History(state_dir).entries()})
    with only_agent(state_dir) as is_alone:
        if not is_alone:
            raise NoAgent(
                f"{control_socket(config.paths)}: an agent runs and does not listen here; "
                "see its log, or ask it with --node"
            )
        if args.verb == "status":
            return _show(args, _status_of(config))
        if args.verb == "rollback":
            return _show(args, _roll_back(config))
        if args.verb == FORGIVE:
            return _show(args, _forgive(config, args.model))
    raise NoAgent(
        f"update {args.verb}: no agent runs on {state_dir}; start it (systemctl start edgeagent), "
        "or name one with --node"
    )


def _status_of(config: Config) -> dict[str, Any]:
    from edgeagent.model_store import ModelStore

    models = ModelStore(config.paths.state_dir, config.model.path, config.update.soak_s)
    release = models.store.active_release()
    return {
        "installed_version": release.version,
        "title": release.name,
        "phase": "no_agent",
        "way_back": models.way_back().value,
        "quarantine": models.quarantine(),
    }


def _roll_back(config: Config) -> dict[str, Any]:
    """Return to the model before the active one; nothing runs that could have it mapped.

    Raises:
        UpdateRefused: There is none.
        UpdateError: It cannot be made again, and nothing has changed.
    """
    from edgeagent.engines import WayBack
    from edgeagent.model_store import ModelStore
    from edgeagent.update_history import History

    state_dir, code = config.paths.state_dir, "rollback_requested"
    models = ModelStore(state_dir, config.model.path, config.update.soak_s)
    if models.way_back() is WayBack.NONE:
        raise UpdateRefused("update rollback: there is no model before the active one on this disk")
    given_up = models.store.installed_version()
    try:
        models.store.rebuild_previous()
        models.store.revert(BY_REQUEST, code)
    except PermissionError as err:
        raise AdapterError(f"{err.filename}: {err.strerror}; run this as the agent's user") from err
    said = {"version": given_up, "reason": BY_REQUEST, "code": code}
    History(state_dir).add("rolled_back", said, time.time())
    return _status_of(config) | {"given_up": given_up}


def _forgive(config: Config, what: str) -> dict[str, Any]:
    """Lift a quarantine.

    Raises:
        UpdateRefused: Nothing in it is called so, and nothing has changed.
        UpdateError: The store cannot be written, and nothing has changed.
    """
    from edgeagent.model_store import ModelStore
    from edgeagent.update_history import History
    from ota.errors import NothingToForgive

    state_dir: Path = config.paths.state_dir
    models = ModelStore(state_dir, config.model.path, config.update.soak_s)
    try:
        forgiven = models.forgive(what)
    except NothingToForgive as err:
        raise UpdateRefused(f"update forgive: {err}") from err
    except PermissionError as err:
        raise AdapterError(f"{err.filename}: {err.strerror}; run this as the agent's user") from err
    for entry in forgiven:
        History(state_dir).add("update_forgiven", entry, time.time())
    return {"forgiven": forgiven}


# -- showing -------------------------------------------------------------------------------------


def _show(args: argparse.Namespace, data: dict[str, Any]) -> int:
    if args.json:
        print(json.dumps(data, ensure_ascii=False))
    elif "history" in data:
        for entry in data["history"]:
            print(_line(entry))
    elif "accepted" in data:
        print(f"{data['accepted']}: accepted; see edgeagent update status")
    elif "forgiven" in data:
        for entry in data["forgiven"]:
            print(_given_up(entry))
        print("may be tried again: edgeagent update install")
    else:
        _show_state(data)
    return 0


def _show_state(data: dict[str, Any]) -> None:
    for key, value in data.items():
        if isinstance(value, list):
            for entry in value:
                print(f"{key:<20} {_given_up(entry)}")
        elif value not in (None, ""):
            print(f"{key:<20} {value if not isinstance(value, dict) else json.dumps(value)}")


def _given_up(entry: dict[str, Any]) -> str:
    """Return a line about a model in quarantine, with what it came to replace."""
    words = [entry.get("version") or "unknown", str(entry["root"])[:ROOT_CHARS]]
    if entry.get("base"):
        words.append(f"from {entry['base'][:ROOT_CHARS]}")
    if entry.get("time_s") is not None:
        words.append(time.strftime("%Y-%m-%d %H:%M", time.localtime(entry["time_s"])))
    return "  ".join(words + [str(entry[key]) for key in ("code", "reason") if entry.get(key)])


def _line(entry: dict[str, Any]) -> str:
    moment = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.get("time_s", 0)))
    words = [moment, str(entry["type"]).removeprefix("update_")]
    if "from" in entry:
        words.append(f"{entry['from']} to")
    words += [str(entry[key]) for key in ("version", "code", "reason") if entry.get(key)]
    if entry.get("written_bytes"):
        words.append(f"({entry['written_bytes']} bytes written)")
    return "  ".join(words)
