"""MCP over HTTP: the endpoints, who may reach them, and the two transports behind them.

    GET  /health                     200 while the database answers, else 503
    GET  /sse                        an event stream; its first event names the endpoint to post to
    POST /message?clientId=<id>      one JSON-RPC message; the answer travels on the stream
    POST /mcp                        Streamable HTTP, without sessions: the answer is the response

Knows bytes, not tools: messages go to the dispatcher as they came. Every request passes the
checks of MCP, transports, Security, before its body is read: Host and Origin against DNS rebinding, the
bearer token, the path and its method, the content type.
"""

from __future__ import annotations

import hmac
import secrets
import threading
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from http import HTTPStatus
from ipaddress import ip_address
from urllib.parse import parse_qs

from config import STREAMS, ConfigError
from http_message import Head, Request, Response
from http_sockets import EventStream, LateResponse, error_response, overloaded_response
from origins import Origin, host_name, parse_origin
from protocol import McpHeaders, MessageHandler, Peer, Received, Reply

_LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
_METHODS = {"/health": "GET", "/sse": "GET", "/message": "POST", "/mcp": "POST"}
_MCP_HEADERS = ("mcp-protocol-version", "mcp-method", "mcp-name")
_HEALTH = "/health"  # needs no token: it tells nothing but that the service lives


class Session(EventStream):
    """One HTTP+SSE client: its stream, and what was negotiated on it."""

    def __init__(self, client_id: str, forget: Callable[[Session], None]) -> None:
        self.client_id = client_id
        self.peer = Peer(self.deliver, secrets.token_hex(8))
        self._forget = forget
        self._send: Callable[[bytes], None] | None = None

    def opened(self, send: Callable[[bytes], None]) -> None:
        """Name the endpoint, as a path on the same origin: clients refuse any other."""
        self._send = send
        send(f"event: endpoint\ndata: /message?clientId={self.client_id}\n\n".encode("ascii"))

    def closed(self) -> None:
        """Forget the client."""
        self._forget(self)

    def deliver(self, message: bytes) -> None:
        """Send one JSON-RPC message."""
        if self._send is not None:
            self._send(_event(message))


class Listening(EventStream):
    """The answer to a request at /mcp that goes on: its frames wait until the stream is open."""

    def __init__(self, forget: Callable[[Listening], None]) -> None:
        self.peer = Peer(self._deliver, session_id=None)
        self._forget = forget
        self._lock = threading.Lock()
        self._waiting: list[bytes] = []
        self._complete: Callable[[Response], None] | None = None
        self._send: Callable[[bytes], None] | None = None

    def opened(self, send: Callable[[bytes], None]) -> None:
        """Send what was said before there was a stream, and from now on at once."""
        with self._lock:
            for message in self._waiting:
                send(_event(message))
            self._waiting.clear()
            self._send = send

    def closed(self) -> None:
        """End what the client listened to."""
        self._forget(self)

    def as_late_response(self) -> LateResponse:
        """Make the one message that will come, or has come meanwhile, the response itself."""
        late = LateResponse(self.closed)
        with self._lock:
            self._complete = late.complete
            waiting = self._waiting[:1]
        for message in waiting:
            late.complete(Response(HTTPStatus.OK, message))
        return late

    def _deliver(self, message: bytes) -> None:
        with self._lock:
            complete = self._complete
            if self._send is not None:
                self._send(_event(message))
            elif complete is None:
                self._waiting.append(message)
        if complete is not None:
            complete(Response(HTTPStatus.OK, message))


def _event(message: bytes) -> bytes:
    return b"event: message\ndata: " + message + b"\n\n"


