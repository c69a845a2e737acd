"""Inside a server: has SQLite and Python write down what they do to the files of one folder.

For machines where no process may trace another. SQLite is reached through its VFS, the table of functions
by which it does all its input and output; Python through the functions of `os` and `open`.
"""

from __future__ import annotations

import base64
import builtins
import ctypes
import io
import json
import os
import sqlite3  # loads the library that is looked into below
import time
from collections.abc import Callable
from typing import Any

_OK = sqlite3.SQLITE_OK
_CREATE = 0x00000004  # SQLITE_OPEN_CREATE
_Pointer = ctypes.c_void_p
_Int = ctypes.c_int
_OPEN = ctypes.CFUNCTYPE(_Int, _Pointer, _Pointer, _Pointer, _Int, _Pointer)  # it keeps the name's address
_DELETE = ctypes.CFUNCTYPE(_Int, _Pointer, ctypes.c_char_p, _Int)
_WRITE = ctypes.CFUNCTYPE(_Int, _Pointer, _Pointer, _Int, ctypes.c_int64)
_TRUNCATE = ctypes.CFUNCTYPE(_Int, _Pointer, ctypes.c_int64)
_SYNC = ctypes.CFUNCTYPE(_Int, _Pointer, _Int)
_OPEN_FOLDER = ctypes.CFUNCTYPE(_Int, ctypes.c_char_p, _Pointer)
_GET_CALL = ctypes.CFUNCTYPE(_Pointer, _Pointer, ctypes.c_char_p)
_SET_CALL = ctypes.CFUNCTYPE(_Int, _Pointer, ctypes.c_char_p, _Pointer)


class _Vfs(ctypes.Structure):
    """sqlite3_vfs, version 3 (https://sqlite.org/c3ref/vfs.html)."""

    _fields_ = [
        *((name, _Int) for name in ("version", "file_size", "longest_path")),
        *((name, _Pointer) for name in ("next", "name", "application", "open", "delete")),
        *((name, _Pointer) for name in ("access", "full_path", "dl_open", "dl_error", "dl_symbol")),
        *((name, _Pointer) for name in ("dl_close", "random", "sleep", "now", "last_error")),
        *((name, _Pointer) for name in ("now_64", "set_call", "get_call", "next_call")),
    ]


_METHODS = ctypes.c_void_p * 19  # sqlite3_io_methods, version 3; the first one is the version
_WRITE_AT, _TRUNCATE_AT, _SYNC_AT = 3, 4, 5


class _Log:
    def __init__(self, root: str, path: str) -> None:
        self._root = root + "/"
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._write = os.write

    def is_ours(self, path: str) -> bool:
        return (path + "/").startswith(self._root) and not path.endswith("-shm")

    def add(self, kind: str, path: str, offset: int = 0, data: bytes = b"", target: str = "") -> None:
        if kind == "answer" or self.is_ours(path):
            fields = [time.time(), kind, path, offset, base64.b64encode(data).decode(), target]
            self._write(self._file, json.dumps(fields).encode() + b"\n")


_installed: list[_SqliteLayer] = []  # C calls into it: it must never be collected


def install(root: str, path: str) -> None:
    """Record from now on what happens below `root`, in the file at `path`."""
    log = _Log(root, path)
    _installed.append(_SqliteLayer(log))
    _installed[-1].install()
    _PythonLayer(log).install()


class _SqliteLayer:
    """Stands between SQLite and its default VFS."""

    def __init__(self, log: _Log) -> None:
        self._log = log
        self._paths: dict[int, str] = {}  # by the address of the open file
        self._kept: list[Any] = []  # what C was given the address of
        self._methods: dict[int, Any] = {}  # ours, by the address of SQLite's own

    def install(self) -> None:
        library = ctypes.CDLL(getattr(__import__("_sqlite3"), "__file__", None))
        library.sqlite3_vfs_find.restype = ctypes.POINTER(_Vfs)
        address = library.sqlite3_vfs_find(None)
        vfs = address.contents
        self._true_open, self._true_delete = _OPEN(vfs.open), _DELETE(vfs.delete)
        vfs.open = self._callback(_OPEN, self._open)
        vfs.delete = self._callback(_DELETE, self._delete)
        # SQLite opens a folder only to sync it, inside of a file's sync or delete.
        self._true_open_folder = _OPEN_FOLDER(_GET_CALL(vfs.get_call)(address_of(address), b"openDirectory"))
        opened = self._callback(_OPEN_FOLDER, self._open_folder)
        assert _SET_CALL(vfs.set_call)(address_of(address), b"openDirectory", opened) == _OK

    def _callback(self, kind: Any, function: Callable[..., int]) -> int:
        self._kept.append(kind(function))
        return ctypes.cast(self._kept[-1], _Pointer).value or 0

    def _open(self, vfs: int, name: int | None, file: int, flags: int, given: int | None) -> int:
        path = os.fsdecode(ctypes.string_at(name)) if name else ""
        result = self._true_open(vfs, name, file, flags, given)
        if result == _OK and self._log.is_ours(path):
            if flags & _CREATE:
                self._log.add("create", path)
            self._paths[file] = path
            own = ctypes.c_void_p.from_address(file)
            own.value = ctypes.addressof(self._recorded(own.value or 0))
        return int(result)

    def _recorded(self, own: int) -> Any:
        """Return SQLite's methods of a file with those that write replaced by ours."""
        if own not in self._methods:
            methods = self._methods[own] = _METHODS.from_buffer_copy(_METHODS.from_address(own))
            write = _WRITE(methods[_WRITE_AT] or 0)
            truncate = _TRUNCATE(methods[_TRUNCATE_AT] or 0)
            sync = _SYNC(methods[_SYNC_AT] or 0)

            def recorded_write(file: int, data: int, length: int, offset: int) -> int:
                result = int(write(file, data, length, offset))
                if result == _OK:
                    self._log.add("write", self._paths[file], offset, ctypes.string_at(data, length))
                return result

            def recorded_truncate(file: int, size: int) -> int:
                result = int(truncate(file, size))
                if result == _OK:
                    self._log.add("resize", self._paths[file], size)
                return result

            def recorded_sync(file: int, flags: int) -> int:
                self._log.add("sync", self._paths[file])  # before the folder's, which is part of it
                return int(sync(file, flags))

            methods[_WRITE_AT] = self._callback(_WRITE, recorded_write)
            methods[_TRUNCATE_AT] = self._callback(_TRUNCATE, recorded_truncate)
            methods[_SYNC_AT] = self._callback(_SYNC, recorded_sync)
        return self._methods[own]

    def _delete(self, vfs: int, name: bytes, is_synced: int) -> int:
        if os.path.exists(name):
            self._log.add("remove", os.fsdecode(name))  # before the folder's sync, which is part of it
        return int(self._true_delete(vfs, name, is_synced))

    def _open_folder(self, name: bytes, file: int) -> int:
        result = int(self._true_open_folder(name, file))
        if result == _OK:
            path = os.fsdecode(name)
            self._log.add("sync", path if os.path.isdir(path) else os.path.dirname(path))
        return result


