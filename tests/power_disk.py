"""A disk that loses power: what it was told to do, what it has promised, and what it may hold afterwards.

Between two syncs a file's sectors (512 bytes) reach the disk one by one, in any order or never; so does its
size, and so does each entry of a folder. A sector is never torn itself, and what was written to it since the
last sync is there in one of its versions. A sync of a file makes its bytes and its size durable, not the
entry that leads to it; that takes a sync of the folder. This is what POSIX leaves open, not what any one
filesystem does.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import NamedTuple

SECTOR = 512
_GARBAGE = b"\xa5" * SECTOR  # what a new sector may hold before anything was written to it


class Kind(StrEnum):
    """What an operation does."""

    CREATE = "create"
    MAKE_FOLDER = "make folder"
    WRITE = "write"
    RESIZE = "resize"
    SYNC = "sync"
    RENAME = "rename"
    REMOVE = "remove"
    ANSWER = "answer"  # not of the disk: bytes that a client got


class Operation(NamedTuple):
    """One thing a server did. `offset` is the new size of a RESIZE; `target` the new name of a RENAME."""

    kind: Kind
    path: str
    offset: int = 0
    data: bytes = b""
    target: str = ""

    def __str__(self) -> str:
        extent = f" {len(self.data)} bytes at {self.offset}" if self.kind is Kind.WRITE else ""
        return f"{self.kind} {self.path}{extent}{self.target and ' to ' + self.target}"


class Part(NamedTuple):
    """Something that was not synced: one sector of a file, a file's size, or one change of a folder."""

    path: str
    what: str  # "sector", "size" or "entry"
    number: int

    def __str__(self) -> str:
        return f"{self.what} {self.number} of '{self.path}'"


Choice = Callable[[Part, int], int]  # a part, how many versions it has, oldest first -> which one is there
State = dict[str, bytes | None]  # paths below the root -> a file's content, or None for a folder


class Outcome(NamedTuple):
    """One way in which the power can fail."""

    name: str
    choose: Choice


class _File:
    """A file's bytes as programs see them, and the versions that each unsynced part may turn out to have."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._sizes = [0]
        self._sectors: dict[int, list[bytes]] = {}

    def write(self, offset: int, data: bytes) -> None:
        end = offset + len(data)
        if end > len(self._bytes):
            self.resize(end)
        numbers = self._note(offset, end)
        self._bytes[offset:end] = data
        for number in numbers:
            self._sectors[number].append(self._sector(number))

    def resize(self, size: int) -> None:
        old = len(self._bytes)
        if size == old:
            return
        self._sizes.append(size)
        numbers = self._note(min(size, old), max(size, old))
        del self._bytes[size:]
        self._bytes.extend(bytes(size - len(self._bytes)))
        if size > old:
            for number in numbers:
                is_new = number * SECTOR >= old
                self._sectors[number] += [_GARBAGE] * is_new + [self._sector(number)]

    def sync(self) -> None:
        self._sizes = [len(self._bytes)]
        self._sectors.clear()

    def unsynced(self, path: str) -> list[Part]:
        sizes = [Part(path, "size", 0)] if len(self._sizes) > 1 else []
        return sizes + [Part(path, "sector", number) for number in sorted(self._sectors)]

    def content(self, path: str, choose: Choice) -> bytes:
        content = self._bytes.copy()
        size = self._sizes[-1]
        if len(self._sizes) > 1:
            size = self._sizes[choose(Part(path, "size", 0), len(self._sizes))]
        content.extend(bytes(max(0, size - len(content))))
        for number, versions in sorted(self._sectors.items()):
            start = number * SECTOR
            if start < size:
                kept = versions[choose(Part(path, "sector", number), len(versions))]
                content[start : start + SECTOR] = kept
        return bytes(content[:size])

    def _note(self, start: int, end: int) -> range:
        """Keep what is in the sectors from byte `start` to `end`, which are about to change."""
        numbers = range(start // SECTOR, -(-end // SECTOR))
        for number in numbers:
            self._sectors.setdefault(number, [self._sector(number)])
        return numbers

    def _sector(self, number: int) -> bytes:
        return bytes(self._bytes[number * SECTOR : (number + 1) * SECTOR]).ljust(SECTOR, b"\0")


class _Folder:
    """A folder's entries as programs see them, those that are durable, and the changes between the two."""

    def __init__(self) -> None:
        self.entries: dict[str, _File | _Folder] = {}
        self._durable: dict[str, _File | _Folder] = {}
        self._changes: list[dict[str, _File | _Folder | None]] = []

    def change(self, entries: dict[str, _File | _Folder | None]) -> None:
        """Enter names, or drop those that are None: all of them at once, or none."""
        _apply(self.entries, entries)
        self._changes.append(entries)

    def sync(self) -> None:
        self._durable = self.entries.copy()
        self._changes.clear()

    def unsynced(self, path: str) -> list[Part]:
        return [Part(path, "entry", number) for number in range(len(self._changes))]

    def after_loss(self, path: str, choose: Choice) -> dict[str, _File | _Folder]:
        found = self._durable.copy()
        for number, entries in enumerate(self._changes):
            if choose(Part(path, "entry", number), 2):
                _apply(found, entries)
        return found


