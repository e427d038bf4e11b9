"""What is signed today: python-tuf's client over our sources.

The bootstrap root comes with the device and is given to every ``Updater``, so a damaged cache heals
and a replaced one is not believed.  ``download_target`` of python-tuf is never used: it is not
resumable and not synced (``ota.device.download`` is).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuf.api.exceptions import (
    DownloadError,
    DownloadHTTPError,
    ExpiredMetadataError,
    RepositoryError,
)
from tuf.ngclient.fetcher import FetcherInterface
from tuf.ngclient.updater import Updater

from ota.device.source import Source
from ota.errors import (
    ExpiredMetadata,
    ObjectMissing,
    TransportError,
    UntrustedMetadata,
    UpdateError,
)
from ota.storage import Storage, typed_errors
from ota.wire import CHUNK_BYTES

NOT_FOUND = 404


@dataclass(frozen=True, slots=True)
class Target:
    """A signed target: what its bytes must be, and what is said about them."""

    name: str
    length: int
    sha256: str
    custom: Any


class TufClient:
    """Refreshes the metadata below ``directory`` and answers what is signed."""

    def __init__(
        self, source: Source, storage: Storage, directory: Path, bootstrap_root: bytes
    ) -> None:
        self._source = source
        self._storage = storage
        self._directory = directory
        self._bootstrap_root = bootstrap_root
        self._updater: Updater | None = None

    def refresh(self) -> None:
        """Bring the metadata up to date.

        Raises:
            UntrustedMetadata, ExpiredMetadata: what the source has must not be believed.
            TransportError: the source cannot be reached.
            StorageError: the metadata cannot be kept.
        """
        self._storage.make_directory(self._directory)
        try:
            with typed_errors(self._directory):
                self._updater = Updater(
                    metadata_dir=str(self._directory),
                    metadata_base_url="metadata/",
                    fetcher=_Fetcher(self._source),
                    bootstrap=self._bootstrap_root,
                )
                self._updater.refresh()
        except (DownloadError, RepositoryError) as err:
            raise _translated(err) from err
        self._storage.sync_tree(self._directory)

    def target(self, name: str) -> Target | None:
        """Return the signed target ``name``, or None if there is none."""
        if self._updater is None:
            raise RuntimeError("target() before refresh()")
        try:
            info = self._updater.get_targetinfo(name)
        except (DownloadError, RepositoryError) as err:
            raise _translated(err) from err
        if info is None:
            return None
        sha256 = info.hashes.get("sha256")
        if sha256 is None:
            raise UntrustedMetadata(f"{name}: expected a sha256 hash, got {sorted(info.hashes)}")
        return Target(name, info.length, sha256, info.custom)


class _Fetcher(FetcherInterface):
    """Feeds python-tuf from a source; "there is no newer root" must be an HTTP 404 to it."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def _fetch(self, url: str) -> Iterator[bytes]:
        offset = 0
        while True:
            try:
                piece = self._source.fetch(url, offset, CHUNK_BYTES)
            except ObjectMissing as err:
                raise DownloadHTTPError(str(err), NOT_FOUND) from err
            except UpdateError as err:
                raise DownloadError(str(err)) from err
            yield piece.data
            offset += len(piece.data)
            if offset >= piece.total:
                return
            if not piece.data:
                raise DownloadError(f"{url}: the source sent nothing at {offset} of {piece.total}")


def _translated(err: Exception) -> UpdateError:
    """Return the error of ours that says what ``err`` means here."""
    cause = err.__cause__
    if isinstance(cause, UpdateError) and not isinstance(cause, ObjectMissing):
        return cause
    if isinstance(err, ExpiredMetadataError):
        return ExpiredMetadata(f"metadata: {err}; run `edgeota publish`, or set this clock")
    if isinstance(err, RepositoryError):
        return UntrustedMetadata(f"metadata: {err}; the installed model stays")
    return TransportError(f"metadata: {err}")
