"""`release.json`: what a model directory is, and the hash of every file in it.

Pure.  The format is docs/formats.md, section 4.  Both the engine (before it loads) and the updater
(before and after it applies a delta) read it through this module.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

MANIFEST_NAME = "release.json"
FORMAT = 1
#: 70 shards of a 60-layer model need 10 KiB; anything near this bound is not a manifest.
MAX_MANIFEST_BYTES = 1 << 20
MAX_FILES = 4096
MAX_HEALTH_PROMPTS = 64

_SHA256 = re.compile(r"[0-9a-f]{64}")
#: One flat directory: a path is a plain file name, so it can never leave the slot.
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_VERSION = re.compile(r"[0-9A-Za-z][0-9A-Za-z.+-]{0,31}")


class ManifestError(ValueError):
    """`release.json` is not what docs/formats.md says; the message names the field."""


@dataclass(frozen=True, slots=True)
class FileEntry:
    """Size and hash of one file."""

    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Health:
    """Fixed prompts (token ids) and the exact logits they must give."""

    prompts: tuple[tuple[int, ...], ...] = ()
    logits_sha256: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Manifest:
    """One release of one model."""

    name: str
    version: str
    counter: int
    files: Mapping[str, FileEntry]
    health: Health = field(default_factory=Health)

    @property
    def root(self) -> str:
        """The model's identity: hash over the sorted `<sha256> <bytes> <path>` lines."""
        return root_of(self.files)

    @property
    def total_bytes(self) -> int:
        """Sum of all file sizes."""
        return sum(entry.size_bytes for entry in self.files.values())

    def encode(self) -> bytes:
        """Return the canonical JSON text."""
        document = {
            "format": FORMAT,
            "name": self.name,
            "version": self.version,
            "counter": self.counter,
            "files": {
                path: {"bytes": entry.size_bytes, "sha256": entry.sha256}
                for path, entry in sorted(self.files.items())
            },
            "root": self.root,
            "health": {
                "prompts": [list(prompt) for prompt in self.health.prompts],
                "logits_sha256": list(self.health.logits_sha256),
            },
        }
        return json.dumps(document, indent=1).encode() + b"\n"


def root_of(files: Mapping[str, FileEntry]) -> str:
    """Return the SHA-256 (hex) that identifies a set of files."""
    digest = hashlib.sha256()
    for path in sorted(files, key=str.encode):
        entry = files[path]
        digest.update(f"{entry.sha256} {entry.size_bytes} {path}\n".encode())
    return digest.hexdigest()


def _require(ok: bool, what: str, got: object) -> None:
    if not ok:
        raise ManifestError(f"{MANIFEST_NAME}: expected {what}, got {str(got)[:80]!r}")


def _files(value: Any) -> dict[str, FileEntry]:
    _require(isinstance(value, dict) and 0 < len(value) <= MAX_FILES, "an object of files", value)
    files = {}
    for path, entry in value.items():
        _require(
            bool(_FILE_NAME.fullmatch(path)) and path != MANIFEST_NAME, "a plain file name", path
        )
        _require(isinstance(entry, dict), f"an object for {path}", entry)
        size, sha256 = entry.get("bytes"), entry.get("sha256")
        _require(type(size) is int and 0 <= size < 1 << 48, f"a size for {path}", size)
        _require(
            isinstance(sha256, str) and bool(_SHA256.fullmatch(sha256)), f"sha256 of {path}", sha256
        )
        files[path] = FileEntry(size, sha256)
    return files


def _health(value: Any) -> Health:
    _require(isinstance(value, dict), "an object as health", value)
    prompts, hashes = value.get("prompts", []), value.get("logits_sha256", [])
    _require(isinstance(prompts, list) and isinstance(hashes, list), "lists in health", value)
    _require(len(prompts) == len(hashes) <= MAX_HEALTH_PROMPTS, "one hash a prompt", len(hashes))
    for prompt in prompts:
        _require(isinstance(prompt, list) and 0 < len(prompt) <= 512, "a short prompt", prompt)
        _require(all(type(t) is int and 0 <= t < 1 << 31 for t in prompt), "token ids", prompt)
    for sha256 in hashes:
        _require(isinstance(sha256, str) and bool(_SHA256.fullmatch(sha256)), "a sha256", sha256)
    return Health(tuple(tuple(prompt) for prompt in prompts), tuple(hashes))


def parse_manifest(text: bytes) -> Manifest:
    """Parse and validate `release.json`.

    Raises:
        ManifestError: not JSON, a field out of bounds, or `root` does not fit `files`.
    """
    _require(len(text) <= MAX_MANIFEST_BYTES, f"at most {MAX_MANIFEST_BYTES} bytes", len(text))
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as err:
        raise ManifestError(f"{MANIFEST_NAME}: not JSON: {err}") from err
    _require(isinstance(document, dict), "an object", document)
    _require(document.get("format") == FORMAT, f"format {FORMAT}", document.get("format"))
    name, version, counter = (document.get(key) for key in ("name", "version", "counter"))
    _require(isinstance(name, str) and bool(_NAME.fullmatch(name)), "a name", name)
    _require(isinstance(version, str) and bool(_VERSION.fullmatch(version)), "a version", version)
    _require(type(counter) is int and 0 <= counter < 1 << 53, "a counter", counter)
    files = _files(document.get("files"))
    manifest = Manifest(
        str(name), str(version), int(counter or 0), files, _health(document.get("health", {}))
    )
    _require(document.get("root") == manifest.root, f"root {manifest.root}", document.get("root"))
    return manifest