def _apply(entries: dict[str, _File | _Folder], changes: dict[str, _File | _Folder | None]) -> None:
    for name, node in changes.items():
        if node is None:
            entries.pop(name, None)
        else:
            entries[name] = node


class Disk:
    """All below one folder that was durable before the first operation, and empty."""

    def __init__(self, root: str) -> None:
        self._root_path = root
        self._root = _Folder()

    def apply(self, operation: Operation) -> None:
        """Do what the server did. A failed operation was not recorded, so none of these can fail."""
        kind, path, offset, data, target = operation
        if kind is Kind.ANSWER:
            return
        if kind is Kind.SYNC:
            self._node(path).sync()
        elif kind is Kind.WRITE:
            self._file(path).write(offset, data)
        elif kind is Kind.RESIZE:
            self._file(path).resize(offset)
        elif kind is Kind.RENAME:
            self._rename(path, target)
        else:
            self._enter(kind, path)

    def unsynced(self) -> list[Part]:
        """Return all that a loss of power may undo at this moment."""
        return [part for path, node in self._nodes() for part in node.unsynced(path)]

    def after_loss(self, choose: Choice) -> State:
        """Return what is there once the power is back."""
        state: State = {}
        folders = [("", self._root)]
        for path, folder in folders:  # grows while it is gone through
            for name, node in sorted(folder.after_loss(path, choose).items()):
                below = os.path.join(path, name)
                if isinstance(node, _Folder):
                    folders.append((below, node))
                state[below] = None if isinstance(node, _Folder) else node.content(below, choose)
        return state

    def _enter(self, kind: Kind, path: str) -> None:
        folder, name = self._place(path)
        made: dict[Kind, _File | _Folder] = {Kind.CREATE: _File(), Kind.MAKE_FOLDER: _Folder()}
        if (name in folder.entries) == (kind is Kind.REMOVE):  # else it was there, or gone, before
            folder.change({name: made.get(kind)})

    def _rename(self, path: str, target: str) -> None:
        (source, old), (folder, new) = self._place(path), self._place(target)
        node = source.entries[old]
        if source is folder:
            folder.change({old: None, new: node})
        else:
            folder.change({new: node})
            source.change({old: None})

    def _nodes(self) -> Iterator[tuple[str, _File | _Folder]]:
        found: list[tuple[str, _File | _Folder]] = [("", self._root)]
        for path, node in found:  # grows while it is gone through
            yield path, node
            if isinstance(node, _Folder):
                found += ((os.path.join(path, name), entry) for name, entry in sorted(node.entries.items()))

    def _place(self, path: str) -> tuple[_Folder, str]:
        folder = self._node(os.path.dirname(path))
        assert isinstance(folder, _Folder), path
        return folder, os.path.basename(path)

    def _file(self, path: str) -> _File:
        node = self._node(path)
        assert isinstance(node, _File), path
        return node

    def _node(self, path: str) -> _File | _Folder:
        node: _File | _Folder = self._root
        relative = os.path.relpath(path, self._root_path)
        for name in [] if relative == "." else relative.split(os.sep):
            assert isinstance(node, _Folder), path
            node = node.entries[name]
        return node


def outcomes(disk: Disk, chance: random.Random, samples: int) -> Iterator[Outcome]:
    """Yield ways in which the power can fail now: the extreme ones, and `samples` of each random sort."""
    yield Outcome("all is kept", lambda part, count: count - 1)
    parts = disk.unsynced()
    if not parts:
        return
    yield Outcome("all is lost", lambda part, count: 0)
    yield Outcome("entries are lost", lambda part, count: 0 if part.what == "entry" else count - 1)
    yield Outcome("only entries are kept", lambda part, count: count - 1 if part.what == "entry" else 0)
    for path in sorted({part.path for part in parts}):
        yield Outcome(f"only '{path}' is kept", _if(lambda part, path=path: part.path == path))  # type: ignore[misc]
        yield Outcome(f"only '{path}' is lost", _if(lambda part, path=path: part.path != path))  # type: ignore[misc]
    for part in chance.sample(parts, min(samples, len(parts))):
        yield Outcome(f"only {part} is lost", _if(lambda one, part=part: one != part))  # type: ignore[misc]
        yield Outcome(f"torn at {part}", _if(lambda one, part=part: not _follows(one, part)))  # type: ignore[misc]
    for _ in range(samples):
        seed = chance.getrandbits(32)
        yield Outcome(f"random {seed}", _at_random(seed))


def _follows(one: Part, part: Part) -> bool:
    """Return whether it comes after `part`, or is it, where parts of the same sort go in order."""
    return one[:2] == part[:2] and one.number >= part.number


def _if(is_kept: Callable[[Part], bool]) -> Choice:
    return lambda part, count: count - 1 if is_kept(part) else 0


def _at_random(seed: int) -> Choice:
    """Keep the latest version of a part with a probability that differs from loss to loss, else any."""
    chance = random.Random(seed)
    kept = chance.choice((0.1, 0.5, 0.9))
    return lambda part, count: count - 1 if chance.random() < kept else chance.randrange(count)
