"""Calls that wait for something to happen, without a thread or a connection's turn for each of them.

A waiting claim_task is tried again when any process changed anything, and now and then all the same,
because an owner can die without a change. It ends with its answer, when its time is up, when its client
cancels it, or with its client.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from config import CLOSE_SECONDS, LIVENESS_SECONDS
from errors import Busy, ToolError
from protocol import JsonObject, Peer, RequestId
from store import Store
from tools import Wait, refusal
from watch import Watch

Finish = Callable[[JsonObject, bool], None]  # takes the answer, and whether it is a refusal


class _Waiting(NamedTuple):
    wait: Wait
    deadline: float  # time.monotonic
    finish: Finish


class WaitingCalls:
    """All calls of this process that wait. Safe to use from several threads."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._entries: dict[tuple[Peer, RequestId], _Waiting] = {}
        self._lock = threading.Lock()
        self._watch = Watch("waiting", lambda: bool(self._entries), self._look)
        self._attempting = threading.Lock()
        self._marker: object = None
        self._last_try = 0.0

    def add(self, peer: Peer, request_id: RequestId, wait: Wait, finish: Finish) -> None:
        """Let a call wait; `finish` is called once with its answer, unless it is cancelled before."""
        with self._lock:
            if peer.is_gone:
                return
            self._entries[peer, request_id] = _Waiting(wait, time.monotonic() + wait.seconds, finish)
            self._last_try = 0.0  # something may have come between its first attempt and now
        self._watch.start()

    def cancel(self, peer: Peer, request_id: RequestId) -> None:
        """End a wait without an answer, as its client wished."""
        with self._lock:
            self._entries.pop((peer, request_id), None)

    def forget(self, peer: Peer) -> None:
        """End all that a peer waits for; it is gone."""
        with self._lock:
            for key in [key for key in self._entries if key[0] is peer]:
                del self._entries[key]

    def close(self) -> None:
        """Answer all who wait that there is nothing."""
        for key in self._keys():
            self._conclude(key)

    def stop(self) -> None:
        """End all waits without a word, and wait for the attempt in hand to be done or undone."""
        with self._lock:
            self._entries.clear()
        if self._attempting.acquire(timeout=CLOSE_SECONDS):
            self._attempting.release()

    def _look(self) -> None:
        now = time.monotonic()
        marker = self._store.change_marker()
        if marker != self._marker or now - self._last_try >= LIVENESS_SECONDS:
            self._marker, self._last_try = marker, now
            for key in self._keys():
                with self._attempting:
                    self._try(key)
        for key in self._keys():
            if (entry := self._entries.get(key)) is not None and entry.deadline <= now:
                self._conclude(key)

    def _keys(self) -> list[tuple[Peer, RequestId]]:
        with self._lock:
            return list(self._entries)

    def _try(self, key: tuple[Peer, RequestId]) -> None:
        entry = self._entries.get(key)
        if entry is None:
            return
        try:
            answer, is_error = entry.wait.attempt(), False
        except Busy:
            self._last_try = 0.0  # the next look tries again
            return
        except ToolError as error:
            answer, is_error = refusal(error), True
        if answer is None:
            return
        with self._lock:
            is_awaited = self._entries.pop(key, None) is not None
        if is_awaited:
            entry.finish(answer, is_error)
        else:  # cancelled in this very moment: nobody would hear of what was taken
            entry.wait.undo()

    def _conclude(self, key: tuple[Peer, RequestId]) -> None:
        with self._lock:
            entry = self._entries.pop(key, None)
        if entry is not None:
            entry.finish(*entry.wait.otherwise())
