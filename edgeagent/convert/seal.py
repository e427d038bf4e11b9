"""Give a model directory its `release.json`: name, version, hashes and health suite."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from edgeagent.errors import ModelError
from edgeagent.model.generation import LoadedModel
from ota.release import RELEASE_FILE, Example, FileEntry, Health, Release, make_release

#: Texts whose exact logits make the health suite; short, so that a trial costs milliseconds.
HEALTH_TEXTS = (
    "Once upon a time there was a little dog.",
    "turn on the kitchen lights",
    '0123456789 {}[]",: ~ The end',
)


def hash_files(path: Path) -> dict[str, FileEntry]:
    """Size and SHA-256 of every file of a model directory but `release.json`."""
    files = {}
    for file in sorted(path.iterdir()):
        if file.name != RELEASE_FILE:
            with file.open("rb") as data:
                digest = hashlib.file_digest(data, "sha256").hexdigest()
            files[file.name] = FileEntry(file.stat().st_size, digest)
    return files


def seal(
    path: Path,
    *,
    name: str,
    version: str,
    counter: int,
    texts: Sequence[str] = HEALTH_TEXTS,
    examples: Sequence[Example] = (),
) -> Release:
    """Write `release.json` into `path`, then load the model and add the logits of `texts`.

    Raises:
        ModelError: the directory does not load, or an answer is not as its example says.
    """
    files = hash_files(path)
    release = make_release(name, version, counter, files, Health())
    (path / RELEASE_FILE).write_bytes(release.text)
    model = LoadedModel(path, comparison=True)
    limit = model.session.context - 1
    prompts = tuple(tuple(model.tokenizer.encode_prompt(text)[:limit]) for text in texts)
    hashes = tuple(model.logits_sha256(prompt) for prompt in prompts)
    health = Health(prompts, hashes, tuple(examples))
    wrong = [
        check for check in model.check_health(Health(examples=tuple(examples))) if not check["ok"]
    ]
    if wrong:
        raise ModelError(f"{path}: {wrong[0]['name']}: {wrong[0]['detail']}")
    release = make_release(name, version, counter, files, health)
    (path / RELEASE_FILE).write_bytes(release.text)
    return release
