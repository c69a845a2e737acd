"""The files of artifacts: made durable before anybody hears of them, named by their content.

A file is called after the SHA-256 of its bytes, so the same content is stored once, a repeated call adds
nothing, and what a caller named a file never touches the disk. Order of work:
temporary file, fsync, rename, fsync of the folder; only then may a row refer to it. A crash can leave a
file without a row, never a row without its file.
"""

from __future__ import annotations

import codecs
import hashlib
import os
import re
import stat
import time
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from config import ARTIFACT_BYTES
from errors import StorageError, TooLarge


class KeptFile(NamedTuple):
    """A file that is safely on disk: its hash (hex), its size in bytes, and whether it is UTF-8."""

    sha256: str
    size: int
    is_text: bool


class Unsound(Exception):
    """An artifact's file is not what it is recorded to be; the text says what is wrong."""


_OWN_NAME = re.compile(r"[0-9a-f]{64}|\.incoming-[0-9a-f]+")
_CHUNK_BYTES = 1 << 20


class ArtifactFiles:
    """One folder of artifact files, shared by all processes on the same database."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def keep(self, chunks: Iterable[bytes]) -> KeptFile:
        """Store the bytes of `chunks`; on return they survive a power loss.

        Raises TooLarge over ARTIFACT_BYTES and StorageError when the disk refuses; either leaves no file.
        """
        temporary = os.path.join(self._folder, ".incoming-" + os.urandom(8).hex())
        try:
            kept = self._write(temporary, chunks)
            os.rename(temporary, self._path(kept.sha256))
            sync_folder(self._folder)
        except BaseException as error:
            _remove(temporary)
            if isinstance(error, OSError):
                raise StorageError(
                    f"The artifact could not be stored: {error.strerror}.",
                    "Nothing was attached. Tell the user that the artifacts folder needs attention "
                    "(free space, permissions), then repeat the call.",
                ) from error
            raise
        return kept

    def read(self, sha256: str, offset: int, length: int) -> bytes:
        """Return up to `length` bytes from `offset`; raises StorageError if the file is not there."""
        try:
            with open(self._path(sha256), "rb") as file:
                file.seek(offset)
                return file.read(length)
        except OSError as error:
            raise StorageError(
                f"The artifact's file cannot be read: {error.strerror}.",
                "Tell the user that a file is missing from the artifacts folder.",
            ) from error

    def sound_bytes(self, sha256: str, size: int) -> Iterator[bytes]:
        """Yield the bytes of a file, piece by piece; raises Unsound where they are not what was stored."""
        if not _OWN_NAME.fullmatch(sha256):
            raise Unsound("no file has such a name")
        digest = hashlib.sha256()
        try:
            found = os.stat(self._path(sha256))
            if not stat.S_ISREG(found.st_mode) or found.st_size != size:
                raise Unsound(f"its file has {found.st_size} bytes and not {size}")
            with open(self._path(sha256), "rb") as file:
                while chunk := file.read(_CHUNK_BYTES):
                    digest.update(chunk)
                    yield chunk
        except OSError as error:
            raise Unsound(f"its file cannot be read: {error.strerror}") from error
        if digest.hexdigest() != sha256:
            raise Unsound("its file does not have the SHA-256 that it is named after")

    def names(self, age: float) -> set[str]:
        """Return the names of the files that have not changed for `age` seconds, unfinished ones included.

        Raises OSError if the folder cannot be read; one that is not there holds nothing.
        """
        latest = time.time() - age
        try:
            with os.scandir(self._folder) as entries:
                return {
                    entry.name
                    for entry in entries
                    if _OWN_NAME.fullmatch(entry.name) and entry.stat().st_mtime < latest
                }
        except FileNotFoundError:
            return set()

    def _path(self, sha256: str) -> str:
        return os.path.join(self._folder, sha256)

    def _write(self, path: str, chunks: Iterable[bytes]) -> KeptFile:
        digest = hashlib.sha256()
        text = _TextTest()
        size = 0
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb") as file:
            for chunk in chunks:
                size += len(chunk)
                if size > ARTIFACT_BYTES:
                    raise TooLarge(
                        f"The artifact is larger than {ARTIFACT_BYTES} bytes.",
                        "Attach the part that matters, or compress the file first.",
                    )
                digest.update(chunk)
                text.feed(chunk)
                file.write(chunk)
            file.flush()
            os.fsync(descriptor)
        return KeptFile(digest.hexdigest(), size, text.passed())


class _TextTest:
    """Whether bytes that come in pieces are UTF-8 without NUL: what can be shown as text."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._is_text = True

    def feed(self, chunk: bytes, final: bool = False) -> None:
        if not self._is_text:
            return
        try:
            self._is_text = "\0" not in self._decoder.decode(chunk, final)
        except UnicodeDecodeError:
            self._is_text = False

    def passed(self) -> bool:
        self.feed(b"", final=True)
        return self._is_text


def sync_folder(path: str) -> None:
    """Make the names in a folder durable."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass  # it was never made, or it has its final name already
