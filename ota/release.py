"""``release.json``: what a model directory is, and the hash of every file in it.  Pure.

The format is defined in ``docs/formats.md`` section 4.  Text comes from outside, so every number is
bounded and every name is checked before anything believes it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ota.errors import ReleaseFormatError

RELEASE_FILE = "release.json"
MAX_RELEASE_BYTES = 1 << 20  # 4096 files of about 130 bytes each, twice over
MAX_FILES = 4096  # a model has one file a layer; the deepest known has 126 layers
MAX_FILE_BYTES = 1 << 40  # keeps all sums below 2**53, exact in every JSON reader
MAX_HEALTH_PROMPTS = 64  # a trial engine runs them all before anyone waits for an answer
MAX_PROMPT_TOKENS = 512  # the context of the smallest model
MAX_EXAMPLES = 16  # an answer of 128 tokens takes a slow board half a minute
MAX_EXAMPLE_CHARS = 2048  # of a prompt, and of what is expected of its answer
MAX_EXAMPLE_TOKENS = 128
SLOT_NAME_CHARS = 16  # 64 bits of the root: two releases of one fleet never share them by accident

_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_VERSION = re.compile(r"[0-9A-Za-z][0-9A-Za-z.+_-]{0,63}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file of a release."""

    n_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt, and what its greedy answer must be."""

    prompt: str
    kind: str
    """``equals``, ``contains`` or ``json``: the rule of the comparison."""
    expected: str
    max_tokens: int

    def is_met_by(self, answer: str) -> bool:
        """Say whether ``answer`` is as expected; blanks around it do not count."""
        if self.kind == "contains":
            return self.expected in answer
        if self.kind == "equals":
            return self.expected.strip() == answer.strip()
        try:
            return bool(json.loads(answer) == json.loads(self.expected))
        except (ValueError, RecursionError):
            return False


EXAMPLE_KINDS = ("equals", "contains", "json")


@dataclass(frozen=True, slots=True)
class Health:
    """What a trial engine must reproduce before a release is trusted.

    Fixed prompts (token ids) with the SHA-256 of the exact logits that each must give, and examples
    whose answers are compared as text.
    """

    prompts: tuple[tuple[int, ...], ...] = ()
    logits_sha256: tuple[str, ...] = ()
    examples: tuple[Example, ...] = ()


@dataclass(frozen=True, slots=True)
class Release:
    """A parsed and checked ``release.json``; ``text`` is the file, byte for byte."""

    name: str
    version: str
    counter: int
    root: str
    files: Mapping[str, FileEntry]
    text: bytes
    health: Health = field(default_factory=Health)

    @property
    def n_bytes(self) -> int:
        """Bytes of all files, without ``release.json``."""
        return sum(entry.n_bytes for entry in self.files.values())

    @property
    def slot(self) -> str:
        """The directory name of this release below ``slots/``."""
        return short_root(self.root)


def short_root(root: str) -> str:
    """Return the part of ``root`` that names slots and deltas."""
    return root[:SLOT_NAME_CHARS]


def is_sha256(value: object) -> bool:
    """Say whether ``value`` is a SHA-256 in lower-case hex."""
    return isinstance(value, str) and _SHA256.fullmatch(value) is not None


def is_name(value: object) -> bool:
    """Say whether ``value`` can name a model; it becomes a directory of the repository."""
    return isinstance(value, str) and _NAME.fullmatch(value) is not None


def is_version(value: object) -> bool:
    """Say whether ``value`` can be a version; it becomes a directory of the repository."""
    return isinstance(value, str) and _VERSION.fullmatch(value) is not None


def root_of(files: Mapping[str, FileEntry]) -> str:
    """Return the identity of a model: the hash over its sorted file table."""
    digest = hashlib.sha256()
    for path in sorted(files, key=str.encode):
        entry = files[path]
        digest.update(f"{entry.sha256} {entry.n_bytes} {path}\n".encode())
    return digest.hexdigest()


def parse_release(text: bytes) -> Release:
    """Read ``release.json``.

    Raises:
        ReleaseFormatError: the text is not JSON, a field is missing or out of bounds, or ``root``
            is not the hash of ``files``.
    """
    release = parse_hollow(text)
    root = root_of(release.files)
    if release.root != root:
        raise _wrong(f"root {root}, the hash of its files", release.root)
    return release


def parse_hollow(text: bytes) -> Release:
    """Read a ``release.json`` whose root, and some of whose hashes, are not its own.

    Raises:
        ReleaseFormatError: the text is not JSON, or a field is missing or out of bounds.
    """
    if len(text) > MAX_RELEASE_BYTES:
        raise _wrong(f"at most {MAX_RELEASE_BYTES} bytes", len(text))
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as err:
        raise _wrong("JSON", str(err)) from None
    if not isinstance(fields, dict) or fields.get("format") != 1:
        raise _wrong('an object with "format": 1', text[:40])
    files = _parse_files(fields.get("files"))
    name, version, counter = fields.get("name"), fields.get("version"), fields.get("counter")
    if not is_name(name) or not is_version(version):
        raise _wrong("a name and a version", (name, version))
    if type(counter) is not int or not _is_count(counter, 2**53):
        raise _wrong("a counter of 0 to 2**53", counter)
    root = fields.get("root")
    health = _parse_health(fields.get("health", {}))
    return Release(str(name), str(version), counter, str(root), files, text, health)


def make_release(
    name: str, version: str, counter: int, files: Mapping[str, FileEntry], health: Health
) -> Release:
    """Return the release of ``files``; its text is canonical.

    Raises:
        ReleaseFormatError: a value that ``parse_release`` would refuse.
    """
    suite: dict[str, Any] = {
        "prompts": [list(prompt) for prompt in health.prompts],
        "logits_sha256": list(health.logits_sha256),
    }
    if health.examples:
        suite["examples"] = [
            {"prompt": each.prompt, each.kind: each.expected, "max_tokens": each.max_tokens}
            for each in health.examples
        ]
    fields = {
        "format": 1,
        "name": name,
        "version": version,
        "counter": counter,
        "files": {
            path: {"bytes": files[path].n_bytes, "sha256": files[path].sha256}
            for path in sorted(files)
        },
        "root": root_of(files),
        "health": suite,
    }
    return parse_release(json.dumps(fields, indent=1).encode() + b"\n")


def _parse_health(table: Any) -> Health:
    if not isinstance(table, dict):
        raise _wrong("an object as health", table)
    prompts, hashes = table.get("prompts", []), table.get("logits_sha256", [])
    if not isinstance(prompts, list) or not isinstance(hashes, list):
        raise _wrong("lists in health", table)
    if len(prompts) != len(hashes) or len(prompts) > MAX_HEALTH_PROMPTS:
        raise _wrong(f"at most {MAX_HEALTH_PROMPTS} prompts and a hash for each", len(hashes))
    if not all(is_sha256(sha256) for sha256 in hashes):
        raise _wrong("SHA-256s of logits", hashes)
    for prompt in prompts:
        if not isinstance(prompt, list) or not 0 < len(prompt) <= MAX_PROMPT_TOKENS:
            raise _wrong(f"prompts of 1 to {MAX_PROMPT_TOKENS} tokens", prompt)
        if not all(type(token) is int and _is_count(token, 2**31) for token in prompt):
            raise _wrong("token ids", prompt)
    examples = parse_examples(table.get("examples", []))
    return Health(tuple(map(tuple, prompts)), tuple(hashes), examples)


def parse_examples(table: Any) -> tuple[Example, ...]:
    """Read the examples of a release.

    Raises:
        ReleaseFormatError: they are too many or too long, or one has not exactly one expectation.
    """
    if not isinstance(table, list) or len(table) > MAX_EXAMPLES:
        raise _wrong(f"a list of at most {MAX_EXAMPLES} examples", table)
    return tuple(map(_parse_example, table))


def _parse_example(entry: Any) -> Example:
    kinds = [kind for kind in EXAMPLE_KINDS if isinstance(entry, dict) and kind in entry]
    if len(kinds) != 1 or not set(entry) <= {"prompt", "max_tokens", kinds[0]}:
        raise _wrong(f"an example with prompt, max_tokens and one of {EXAMPLE_KINDS}", entry)
    kind = kinds[0]
    prompt, expected = entry.get("prompt"), entry[kind]
    for text in (prompt, expected):
        if not isinstance(text, str) or not 0 < len(text) <= MAX_EXAMPLE_CHARS:
            raise _wrong(f"a prompt and an answer of 1 to {MAX_EXAMPLE_CHARS} characters", text)
    if kind == "json":
        try:
            json.loads(expected)
        except (ValueError, RecursionError):
            raise _wrong("JSON as the expected answer of a json example", expected) from None
    max_tokens = entry.get("max_tokens", MAX_EXAMPLE_TOKENS)
    if not _is_count(max_tokens, MAX_EXAMPLE_TOKENS) or max_tokens == 0:
        raise _wrong(f"max_tokens of 1 to {MAX_EXAMPLE_TOKENS}", max_tokens)
    return Example(prompt, kind, expected, max_tokens)


def _parse_files(table: Any) -> dict[str, FileEntry]:
    if not isinstance(table, dict) or not 0 < len(table) <= MAX_FILES:
        raise _wrong(f"1 to {MAX_FILES} files", type(table).__name__)
    files = {}
    for path, entry in table.items():
        if not _FILE_NAME.fullmatch(path) or path == RELEASE_FILE:
            raise _wrong("plain file names without directories", path)
        if not isinstance(entry, dict) or not is_sha256(entry.get("sha256")):
            raise _wrong(f"a sha256 for {path}", entry)
        if not _is_count(entry.get("bytes"), MAX_FILE_BYTES):
            raise _wrong(f"the length of {path}", entry.get("bytes"))
        files[path] = FileEntry(entry["bytes"], entry["sha256"])
    return files


def _is_count(value: object, limit: int) -> bool:
    return type(value) is int and 0 <= value <= limit


def _wrong(expected: str, got: object) -> ReleaseFormatError:
    return ReleaseFormatError(f"{RELEASE_FILE}: expected {expected}, got {str(got)[:80]!r}")