def address_of(pointer: Any) -> int:
    """Return where a ctypes pointer points to."""
    return ctypes.cast(pointer, _Pointer).value or 0


class _PythonLayer:
    """Stands between Python code and the functions that change files."""

    def __init__(self, log: _Log) -> None:
        self._log = log

    def install(self) -> None:
        self._wrap("open", self._opened)
        self._wrap("write", self._written)
        self._wrap("pwrite", self._written_at)
        for name in ("fsync", "fdatasync"):
            self._wrap(name, lambda result, file: self._log.add("sync", _path_of(file)))
        for name in ("rename", "replace"):
            self._wrap(name, lambda result, old, new: self._log.add("rename", str(old), target=str(new)))
        for name in ("unlink", "remove", "rmdir"):
            self._wrap(name, lambda result, path: self._log.add("remove", str(path)))
        self._wrap("mkdir", lambda result, path, *_: self._log.add("make folder", str(path)))
        self._wrap("ftruncate", lambda result, file, size: self._log.add("resize", _path_of(file), size))
        for name in ("link", "symlink", "truncate", "writev", "pwritev", "sendfile"):
            self._wrap(name, self._refuse)
        self._true_open = builtins.open
        setattr(builtins, "open", self._open)  # noqa: B010 (mypy minds the assignment)

    def _wrap(self, name: str, record: Callable[..., None]) -> None:
        """Have `record` told what a function of `os` returned and was given."""
        function = getattr(os, name)

        def recorded(*arguments: Any, **options: Any) -> Any:
            result = function(*arguments, **options)
            record(result, *arguments)
            return result

        setattr(os, name, recorded)

    def _opened(self, file: int, path: Any, flags: int, *_: int) -> None:
        if flags & os.O_CREAT:
            self._log.add("create", str(path))
        if flags & os.O_TRUNC:
            self._log.add("resize", str(path))

    def _written(self, count: int, file: int, data: Any) -> None:
        path = _path_of(file)
        if path.startswith(("pipe:", "socket:")):
            self._log.add("answer", "", data=bytes(data[:count]))
        elif self._log.is_ours(path):
            self._log.add("write", path, os.lseek(file, 0, os.SEEK_CUR) - count, bytes(data[:count]))

    def _written_at(self, count: int, file: int, data: Any, offset: int) -> None:
        self._log.add("write", _path_of(file), offset, bytes(data[:count]))

    def _refuse(self, result: Any, *arguments: Any) -> None:
        paths = [_path_of(one) if isinstance(one, int) else str(one) for one in arguments]
        assert not any(map(self._log.is_ours, paths)), f"not simulated: {paths}"

    def _open(self, file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        path = _path_of(file) if isinstance(file, int) else os.path.abspath(os.fsdecode(file))
        if mode.strip("bt") == "r" or not self._log.is_ours(path):
            return self._true_open(file, mode, *arguments, **options)
        assert mode == "wb", f"not simulated: open of {path} for '{mode}'"
        if not isinstance(file, int):
            self._log.add("create", path)
            self._log.add("resize", path)
        return io.BufferedWriter(_RecordedFile(file, path, self._log))


class _RecordedFile(io.FileIO):
    def __init__(self, file: Any, path: str, log: _Log) -> None:
        super().__init__(file, "wb")
        self._path, self._log = path, log

    def write(self, data: Any) -> int:
        offset = self.tell()
        count = super().write(data)
        self._log.add("write", self._path, offset, bytes(data)[:count])
        return count


def _path_of(file: int) -> str:
    return os.readlink(f"/proc/self/fd/{file}")
