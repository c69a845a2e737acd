"""One thread that looks for changes of any process, while somebody here waits for some; else none."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from config import POLL_SECONDS
from errors import Refusal, StoreFailure
from log import say_exception


class Watch:
    """Calls `look` every POLL_SECONDS, in a thread of its own, for as long as `is_needed` says so."""

    def __init__(self, name: str, is_needed: Callable[[], bool], look: Callable[[], None]) -> None:
        self._name = name
        self._is_needed = is_needed
        self._look = look
        self._guard = threading.Lock()
        self._is_running = False

    def start(self) -> None:
        """Make sure that the thread runs; to be called once `is_needed` has turned true."""
        with self._guard:
            if self._is_running:
                return
            self._is_running = True
        threading.Thread(target=self._run, name=self._name, daemon=True).start()

    def _run(self) -> None:
        while self._is_wanted():
            time.sleep(POLL_SECONDS)
            try:
                self._look()
            except Refusal:
                continue  # the database is busy or ailing: the next look sees what this one missed
            except StoreFailure:
                return  # the next call ends the process, and says why
            except Exception:
                say_exception()

    def _is_wanted(self) -> bool:
        with self._guard:
            self._is_running = self._is_needed()
            return self._is_running
