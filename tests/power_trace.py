"""What a server does to its files and tells its client, in order: recorded by strace, or by itself.

Both recorders are preludes of the server's process. strace is the witness that cannot be mistaken; where the
kernel or the machine has none, power_layer.py has SQLite and Python write down what they are asked to do.
"""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from power_disk import Kind, Operation
from support import wait_until

Timed = tuple[float, Operation]  # seconds since the epoch: all processes have the same clock

# A question mark: not every architecture has it.
_SEEN = (
    "?open,?creat,openat,write,pwrite64,lseek,fsync,fdatasync,ftruncate,?rename,renameat,?renameat2,"
    "?unlink,unlinkat,?rmdir,?mkdir,mkdirat"
)
_UNSEEN = (
    "?openat2,writev,pwritev,?pwritev2,?truncate,fallocate,?link,linkat,?symlink,symlinkat,mmap,"
    "?copy_file_range,?sendfile,?sync_file_range,?io_uring_setup"
)
_STRACE = ["strace", "-D", "-f", "-ttt", "-y", "-xx", "-s", "100000000", "-e", f"trace={_SEEN},{_UNSEEN}"]

# -D: the server stays the process that was started, and strace is the one beside it.
_TRACED = """
import os, sys
if "POWER_TRACED" not in os.environ:
    os.environ["POWER_TRACED"] = "1"
    os.execvp("strace", [*{command!r}, "-o", {log!r}, *sys.orig_argv])
"""
_LAYERED = """
import sys
sys.path.append({tests!r})
import power_layer
power_layer.install({root!r}, {log!r})
"""


class Recorder(NamedTuple):
    """A way to record a server: a prelude for it, and how what it left behind is read."""

    name: str
    prelude: Callable[[str, Path], str]  # folder to watch, file to write
    read: Callable[[str, Path], Iterator[Timed]]


@cache
def why_no_strace() -> str:
    """Return why strace cannot be used here; empty if it can."""
    try:
        probe = [*_STRACE, "-o", "/dev/stderr", sys.executable, "-c", "import os; os.fsync(1)"]
        ran = subprocess.run(probe, capture_output=True, timeout=20)
    except (OSError, subprocess.SubprocessError) as error:
        return f"strace cannot be run: {error}"
    return "" if b"fsync(1<" in ran.stderr else f"strace cannot trace: {ran.stderr[-200:]!r}"


@cache
def why_no_layer() -> str:
    """Return why the recording layer cannot be used here; empty if it can."""
    probe = "import power_layer; power_layer.install('/nowhere', '/dev/null')"
    ran = subprocess.run(
        [sys.executable, "-c", probe], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=20
    )
    return "" if ran.returncode == 0 else f"SQLite is out of the recording layer's reach: {ran.stderr[-200:]}"


def _strace_prelude(root: str, log: Path) -> str:
    return _TRACED.format(command=_STRACE, log=str(log))


def _layer_prelude(root: str, log: Path) -> str:
    return _LAYERED.format(tests=str(Path(__file__).parent), root=root, log=str(log))


# --- The recording layer's log ------------------------------------------------------------------------


def _read_layer(root: str, log: Path) -> Iterator[Timed]:
    for line in log.read_text().splitlines():
        at, kind, path, offset, data, target = json.loads(line)
        yield at, Operation(Kind(kind), path, offset, base64.b64decode(data), target)


# --- strace's log -------------------------------------------------------------------------------------

_CALL = re.compile(r"(?P<name>\w+)\((?P<arguments>.*)\) += (?P<result>\d+|0x[0-9a-f]+)(?P<opened><.*>)?$")
_TEXT = re.compile(r'"([^"]*)"')
_OPEN_FILE = re.compile(r"(AT_FDCWD|\d+)<([^>]*)>")
_HEX = re.compile(r"\\x([0-9a-f]{2})")


def _read_strace(root: str, log: Path) -> Iterator[Timed]:
    wait_until(lambda: re.search(r"\+\+\+ (exited|killed).*\n\Z", log.read_text()), "strace ends too")
    translate = _Translator(root).translate
    for at, call in _whole_calls(log.read_text().splitlines()):
        found = _CALL.match(call)
        if found is not None:  # else it failed, or is no call
            for operation in translate(found["name"], found["arguments"], found["result"], found["opened"]):
                yield at, operation


