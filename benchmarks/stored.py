"""How a database comes to hold so many tasks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING
from unittest.mock import patch

from benchmarks.clients import Requests, StdioServer
from benchmarks.contenders import Contender, Failed

if TYPE_CHECKING:
    from store import Store

BY_CALLS = 1000  # so many of the tasks are always made by calls
_IN_ONE_TRANSACTION = 10_000


def fill(contender: Contender, folder: str, level: int) -> None:
    """Have the server in `folder` hold `level` tasks, of which it made at least the last BY_CALLS in calls.

    Our own server's others are made in this process, by what a call runs, but many in a transaction that is
    not synced: a million calls would take ten minutes. What the last calls leave is then what any would:
    the full-text index is merged as it goes, and the tables and indexes are the same in any case.
    """
    requests = Requests(contender)
    if contender.is_ours and level > BY_CALLS:
        _write_in_bulk(contender, folder, level - BY_CALLS)
        requests.stored = level - BY_CALLS
    with StdioServer(contender, folder, requests) as server:
        server.list_tools()
        while requests.stored < level:
            server.call(requests.write())


def _write_in_bulk(contender: Contender, folder: str, count: int) -> None:
    from store import Store
    from tools import Workplace, call_tool

    settings = contender.environment(folder)
    store = Store(settings["MCP_TASK_DB_PATH"], settings["MCP_TASK_ARTIFACTS_DIR"])
    for pragma in ("journal_mode = MEMORY", "synchronous = OFF", "cache_size = -200000"):
        store._db.execute(f"PRAGMA {pragma}")
    try:
        for first in range(1, count + 1, _IN_ONE_TRANSACTION):
            with _one_transaction(store):
                for number in range(first, min(first + _IN_ONE_TRANSACTION, count + 1)):
                    call = contender.write.parameters(number)
                    answer, is_refused = call_tool(call["name"], call["arguments"], Workplace(store))
                    if is_refused:
                        raise Failed(f"{contender.name}: {answer}")
    finally:
        store.close()


@contextmanager
def _one_transaction(store: Store) -> Iterator[None]:
    """Make one transaction of all that are begun in the block."""
    with store._db.transaction(), patch.object(store._db, "transaction", lambda *_: nullcontext()):
        yield
