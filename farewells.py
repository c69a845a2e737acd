"""Recording that connections of a service have ended, away from the thread that noticed it."""

from __future__ import annotations

import queue
import threading

from config import CLOSE_SECONDS
from errors import StoreFailure
from log import say_exception
from protocol import Peer
from store import Store


class Farewells:
    """Ends sessions in the store, one after the other, in a thread that is there once it is needed."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._session_ids: queue.SimpleQueue[str | None] = queue.SimpleQueue()  # None: there are no more
        self._guard = threading.Lock()
        self._thread: threading.Thread | None = None

    def say(self, peer: Peer) -> None:
        """Record soon that a peer is gone; costs nothing for one whose agent never owned a task."""
        if peer.session_id is None or not self._store.is_session_known(peer.session_id):
            return
        self._session_ids.put(peer.session_id)
        with self._guard:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="farewells", daemon=True)
                self._thread.start()

    def finish(self) -> None:
        """Have all that was said recorded before the store is closed; waits for CLOSE_SECONDS at most."""
        self._session_ids.put(None)
        with self._guard:
            thread = self._thread
        if thread is not None:
            thread.join(CLOSE_SECONDS)

    def _run(self) -> None:
        while (session_id := self._session_ids.get()) is not None:
            try:
                self._store.end_session(session_id, lambda _: None)
            except StoreFailure:
                return  # the next call ends the process, and says why
            except Exception:
                say_exception()