class Access:
    """Who may reach the service (MCP, transports, Security)."""

    def __init__(self, host: str, token: str | None, allowed_origins: Iterable[Origin]) -> None:
        """`host` is what the service listens on; beyond loopback it needs a token (ConfigError)."""
        if token is None and not _is_loopback(host):
            raise ConfigError(
                f"--host {host} is reachable from other machines: set MCP_TASK_TOKEN or MCP_TASK_TOKEN_FILE"
            )
        self._token = token
        self._origins = set(allowed_origins)
        self._host_names = _LOOPBACK_NAMES | {host.lower()} | {origin.host for origin in self._origins}

    def admits_host(self, header: str, local_address: str) -> bool:
        """Accept a name served here or the very address the connection came to: neither can be rebound."""
        name = host_name(header)
        return name is not None and (name in self._host_names or name == local_address.lower())

    def admits_origin(self, header: str) -> bool:
        """Accept pages of this machine, and what was configured; `null` is nobody."""
        origin = parse_origin(header)
        if origin is None:
            return False
        is_local = origin.scheme in ("http", "https") and origin.host in _LOOPBACK_NAMES
        return is_local or origin in self._origins

    def is_authorized(self, header: str) -> bool:
        """Accept the bearer token, if there is one to be shown; compared in constant time."""
        if self._token is None:
            return True
        scheme, _, given = header.partition(" ")
        return scheme.lower() == "bearer" and hmac.compare_digest(
            given.strip().encode("latin-1"), self._token.encode("ascii")
        )


