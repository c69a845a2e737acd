"""The methods of MCP that touch tasks: tools, resources, prompts, completion and who watches what.

Each takes a call and returns its plain result; the dispatcher and protocol.py do the rest.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager

import prompts
import resources
import tools
from config import GIT_SECONDS_AT_EXIT, WATCHED_URIS
from farewells import Farewells
from models import build_models
from protocol import (
    Call,
    InvalidParams,
    JsonObject,
    MethodNotFound,
    Peer,
    Reply,
    RequestId,
    tool_result,
)
from repository import observe
from subscriptions import Subscriptions
from tools import Wait, Workplace
from waiting import WaitingCalls


class TaskMethods:
    """Answers calls from a workplace, and knows who waits and who listens.

    Safe to use from several threads.
    """

    def __init__(self, workplace: Workplace) -> None:
        self._workplace = workplace
        self.store = workplace.store
        self._subscriptions = Subscriptions(workplace.store)
        self._waiting = WaitingCalls(workplace.store)
        self._farewells = Farewells(workplace.store)

    def answer(self, call: Call) -> Reply:
        """Run a call's method; raises RpcError for a refusal, StoreFailure when the process must stop."""
        method = call.request.method
        if not _is_quick(call):
            self.require_alone()
        run = (_STATELESS_METHODS if call.revision.is_stateless else _HANDSHAKE_METHODS).get(method)
        if run is None:
            raise MethodNotFound(f"Method not found: {method[:100]}")
        result = run(self, call)
        if result is None:
            return Reply(is_stream=True)
        if isinstance(result, Wait):
            return self._wait(call, result)
        return call.reply(result)

    def together(self) -> AbstractContextManager[None]:
        """Commit what the calls that are answered in the block change at once; as Store.together."""
        return self.store.together()

    def require_alone(self) -> None:
        """Raise Alone inside of `together`."""
        self.store.require_alone()

    def prepare(self) -> None:
        """Do now what the first call of each tool would otherwise wait for."""
        build_models()
        self.store.check()

    def cancel(self, peer: Peer, request_id: RequestId) -> None:
        """Give up a call that waits, or end a listen, as its client wished."""
        self._subscriptions.cancel(peer, request_id)
        self._waiting.cancel(peer, request_id)

    def forget(self, peer: Peer) -> None:
        """Take note that a peer is gone."""
        self._subscriptions.forget(peer)
        self._waiting.forget(peer)
        self._farewells.say(peer)

    def close(self) -> None:
        """Tell everybody who waits or listens that it is over."""
        self._waiting.close()
        self._subscriptions.close()

    def leave(self, session_id: str | None = None) -> None:
        """Take nothing more for anybody, record what has ended, and close the store.

        `session_id` is the only session that there was, which ends in good order.
        """
        self._waiting.stop()
        deadline = time.monotonic() + GIT_SECONDS_AT_EXIT
        if session_id is not None:
            self.store.end_session(
                session_id, lambda path: observe(path, max(0.0, deadline - time.monotonic()))
            )
        self._farewells.finish()
        self.store.close()

    def _wait(self, call: Call, wait: Wait) -> Reply:
        if not call.may_wait:
            return call.reply(tool_result(*wait.otherwise()))

        def finish(answer: JsonObject, is_error: bool) -> None:
            call.peer.send(call.reply(tool_result(answer, is_error)).body)

        self._waiting.add(call.peer, call.request.id, wait, finish)
        return Reply(is_late=True)

    # --- The methods: each returns its plain result, or None if the answer is a stream ----------------

    def _call_tool(self, call: Call) -> JsonObject | Wait:
        name, arguments = call.params.get("name"), call.params.get("arguments")
        if not isinstance(name, str):
            raise InvalidParams("tools/call needs params.name, a string")
        if arguments is not None and not isinstance(arguments, dict):
            raise InvalidParams("params.arguments must be an object")
        if name not in tools.TOOLS:
            raise InvalidParams(f"Unknown tool: {name[:100]}")
        peer = call.peer
        workplace = self._workplace.of(peer.session_id, lambda: peer.is_gone)
        answer, is_error = tools.call_tool(name, arguments or {}, workplace)
        return answer if isinstance(answer, Wait) else tool_result(answer, is_error)

    def _list_resources(self, call: Call) -> JsonObject:
        return resources.list_resources(self.store, call.string("cursor"))

    def _list_templates(self, call: Call) -> JsonObject:
        call.refuse_cursor()
        return {"resourceTemplates": resources.TEMPLATES}

    def _read_resource(self, call: Call) -> JsonObject:
        return resources.read_resource(self.store, _uri(call))

    def _subscribe(self, call: Call) -> JsonObject:
        uri = _watched(call)
        task_id = resources.watched_task(uri)
        if not self._subscriptions.subscribe(call.peer, uri, task_id):
            raise InvalidParams(f"One connection may watch {WATCHED_URIS} resources; unsubscribe some")
        return {}

    def _unsubscribe(self, call: Call) -> JsonObject:
        self._subscriptions.unsubscribe(call.peer, _watched(call))
        return {}

    def _listen(self, call: Call) -> None:
        wanted = call.params.get("notifications")
        if not isinstance(wanted, dict):
            raise InvalidParams("subscriptions/listen needs params.notifications, an object")
        uris = wanted.get("resourceSubscriptions", [])
        if not isinstance(uris, list) or not all(isinstance(uri, str) for uri in uris):
            raise InvalidParams("notifications.resourceSubscriptions must be a list of URIs")
        if len(uris) > WATCHED_URIS:
            raise InvalidParams(f"One subscription may watch {WATCHED_URIS} resources")
        for name in ("resourcesListChanged", "toolsListChanged", "promptsListChanged"):
            if not isinstance(wanted.get(name, False), bool):
                raise InvalidParams(f"notifications.{name} must be true or false")
        new_tasks = wanted.get("resourcesListChanged", False)
        task_ids = {uri: resources.watched_task(uri) for uri in uris}
        self._subscriptions.listen(call.peer, call.request.id, task_ids, new_tasks)

    def _list_prompts(self, call: Call) -> JsonObject:
        call.refuse_cursor()
        return {"prompts": prompts.PROMPTS}

    def _get_prompt(self, call: Call) -> JsonObject:
        return prompts.get_prompt(self.store, call.params.get("name"), call.params.get("arguments"))

    def _complete(self, call: Call) -> JsonObject:
        return prompts.complete(self.store, call.params)


