"""One client on stdin and stdout: newline-delimited JSON-RPC (MCP, STDIO transport). Knows bytes, not tools.

Nothing but protocol messages ever reaches the real stdout: it is put aside before the first message is
read, and whatever a library prints goes to stderr.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading

from config import MESSAGE_BYTES, QUIET_SECONDS, STOP_SECONDS
from protocol import MessageHandler, Peer, unreadable


class StdioLoop:
    """One client on stdin and stdout: a JSON-RPC message a line, answered in order.

    Ends at end of file, when nobody reads stdout any more, and when `stop` is called; a call in hand is
    finished first, for STOP_SECONDS at the most.
    """

    def __init__(self, handler: MessageHandler) -> None:
        self._handler = handler
        self.session_id = os.urandom(8).hex()  # what tells this connection from any other
        self._peer = Peer(self._notify, self.session_id)
        self._input = 0
        self._output = _claim_stdout()
        for end in (self._input, self._output):
            _wait_for(end)
        self._output_lock = threading.Lock()  # notifications come from other threads
        self._is_stopping = False
        self._is_writing = False  # maybe to a client that does not read
        self._arrivals = _poll_with_signals(self._input)
        self._is_prepared = False

    def run(self) -> bool:
        """Serve until the client is gone or the process is told to stop; returns whether it was told."""
        lines = LineBuffer()
        try:
            while chunk := self._read():
                self._serve(lines.feed(chunk))
            self._serve(lines.end())
        except (_Stopped, OSError):
            pass  # told to stop, or nobody reads stdout any more
        return self._is_stopping

    def stop(self) -> None:
        """End the loop; for signal handlers, which run in the loop's own thread."""
        if self._is_stopping:
            return
        self._is_stopping = True
        last_resort = threading.Timer(STOP_SECONDS, os._exit, (0,))
        last_resort.daemon = True
        last_resort.start()
        if self._is_writing:
            raise _Stopped

    def _serve(self, lines: list[bytes | None]) -> None:
        for line in lines:
            if self._is_stopping:
                return
            if line is None:
                reply = unreadable(f"A message may have at most {MESSAGE_BYTES} bytes")
            else:
                reply = self._handler.handle(line, self._peer)
            if reply.body:
                self._write(reply.body + b"\n")

    def _read(self) -> bytes:
        """Wait for input or a signal; return b"" when there is no more of the one, or the other came.

        While the client is quiet for the first time, the handler gets ready for what comes next.
        """
        if not self._is_prepared and not self._arrivals.poll(1000 * QUIET_SECONDS):
            self._is_prepared = True
            self._handler.prepare()
        self._arrivals.poll()
        return b"" if self._is_stopping else os.read(self._input, 1 << 16)

    def _write(self, data: bytes) -> None:
        self._is_writing = True
        self._write_whole(data)
        self._is_writing = False

    def _notify(self, message: bytes) -> None:
        """Send a message that is no reply; may be called from any thread."""
        try:
            self._write_whole(message + b"\n")
        except OSError:
            pass  # the client stopped reading; the loop finds out by itself

    def _write_whole(self, data: bytes) -> None:
        with self._output_lock:
            view = memoryview(data)
            while view:
                view = view[os.write(self._output, view) :]


class _Stopped(BaseException):
    """A signal came while the loop was writing to its client."""


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


def _wait_for(end: int) -> None:
    """Have reads and writes wait: a client may have left its own flags on a shared pipe."""
    try:
        os.set_blocking(end, True)
    except OSError:
        pass  # closed from the start


def _poll_with_signals(source: int) -> select.poll:
    """Return what waits for input from `source` and for signals alike.

    A read of its own could block just after a signal came and before Python looked. So each signal also
    puts a byte into a pipe.
    """
    woken, waking = os.pipe()
    os.set_blocking(waking, False)
    signal.set_wakeup_fd(waking, warn_on_full_buffer=False)
    arrivals = select.poll()
    arrivals.register(source, select.POLLIN)
    arrivals.register(woken, select.POLLIN)
    return arrivals


def _claim_stdout() -> int:
    """Keep the real stdout for the protocol alone; whatever prints, prints to stderr from now on."""
    try:
        wire = os.dup(1)
    except OSError:
        return 1  # closed from the start: the first answer will find out
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return wire
