"""A ``release.json`` without the hashes that its reader works out: what most of a small delta was.

A **hollow** text is a ``release.json`` in which the hash of every file that the delta makes, and
the root, are those of the base.  Beside the base's own ``release.json`` as a dictionary it costs
next to nothing.  The device hashes each file as it makes it, fills the hashes in, and compares the
root of the whole, which the container names and the repository signs.  A root is the hash over all
hashes, lengths and names (``ota.release.root_of``), so nothing is believed that was not before.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

from ota.errors import DeltaFormatError, PayloadMismatch
from ota.release import FileEntry, Release, parse_hollow, parse_release, root_of

UNKNOWN = ""
"""The hash of a file that is still to be made; no file of any release has it."""

_NEW_FILE = "0" * 64
_HASH = re.compile(rb'"(sha256|root)": "[0-9a-f]{64}"')


def hollow_text(result: Release, base: Release, made: Collection[str]) -> bytes | None:
    """Return ``result.text`` with the base's hashes for the files of ``made``.

    None if the text is not laid out as ``make_release`` does it, so that it could not be filled.
    """
    if not _can_fill(result.text, result):
        return None
    new_file = FileEntry(0, _NEW_FILE)
    hashes = {name: entry.sha256 for name, entry in result.files.items()}
    hollow = {name: base.files.get(name, new_file).sha256 for name in made}
    text = _filled(result.text, (hashes | hollow).values(), base.root)
    return text if _filled(text, hashes.values(), result.root) == result.text else None


def draft_of(text: bytes, root: str, made: Collection[str]) -> Release:
    """Return what is known of a release before the files of ``made`` are there.

    Raises:
        ReleaseFormatError: the text breaks a rule.
        DeltaFormatError: its hashes cannot be filled in.
    """
    release = parse_hollow(text)
    if not _can_fill(text, release):
        raise DeltaFormatError("delta: expected a hash a file, then the root, in a hollow release")
    files = {
        name: replace(entry, sha256=UNKNOWN) if name in made else entry
        for name, entry in release.files.items()
    }
    return replace(release, root=root, files=files)


def fill(draft: Release, hashes: Mapping[str, str]) -> Release:
    """Return the release whose files have the given hashes where the draft has none.

    Raises:
        PayloadMismatch: they do not make the draft's root.
    """
    files = {
        name: FileEntry(entry.n_bytes, entry.sha256 or hashes[name])
        for name, entry in draft.files.items()
    }
    if root_of(files) != draft.root:
        raise PayloadMismatch(f"expected files with the root {draft.root}, made {root_of(files)}")
    return parse_release(_filled(draft.text, (e.sha256 for e in files.values()), draft.root))


def _can_fill(text: bytes, release: Release) -> bool:
    """Say whether the text has a hash a file, and then the root, spelt as ``make_release`` does."""
    return _HASH.findall(text) == [b"sha256"] * len(release.files) + [b"root"]


def _filled(text: bytes, hashes: Iterable[str], root: str) -> bytes:
    values = iter((*hashes, root))
    return _HASH.sub(lambda found: b'"%s": "%s"' % (found[1], next(values).encode()), text)