def _is_quick(call: Call) -> bool:
    """Return whether a call may be answered together with others; see tools.Tool."""
    name = call.params.get("name") if call.request.method == "tools/call" else None
    return isinstance(name, str) and name in tools.TOOLS and tools.TOOLS[name].quick


def _watched(call: Call) -> str:
    if not call.can_subscribe:
        raise MethodNotFound(f"Method not found: {call.request.method}; nothing can be watched here")
    return _uri(call)


def _uri(call: Call) -> str:
    uri = call.string("uri")
    if uri is None:
        raise InvalidParams("params.uri, a string, is missing")
    return uri


_Method = Callable[[TaskMethods, Call], JsonObject | Wait | None]
_METHODS: dict[str, _Method] = {
    "tools/call": TaskMethods._call_tool,
    "resources/list": TaskMethods._list_resources,
    "resources/templates/list": TaskMethods._list_templates,
    "resources/read": TaskMethods._read_resource,
    "prompts/list": TaskMethods._list_prompts,
    "prompts/get": TaskMethods._get_prompt,
    "completion/complete": TaskMethods._complete,
}
_HANDSHAKE_METHODS = _METHODS | {
    "resources/subscribe": TaskMethods._subscribe,
    "resources/unsubscribe": TaskMethods._unsubscribe,
}
_STATELESS_METHODS = _METHODS | {"subscriptions/listen": TaskMethods._listen}