def _is_loopback(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


class HttpTransport:
    """The endpoints; an Application of http_sockets.HttpService."""

    def __init__(
        self,
        handler: MessageHandler,
        is_healthy: Callable[[], bool],
        access: Access,
    ) -> None:
        self._handler = handler
        self._is_healthy = is_healthy
        self._access = access
        self._sessions: dict[str, Session] = {}
        self._listening: set[Listening] = set()
        self._lock = threading.Lock()

    # --- Before the body is read ----------------------------------------------------------------------

    def refuse(self, head: Head, local_address: str) -> Response | None:
        """Return the answer to a request that must go no further, else None."""
        if not self._access.admits_host(head.header("host") or "", local_address):
            return error_response(
                HTTPStatus.FORBIDDEN, "This Host is not served here; MCP_TASK_ALLOWED_ORIGINS can add it"
            )
        if "origin" in head.headers and not self._access.admits_origin(head.header("origin") or ""):
            return error_response(
                HTTPStatus.FORBIDDEN, "This Origin is not allowed; MCP_TASK_ALLOWED_ORIGINS can add it"
            )
        if head.path != _HEALTH and not self._access.is_authorized(head.header("authorization") or ""):
            return error_response(
                HTTPStatus.UNAUTHORIZED,
                "Send the header Authorization: Bearer <token>",
                "WWW-Authenticate: Bearer",
            )
        return _misdirected(head)

    # --- Endpoints ------------------------------------------------------------------------------------

    def is_urgent(self, head: Head) -> bool:
        """Let /health be answered even while all others wait for the database."""
        return head.path == _HEALTH

    def respond(self, request: Request) -> Response | LateResponse | EventStream:
        """Answer a request that was not refused."""
        if request.head.path == _HEALTH:
            return self._health()
        if request.head.path == "/mcp":
            return self._streamable(request)
        if request.head.path == "/sse":
            return self._open_session()
        return self._take_message(request)

    def respond_together(self, requests: Sequence[Request]) -> list[Response | None]:
        """Answer the messages to /mcp among requests that came at the same time, as far as that is quick.

        None stands for a request that is to be answered alone.
        """
        ours = [number for number, request in enumerate(requests) if request.head.path == "/mcp"]
        # Peers that nothing is sent to: replies that are given together are whole, never a stream or late.
        messages = [
            Received(requests[number].body, Listening(self._end).peer, _mcp_headers(requests[number].head))
            for number in ours
        ]
        answers: list[Response | None] = [None] * len(requests)
        for number, reply in zip(ours, self._handler.handle_together(messages), strict=True):
            answers[number] = None if reply is None else _response(reply)
        return answers

    def _health(self) -> Response:
        if self._is_healthy():
            return Response(HTTPStatus.OK, b'{"status": "ok"}')
        return Response(
            HTTPStatus.SERVICE_UNAVAILABLE, b'{"status": "unavailable"}', headers=("Retry-After: 1",)
        )

    def _open_session(self) -> Response | LateResponse | EventStream:
        client_id = secrets.token_urlsafe(24)
        with self._lock:
            if self._is_full():
                return overloaded_response()
            session = self._sessions[client_id] = Session(client_id, self._forget)
        return session

    def _forget(self, session: Session) -> None:
        with self._lock:
            del self._sessions[session.client_id]
        self._handler.forget(session.peer)

    def _is_full(self) -> bool:
        return len(self._sessions) + len(self._listening) >= STREAMS

    def _take_message(self, request: Request) -> Response:
        """Hand a message to the dispatcher; 202 says that its answer, if any, is on the stream."""
        client_ids = parse_qs(request.head.query).get("clientId", [])
        session = self._sessions.get(client_ids[0]) if len(client_ids) == 1 else None
        if session is None:
            return error_response(
                HTTPStatus.NOT_FOUND,
                "No open stream has this clientId: GET /sse and post to the endpoint it names",
            )
        reply = self._handler.handle(request.body, session.peer)
        if not reply.readable:
            return Response(HTTPStatus.BAD_REQUEST, reply.body)
        # First the 202, then the answer: a client that has its answer may close everything.
        deliver = partial(session.deliver, reply.body) if reply.body else None
        return Response(HTTPStatus.ACCEPTED, then=deliver)

    def _streamable(self, request: Request) -> Response | LateResponse | EventStream:
        """Answer a message in the response itself (MCP, transports, Streamable HTTP)."""
        listening = Listening(self._end)
        reply = self._handler.handle(request.body, listening.peer, _mcp_headers(request.head))
        if reply.is_stream:
            return self._open_stream(listening)
        if reply.is_late:
            return listening.as_late_response()
        return _response(reply)

    def _open_stream(self, listening: Listening) -> Response | LateResponse | EventStream:
        with self._lock:
            if is_full := self._is_full():
                self._handler.forget(listening.peer)
            else:
                self._listening.add(listening)
        return overloaded_response() if is_full else listening

    def _end(self, listening: Listening) -> None:
        with self._lock:
            self._listening.discard(listening)
        self._handler.forget(listening.peer)

    def stopping(self) -> None:
        """Tell everybody who listens that the service ends."""
        self._handler.close()


def _mcp_headers(head: Head) -> McpHeaders:
    return McpHeaders(*(tuple(head.headers.get(name, ())) for name in _MCP_HEADERS))


def _response(reply: Reply) -> Response:
    if not reply.body:
        return Response(HTTPStatus.ACCEPTED)
    return Response(HTTPStatus(reply.status), reply.body)


def _misdirected(head: Head) -> Response | None:
    method = _METHODS.get(head.path)
    if method is None:
        return error_response(HTTPStatus.NOT_FOUND, f"No such endpoint; there are {', '.join(_METHODS)}")
    if head.method != method and (head.method, head.path) != ("HEAD", _HEALTH):
        return error_response(HTTPStatus.METHOD_NOT_ALLOWED, f"Use {method} here", f"Allow: {method}")
    if head.path == "/mcp" and not _accepts_json(head):
        return error_response(HTTPStatus.NOT_ACCEPTABLE, "Send Accept: application/json, text/event-stream")
    if method == "POST":
        media_type, _, parameters = (head.header("content-type") or "").lower().partition(";")
        charset = parameters.replace(" ", "").replace('"', "")
        if media_type.strip() != "application/json" or charset not in ("", "charset=utf-8"):
            return error_response(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "Send Content-Type: application/json")
    return None


def _accepts_json(head: Head) -> bool:
    """Be lenient: clients should list JSON and event streams; whatever admits JSON is enough."""
    ranges = ",".join(head.headers.get("accept", ("*/*",))).lower().split(",")
    accepted = {media_range.partition(";")[0].strip() for media_range in ranges}
    return bool(accepted & {"*/*", "application/*", "application/json", "text/event-stream"})
