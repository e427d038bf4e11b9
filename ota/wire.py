"""What is said between a device and a repository over MQTT.  Pure.

``docs/protocol.md`` section 5 defines it.

A device pulls: it asks for a stretch of an object and gets it in one message.  Nothing but the
notice is retained.  Requests and responses have the same payload on MQTT 5 and 3.1.1, so nothing
depends on properties::

    request    {"id", "object", "offset", "length", "reply_to"}
    response   {"id", "status", "offset", "total"} <newline> bytes

``total`` is the length of the whole object.  A status is an HTTP status, and means the same.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ota.errors import WireError

PREFIX = "ota/v1"
CHUNK_BYTES = 1 << 16  # 64 KiB passes every broker in use; larger ones gain little on a real link
MIN_CHUNK_BYTES = 1 << 10  # below, headers and hashes outweigh the bytes
MAX_CHUNK_BYTES = 126 << 10  # AWS IoT Core closes the connection above 128 KiB of payload
MAX_HEADER_BYTES = 1 << 10  # an id, an object name of 200 characters, a topic of 128
MAX_REQUEST_BYTES = MAX_HEADER_BYTES
MAX_NOTICE_BYTES = 1 << 10  # it is retained: one small message a repository
MAX_OBJECT_BYTES = 1 << 40

OK = 200
BAD_REQUEST = 400
NOT_FOUND = 404
RANGE_NOT_SATISFIABLE = 416
UNAVAILABLE = 503

_SEGMENT = r"[A-Za-z0-9_%][A-Za-z0-9._+~%-]{0,199}"  # a SHA-512 and a name; % is never decoded
_OBJECT = re.compile(rf"(?:metadata|targets)(?:/{_SEGMENT}){{1,6}}")
_REPO = re.compile(r"[A-Za-z0-9_-]{1,64}")
_ID = re.compile(r"[A-Za-z0-9-]{1,32}")


@dataclass(frozen=True, slots=True)
class Request:
    """Please send ``length`` bytes of ``object`` from ``offset``."""

    id: str
    object: str
    offset: int
    length: int
    reply_to: str


@dataclass(frozen=True, slots=True)
class Response:
    """The answer to one request; ``data`` is empty unless ``status`` is ``OK``."""

    id: str
    status: int
    offset: int
    total: int
    data: bytes


def is_repo(name: str) -> bool:
    """Say whether ``name`` can be a repository; it is one level of every topic."""
    return _REPO.fullmatch(name) is not None


def is_object(name: str) -> bool:
    """Say whether ``name`` is a plain path below ``metadata/`` or ``targets/``.

    No segment starts with a dot, so none leads out, up, or to a hidden file.
    """
    return len(name) <= 256 and _OBJECT.fullmatch(name) is not None


def request_topic(repo: str) -> str:
    """Return where a repository listens."""
    return f"{PREFIX}/{repo}/get"


def reply_topic(repo: str, node: str) -> str:
    """Return where ``node`` listens."""
    return f"{PREFIX}/{repo}/reply/{node}"


def notice_topic(repo: str) -> str:
    """Return the retained notice of a repository."""
    return f"{PREFIX}/{repo}/notice"


def is_reply_topic(topic: str, repo: str) -> bool:
    """Say whether a responder may publish to ``topic``: one level below its own reply prefix."""
    prefix = reply_topic(repo, "")
    node = topic.removeprefix(prefix)
    return topic.startswith(prefix) and bool(node) and not set(node) & set("/+#\0")


def ranges(length: int, chunk_bytes: int) -> list[tuple[int, int]]:
    """Cut ``length`` bytes into (offset, length) of whole chunks and a shorter last one."""
    return [(offset, min(chunk_bytes, length - offset)) for offset in range(0, length, chunk_bytes)]


def encode_request(request: Request) -> bytes:
    """Write a request."""
    return _dump(
        {
            "id": request.id,
            "object": request.object,
            "offset": request.offset,
            "length": request.length,
            "reply_to": request.reply_to,
        }
    )


def decode_request(payload: bytes) -> Request:
    """Read a request.

    Raises:
        WireError: it breaks the protocol; there is no telling whom to answer.
    """
    if len(payload) > MAX_REQUEST_BYTES:
        raise WireError(f"request: expected up to {MAX_REQUEST_BYTES} bytes, got {len(payload)}")
    fields = _load(payload, "request")
    name = _text(fields, "object", 256)
    if not is_object(name):
        raise WireError(f"request: expected a path below metadata/ or targets/, got {name!r}")
    return Request(
        _id(fields),
        name,
        _number(fields, "offset", MAX_OBJECT_BYTES),
        _number(fields, "length", MAX_CHUNK_BYTES),
        _text(fields, "reply_to", 256),
    )


def encode_response(response: Response) -> bytes:
    """Write a response."""
    header = {
        "id": response.id,
        "status": response.status,
        "offset": response.offset,
        "total": response.total,
    }
    return _dump(header) + b"\n" + response.data


def decode_response(payload: bytes) -> Response:
    """Read a response.

    Raises:
        WireError: it breaks the protocol.
    """
    header, newline, data = payload[: MAX_HEADER_BYTES + 1].partition(b"\n")
    if not newline:
        raise WireError(f"response: expected a header line, got {payload[:40]!r}")
    data = payload[len(header) + 1 :]
    if len(data) > MAX_CHUNK_BYTES:
        raise WireError(f"response: expected up to {MAX_CHUNK_BYTES} bytes, got {len(data)}")
    fields = _load(header, "response")
    return Response(
        _id(fields),
        _number(fields, "status", 999),
        _number(fields, "offset", MAX_OBJECT_BYTES),
        _number(fields, "total", MAX_OBJECT_BYTES),
        data,
    )


def encode_notice(timestamp_version: int, models: Mapping[str, str]) -> bytes:
    """Write the retained notice: which metadata is newest, and the version of each model.

    It is a hint to look, never believed; models that do not fit are left out.
    """
    named: dict[str, str] = {}
    for name in sorted(models):
        longer = {**named, name: models[name]}
        if len(_notice(timestamp_version, longer)) > MAX_NOTICE_BYTES:
            break
        named = longer
    return _notice(timestamp_version, named)


def _notice(timestamp_version: int, models: Mapping[str, str]) -> bytes:
    return _dump({"format": 1, "timestamp": timestamp_version, "models": models})


def _dump(fields: Mapping[str, Any]) -> bytes:
    return json.dumps(fields, separators=(",", ":")).encode()


def _load(text: bytes, what: str) -> Mapping[str, Any]:
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as err:
        raise WireError(f"{what}: expected JSON, got {text[:40]!r} ({err})") from None
    if not isinstance(fields, dict):
        raise WireError(f"{what}: expected an object, got {text[:40]!r}")
    return fields


def _id(fields: Mapping[str, Any]) -> str:
    value = fields.get("id")
    if not isinstance(value, str) or not _ID.fullmatch(value):
        raise WireError(f"id: expected 1 to 32 letters, digits and dashes, got {str(value)[:40]!r}")
    return value


def _text(fields: Mapping[str, Any], key: str, limit: int) -> str:
    value = fields.get(key)
    if not isinstance(value, str) or not 0 < len(value) <= limit:
        raise WireError(f"{key}: expected 1 to {limit} characters, got {str(value)[:40]!r}")
    return value


def _number(fields: Mapping[str, Any], key: str, limit: int) -> int:
    value = fields.get(key)
    if type(value) is not int or not 0 <= value <= limit:
        raise WireError(f"{key}: expected 0 to {limit}, got {str(value)[:40]!r}")
    return value