def _whole_calls(lines: list[str]) -> Iterator[tuple[float, str]]:
    """Put together what was interrupted by other threads; a call counts from when it was made."""
    begun: dict[str, tuple[float, str]] = {}
    for line in lines:
        thread, at, call = line.split(maxsplit=2)
        if call.endswith("<unfinished ...>"):
            begun[thread] = float(at), call.removesuffix("<unfinished ...>").rstrip()
        elif call.startswith("<... ") and thread in begun:
            began, head = begun.pop(thread)
            yield began, head + call.partition("resumed>")[2]
        else:
            yield float(at), call


class _Translator:
    """System calls of one process -> operations on what lies in one folder."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._offsets: dict[str, int] = {}  # of open files that are written from where they stand

    def translate(self, name: str, arguments: str, result: str, opened: str | None) -> Iterator[Operation]:
        texts = [_bytes(text) for text in _TEXT.findall(arguments)]
        files = [(number, os.fsdecode(_bytes(path))) for number, path in _OPEN_FILE.findall(arguments)]
        if name in ("open", "openat", "creat"):
            path = os.fsdecode(_bytes((opened or "<>")[1:-1]))
            return self._opened(name, path, arguments, result)
        if name == "mmap" and not ("MAP_SHARED" in arguments and "PROT_WRITE" in arguments):
            return iter(())
        paths = [path for _, path in files]
        if name in _NAMED:
            folders = paths or [""] * len(texts)
            paths = [os.path.join(*pair) for pair in zip(folders, map(os.fsdecode, texts), strict=True)]
            return self._named(_NAMED[name], paths)
        return self._on_file(name, files, texts, arguments, result)

    def _opened(self, name: str, path: str, arguments: str, result: str) -> Iterator[Operation]:
        self._offsets[result] = 0
        if self._is_ours(path):
            assert "O_APPEND" not in arguments, f"not simulated: {name} of {path} with O_APPEND"
            if name == "creat" or "O_CREAT" in arguments:
                yield Operation(Kind.CREATE, path)
            if name == "creat" or "O_TRUNC" in arguments:
                yield Operation(Kind.RESIZE, path)

    def _named(self, kind: Kind, paths: list[str]) -> Iterator[Operation]:
        if any(map(self._is_ours, paths)):
            assert all(map(self._is_ours, paths)), f"not simulated: {kind} from or to elsewhere: {paths}"
            yield Operation(kind, paths[0], target="".join(paths[1:]))

    def _on_file(
        self, name: str, files: list[tuple[str, str]], texts: list[bytes], arguments: str, result: str
    ) -> Iterator[Operation]:
        if not files:
            return
        number, path = files[0]
        if name == "write" and path.startswith(("pipe:", "socket:", "UNIX")):
            yield Operation(Kind.ANSWER, "", data=texts[0][: int(result)])
        elif name == "lseek":
            self._offsets[number] = int(result)
        if not any(self._is_ours(path) for _, path in files) or name == "lseek":
            return
        if name == "write":
            yield Operation(Kind.WRITE, path, self._offsets[number], texts[0][: int(result)])
            self._offsets[number] += int(result)
        elif name == "pwrite64":
            offset = int(arguments.rpartition(", ")[2])
            yield Operation(Kind.WRITE, path, offset, texts[0][: int(result)])
        elif name == "ftruncate":
            yield Operation(Kind.RESIZE, path, int(arguments.rpartition(", ")[2]))
        else:
            assert name in ("fsync", "fdatasync"), f"not simulated: {name} of {path}"
            yield Operation(Kind.SYNC, path)

    def _is_ours(self, path: str) -> bool:
        """Return whether it lies in the folder. A WAL index does not count: it is made anew after a loss."""
        return (path + "/").startswith(self._root + "/") and not path.endswith("-shm")


_NAMED = {
    "rename": Kind.RENAME,
    "renameat": Kind.RENAME,
    "renameat2": Kind.RENAME,
    "unlink": Kind.REMOVE,
    "unlinkat": Kind.REMOVE,
    "rmdir": Kind.REMOVE,
    "mkdir": Kind.MAKE_FOLDER,
    "mkdirat": Kind.MAKE_FOLDER,
}


def _bytes(text: str) -> bytes:
    """Return what strace printed, in hexadecimal or (paths of open files, in old versions) as it is."""
    return bytes.fromhex("".join(_HEX.findall(text))) if text.startswith("\\x") else os.fsencode(text)


STRACE = Recorder("strace", _strace_prelude, _read_strace)
LAYER = Recorder("layer", _layer_prelude, _read_layer)
