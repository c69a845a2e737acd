"""Opening a file that an agent names, without becoming its confused deputy.

A model can be talked into naming any path, so a path is followed only to a regular file inside an
allowed folder, and never to a file that belongs to the store: opening and closing the database would
drop SQLite's locks, and an artifact inside the artifacts folder would be the store reading itself.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from config import ARTIFACT_BYTES, KIB
from errors import InvalidArguments, NotFound, TooLarge

_INSTEAD = "Send the text itself as `content` instead."


def open_attachable(path: str, roots: tuple[str, ...], own_folder: str, own_files: Iterable[str]) -> BinaryIO:
    """Open the file at `path`, relative to the working directory, for reading.

    `roots` are the allowed folders; `own_folder` and `own_files` are the store's and off limits.
    Raises InvalidArguments, NotFound or TooLarge.
    """
    if not roots:
        raise InvalidArguments("Files cannot be attached by path on this connection.", _INSTEAD)
    real = os.path.realpath(path)
    if not any(_is_inside(real, root) for root in roots):
        raise InvalidArguments(
            f"The path '{path}' is outside the folders that files may be attached from.",
            f"Attach a file inside of them: {', '.join(roots)}. {_INSTEAD}",
        )
    facts = _regular_file(real, path)
    if _is_inside(real, os.path.realpath(own_folder)) or _is_same_file(facts, own_files):
        raise InvalidArguments(
            f"The path '{path}' is part of this server's own storage.",
            "Artifacts that are stored already are read with get_task and `artifact`.",
        )
    if facts.st_size > ARTIFACT_BYTES:
        raise TooLarge(
            f"The file '{path}' has {facts.st_size} bytes; the limit is {ARTIFACT_BYTES}.",
            "Attach the part that matters, or compress the file first.",
        )
    return _open_unchanged(real, path, facts)


def chunks_of(file: BinaryIO) -> Iterator[bytes]:
    """Yield the file's bytes in pieces of a size that memory does not notice."""
    while chunk := file.read(256 * KIB):
        yield chunk


def _is_inside(path: str, folder: str) -> bool:
    try:
        return os.path.commonpath([path, folder]) == folder
    except ValueError:  # on another drive
        return False


def _regular_file(real: str, path: str) -> os.stat_result:
    try:
        facts = os.stat(real, follow_symlinks=False)
    except (OSError, ValueError):
        raise NotFound(f"There is no file '{path}'.", "Check the path, then call again.") from None
    if not stat.S_ISREG(facts.st_mode):
        raise InvalidArguments(f"'{path}' is not a regular file.", "Attach a file, not a folder.")
    return facts


def _is_same_file(facts: os.stat_result, others: Iterable[str]) -> bool:
    """Compare by device and inode, from stat alone: a hard link to the database is the database."""
    for other in others:
        try:
            if os.path.samestat(facts, os.stat(other)):
                return True
        except OSError:
            continue
    return False


def _open_unchanged(real: str, path: str, facts: os.stat_result) -> BinaryIO:
    """Open without following a link or waiting on a pipe that took the file's place meanwhile."""
    flags = os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        descriptor = os.open(real, flags)
    except OSError as error:
        raise InvalidArguments(f"The file '{path}' cannot be read: {error.strerror}.", _INSTEAD) from None
    if not os.path.samestat(facts, os.fstat(descriptor)):
        os.close(descriptor)
        raise InvalidArguments(f"The file '{path}' changed meanwhile.", "Call again.")
    return open(descriptor, "rb")
