"""One client on stdin and stdout: newline-delimited JSON-RPC (MCP, STDIO transport). Knows bytes, not tools.

Nothing but protocol messages ever reaches the real stdout: it is put aside before the first message is
read, and whatever a library prints goes to stderr.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable

from config import MESSAGE_BYTES, STOP_SECONDS
from protocol import Peer, Reply, unreadable


class StdioLoop:
    """One client on stdin and stdout: a JSON-RPC message a line, answered in order.

    Ends at end of file, when nobody reads stdout any more, and when `stop` is called; a call in hand is
    finished first, for STOP_SECONDS at the most.
    """

    def __init__(self, handle: Callable[[bytes, Peer], Reply]) -> None:
        self._handle = handle
        self._peer = Peer()
        self._input = 0
        self._output = _claim_stdout()
        self._is_stopping = False
        self._is_interruptible = False  # while waiting for the client, in either direction

    def run(self) -> None:
        """Serve until the client is gone or the process is told to stop."""
        lines = LineBuffer()
        try:
            while not self._is_stopping and (chunk := self._read()):
                self._serve(lines.feed(chunk))
            self._serve(lines.end())
        except (_Stopped, BrokenPipeError):
            pass

    def stop(self) -> None:
        """End the loop; for signal handlers, which run in the loop's own thread."""
        self._is_stopping = True
        if self._is_interruptible:
            raise _Stopped
        last_resort = threading.Timer(STOP_SECONDS, os._exit, (0,))
        last_resort.daemon = True
        last_resort.start()

    def _serve(self, lines: list[bytes | None]) -> None:
        for line in lines:
            if self._is_stopping:
                return
            if line is None:
                reply = unreadable(f"A message may have at most {MESSAGE_BYTES} bytes")
            else:
                reply = self._handle(line, self._peer)
            if reply.body:
                self._write(reply.body + b"\n")

    def _read(self) -> bytes:
        self._is_interruptible = True
        chunk = os.read(self._input, 1 << 16)
        self._is_interruptible = False
        return chunk

    def _write(self, data: bytes) -> None:
        self._is_interruptible = True
        view = memoryview(data)
        while view:
            view = view[os.write(self._output, view) :]
        self._is_interruptible = False


class _Stopped(BaseException):
    """A signal came while the loop was waiting for its client."""


class LineBuffer:
    """Bytes in pieces -> whole lines without their ends. None stands for a line over MESSAGE_BYTES.

    Lines end at LF only; blank ones are skipped. An oversized line is not kept while it arrives.
    """

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0

    def feed(self, chunk: bytes) -> list[bytes | None]:
        """Return the lines that `chunk` completes."""
        first, *others = chunk.split(b"\n")
        self._add(first)
        lines = []
        for part in others:
            lines += self.end()
            self._add(part)
        return lines

    def end(self) -> list[bytes | None]:
        """Return the line that has arrived so far, if there is one."""
        line = b"".join(self._parts).strip(b" \t\r")
        is_oversized = self._size > MESSAGE_BYTES
        self._parts, self._size = [], 0
        if is_oversized:
            return [None]
        return [line] if line else []

    def _add(self, part: bytes) -> None:
        self._size += len(part)
        if self._size > MESSAGE_BYTES:
            self._parts.clear()
        elif part:
            self._parts.append(part)


def _claim_stdout() -> int:
    """Keep the real stdout for the protocol alone; whatever prints, prints to stderr from now on."""
    wire = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return wire
