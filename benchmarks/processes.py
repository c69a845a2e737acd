"""Server processes: started in a folder of their own, measured by /proc, ended with their block."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from types import TracebackType
from typing import Self

from benchmarks.contenders import Command, Contender, Failed

GRACE = 5.0  # seconds that a server has to end by itself
_STDERR_SHOWN = 1000  # bytes of it that a failure is told with
_KIB_PER_MIB = 1024


class Process:
    """A running server, with a `port` a service; `started` is when it was spawned, on time.perf_counter."""

    def __init__(self, contender: Contender, command: Command, folder: str, port: int = 0) -> None:
        filled = {"{folder}": folder, "{port}": str(port)}
        words = [_filled(word, filled) for word in command]
        environment = contender.environment(folder)
        self.name, self.port = contender.name, port
        self._errors = open(os.path.join(folder, f"stderr-{time.monotonic_ns()}"), "w+b")  # noqa: SIM115
        self.started = time.perf_counter()
        pipe = subprocess.DEVNULL if port else subprocess.PIPE
        self.popen = subprocess.Popen(
            words, stdin=pipe, stdout=pipe, stderr=self._errors,
            cwd=folder, env=environment, bufsize=0, start_new_session=True,
        )  # fmt: skip

    def failure(self, what: str) -> Failed:
        """Return an error that says what happened, with the end of the server's stderr."""
        size = os.fstat(self._errors.fileno()).st_size
        end = os.pread(self._errors.fileno(), _STDERR_SHOWN, max(0, size - _STDERR_SHOWN))
        return Failed(f"{self.name}: {what}\n{end.decode(errors='replace')}".strip())

    def peak_memory(self) -> float:
        """Return the most that has been resident, in MiB, summed over the server and its children."""
        peaks = [_kib(f"/proc/{pid}/status", "VmHWM") for pid in _family(self.popen.pid)]
        return sum(peaks) / _KIB_PER_MIB

    def resident_memory(self) -> int:
        """Return what is resident now, in KiB, summed over the server and its children.

        It is counted page by page: what `status` tells may lag behind by some hundred KiB.
        """
        return sum(_kib(f"/proc/{pid}/smaps_rollup", "Rss") for pid in _family(self.popen.pid))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the server as its client would, by closing stdin, a service by SIGTERM, or else by force."""
        if self.port:
            self.popen.terminate()
        for pipe in (self.popen.stdin, self.popen.stdout):
            if pipe is not None:
                pipe.close()
        try:
            self.popen.wait(GRACE if error is None else 0)
        except subprocess.TimeoutExpired:
            pass
        try:
            os.killpg(self.popen.pid, signal.SIGKILL)  # what it left behind, too
        except ProcessLookupError:
            pass
        self.popen.wait()
        self._errors.close()


def _filled(word: str, values: dict[str, str]) -> str:
    for name, value in values.items():
        word = word.replace(name, value)
    return word


def _family(pid: int) -> list[int]:
    """Return a process and all that descend from it; whoever ends meanwhile is left out."""
    found, waiting = [], [pid]
    while waiting:
        found.append(waiting.pop())
        folder = f"/proc/{found[-1]}/task"
        try:
            for thread in os.listdir(folder):
                with open(f"{folder}/{thread}/children", encoding="ascii") as children:
                    waiting += map(int, children.read().split())
        except OSError:
            pass
    return found


def _kib(path: str, field: str) -> int:
    """Return a size, in KiB, that the kernel tells of a process; 0 of one that has ended."""
    try:
        with open(path, encoding="utf-8") as told:
            value = re.search(rf"^{field}:\s+(\d+) kB", told.read(), re.M)
    except OSError:
        return 0
    return int(value[1]) if value else 0
