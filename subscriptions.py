"""Who wants to hear of changes, and telling them: changes made by any process on the same database.

One thread watches the store while somebody listens, and nobody pays while nobody does. A legacy
`resources/subscribe` and a `subscriptions/listen` are two entries of the same kind; the second carries its
id in every frame (MCP, utilities, subscriptions).
"""

from __future__ import annotations

import threading
from collections.abc import Iterable

from config import WATCHED_URIS
from models import Change
from protocol import (
    META_SERVER,
    META_SUBSCRIPTION,
    SERVER_INFO,
    JsonObject,
    Peer,
    RequestId,
    notification_message,
    result_message,
)
from store import Store
from watch import Watch


class _Subscription:
    """What one listener wants. `listen_id` is None for a legacy subscription.

    Every wish has the position in the event log from which on it is told of changes: nothing is replayed.
    """

    def __init__(self, peer: Peer, listen_id: RequestId | None) -> None:
        self.peer = peer
        self.listen_id = listen_id
        self.watched: dict[str, tuple[str, int]] = {}  # URI as given: its task, and since when
        self.new_tasks_since: int | None = None

    def meta(self) -> JsonObject:
        return {} if self.listen_id is None else {"_meta": {META_SUBSCRIPTION: self.listen_id}}

    def frames(self, changes: list[Change]) -> Iterable[bytes]:
        latest = {change.task_id: change.position for change in changes}
        for uri, (task_id, since) in self.watched.items():
            if latest.get(task_id, 0) > since:
                yield notification_message("notifications/resources/updated", {**self.meta(), "uri": uri})
        new_since = self.new_tasks_since
        if new_since is not None and any(one.is_new and one.position > new_since for one in changes):
            yield notification_message("notifications/resources/list_changed", self.meta())


class Subscriptions:
    """All listeners of this process. Safe to use from several threads.

    Nothing waits with the lock held, but for a client that does not read its pipe.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._entries: dict[tuple[Peer, RequestId | None], _Subscription] = {}
        self._lock = threading.Lock()
        self._watch = Watch("subscriptions", lambda: bool(self._entries), self._look)
        self._position = 0
        self._marker: object = None

    def listen(
        self, peer: Peer, listen_id: RequestId, task_ids: dict[str, str], wants_new_tasks: bool
    ) -> None:
        """Start a subscription: acknowledged first, then notified, on `peer.send`.

        `task_ids` maps each URI that is watched to its task. A listen of the same id is replaced.
        """
        since = self._store.last_position()
        entry = _Subscription(peer, listen_id)
        entry.watched = {uri: (task_id, since) for uri, task_id in task_ids.items()}
        entry.new_tasks_since = since if wants_new_tasks else None
        honoured: JsonObject = {"resourcesListChanged": True} if wants_new_tasks else {}
        if task_ids:
            honoured["resourceSubscriptions"] = list(task_ids)
        acknowledgement = {**entry.meta(), "notifications": honoured}
        with self._lock:  # nothing is told in between: what changes from here on comes after it
            if peer.is_gone:
                return
            self._add(entry, since)
            peer.send(notification_message("notifications/subscriptions/acknowledged", acknowledgement))

    def subscribe(self, peer: Peer, uri: str, task_id: str) -> bool:
        """Watch one more URI for a connection of the handshake era; False if it watches too many."""
        since = self._store.last_position()
        with self._lock:
            entry = self._entries.get((peer, None)) or _Subscription(peer, None)
            if uri not in entry.watched and len(entry.watched) >= WATCHED_URIS:
                return False
            if not peer.is_gone:
                entry.watched.setdefault(uri, (task_id, since))
                self._add(entry, since)
        return True

    def _add(self, entry: _Subscription, since: int) -> None:
        if not self._entries:
            self._position = since
        self._entries[entry.peer, entry.listen_id] = entry
        self._watch.start()

    def unsubscribe(self, peer: Peer, uri: str) -> None:
        """Watch one URI less; what was never watched is no error."""
        with self._lock:
            entry = self._entries.get((peer, None))
            if entry is not None:
                entry.watched.pop(uri, None)
                if not entry.watched:
                    del self._entries[peer, None]

    def cancel(self, peer: Peer, listen_id: RequestId) -> None:
        """End a listen without a word, as its client wished."""
        with self._lock:
            self._entries.pop((peer, listen_id), None)

    def forget(self, peer: Peer) -> None:
        """End all that a peer listened to; it is gone."""
        with self._lock:
            for key in [key for key in self._entries if key[0] is peer]:
                del self._entries[key]

    def close(self) -> None:
        """End all listens with the response that tells their clients so."""
        with self._lock:
            entries, self._entries = list(self._entries.values()), {}
        for entry in entries:
            if entry.listen_id is not None:
                meta = {META_SUBSCRIPTION: entry.listen_id, META_SERVER: SERVER_INFO}
                result = {"resultType": "complete", "_meta": meta}
                entry.peer.send(result_message(entry.listen_id, result))

    def _look(self) -> None:
        if (marker := self._store.change_marker()) == self._marker:
            return
        changes = self._store.changes_since(self._position)
        self._marker = marker
        if not changes:
            return
        with self._lock:  # sent under the lock, so that nothing comes after the end of a subscription
            self._position = max(self._position, changes[-1].position)
            for entry in self._entries.values():
                for frame in entry.frames(changes):
                    entry.peer.send(frame)
