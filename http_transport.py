"""MCP over HTTP: the endpoints, who may reach them, and the legacy HTTP+SSE transport.

    GET  /health                     200 while the database answers, else 503
    GET  /sse                        an event stream; its first event names the endpoint to post to
    POST /message?clientId=<id>      one JSON-RPC message; the answer travels on the stream

Knows bytes, not tools: messages go to the dispatcher's `handle` as they came. Every request passes the
checks of MCP, transports, Security, before its body is read: Host and Origin against DNS rebinding, the
bearer token, the path and its method, the content type.
"""

from __future__ import annotations

import hmac
import secrets
import threading
from collections.abc import Callable, Iterable
from http import HTTPStatus
from ipaddress import ip_address
from urllib.parse import parse_qs, urlsplit

from config import STREAMS, ConfigError
from http_message import Head, Request, Response
from http_sockets import EventStream, error_response, overloaded_response
from protocol import Peer, Reply

_LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
_METHODS = {"/health": "GET", "/sse": "GET", "/message": "POST"}
_OPEN_TO_ALL = "/health"  # needs no token: it tells nothing but that the service lives


class Session(EventStream):
    """One HTTP+SSE client: its stream, and what was negotiated on it."""

    def __init__(self, client_id: str, forget: Callable[[str], None]) -> None:
        self.peer = Peer()
        self._client_id = client_id
        self._forget = forget
        self._send: Callable[[bytes], None] | None = None

    def opened(self, send: Callable[[bytes], None]) -> None:
        """Name the endpoint, as a path on the same origin: clients refuse any other."""
        self._send = send
        send(f"event: endpoint\ndata: /message?clientId={self._client_id}\n\n".encode("ascii"))

    def closed(self) -> None:
        """Forget the client."""
        self._forget(self._client_id)

    def deliver(self, message: bytes) -> None:
        """Send one JSON-RPC message."""
        if self._send is not None:
            self._send(b"event: message\ndata: " + message + b"\n\n")


class HttpTransport:
    """The endpoints; an Application of http_sockets.HttpService."""

    def __init__(
        self,
        handle: Callable[[bytes, Peer], Reply],
        is_healthy: Callable[[], bool],
        host: str,
        token: str | None,
        allowed_origins: Iterable[str],
    ) -> None:
        """`host` is what the service listens on; beyond loopback it needs a token (ConfigError)."""
        if token is None and not _is_loopback(host):
            raise ConfigError(
                f"--host {host} is reachable from other machines: set MCP_TASK_TOKEN or MCP_TASK_TOKEN_FILE"
            )
        self._handle = handle
        self._is_healthy = is_healthy
        self._token = token
        self._origins = {_origin(origin) for origin in allowed_origins}
        self._host_names = _LOOPBACK_NAMES | {host.lower()} | {name for _, name, _ in self._origins}
        self._sessions: dict[str, Session] = {}
        self._lock = threading.Lock()

    # --- Before the body is read ----------------------------------------------------------------------

    def refuse(self, head: Head, local_address: str) -> Response | None:
        """Return the answer to a request that must go no further, else None."""
        if not self._is_known_host(head.header("host") or "", local_address):
            return error_response(
                HTTPStatus.FORBIDDEN, "This Host is not served here; MCP_TASK_ALLOWED_ORIGINS can add it"
            )
        if "origin" in head.headers and not self._is_known_origin(head.header("origin")):
            return error_response(
                HTTPStatus.FORBIDDEN, "This Origin is not allowed; MCP_TASK_ALLOWED_ORIGINS can add it"
            )
        if head.path != _OPEN_TO_ALL and not self._is_authorized(head):
            return error_response(
                HTTPStatus.UNAUTHORIZED,
                "Send the header Authorization: Bearer <token>",
                "WWW-Authenticate: Bearer",
            )
        return _misdirected(head)

    def _is_known_host(self, host: str, local_address: str) -> bool:
        """Accept a name served here or the very address the connection came to: neither can be rebound."""
        name = _host_name(host)
        return name is not None and (name in self._host_names or name == local_address.lower())

    def _is_known_origin(self, origin: str | None) -> bool:
        try:
            scheme, name, port = _origin(origin or "")
        except ConfigError:
            return False
        is_local = scheme in ("http", "https") and name in _LOOPBACK_NAMES
        return is_local or (scheme, name, port) in self._origins

    def _is_authorized(self, head: Head) -> bool:
        if self._token is None:
            return True
        scheme, _, given = (head.header("authorization") or "").partition(" ")
        return scheme.lower() == "bearer" and hmac.compare_digest(
            given.strip().encode("latin-1"), self._token.encode("ascii")
        )

    # --- Endpoints ------------------------------------------------------------------------------------

    def respond(self, request: Request) -> Response | EventStream:
        """Answer a request that was not refused."""
        if request.head.path == "/health":
            return self._health()
        if request.head.path == "/sse":
            return self._open_session()
        return self._take_message(request)

    def _health(self) -> Response:
        if self._is_healthy():
            return Response(HTTPStatus.OK, b'{"status": "ok"}')
        return Response(
            HTTPStatus.SERVICE_UNAVAILABLE, b'{"status": "unavailable"}', headers=("Retry-After: 1",)
        )

    def _open_session(self) -> Response | EventStream:
        client_id = secrets.token_urlsafe(24)
        with self._lock:
            if len(self._sessions) >= STREAMS:
                return overloaded_response()
            session = self._sessions[client_id] = Session(client_id, self._forget)
        return session

    def _forget(self, client_id: str) -> None:
        with self._lock:
            del self._sessions[client_id]

    def _take_message(self, request: Request) -> Response:
        """Hand a message to the dispatcher; 202 says that its answer, if any, is on the stream."""
        client_ids = parse_qs(request.head.query).get("clientId", [])
        session = self._sessions.get(client_ids[0]) if len(client_ids) == 1 else None
        if session is None:
            return error_response(
                HTTPStatus.NOT_FOUND,
                "No open stream has this clientId: GET /sse and post to the endpoint it names",
            )
        reply = self._handle(request.body, session.peer)
        if not reply.readable:
            return Response(HTTPStatus.BAD_REQUEST, reply.body)
        if reply.body:
            session.deliver(reply.body)
        return Response(HTTPStatus.ACCEPTED)


def _misdirected(head: Head) -> Response | None:
    method = _METHODS.get(head.path)
    if method is None:
        return error_response(HTTPStatus.NOT_FOUND, f"No such endpoint; there are {', '.join(_METHODS)}")
    if head.method != method:
        return error_response(HTTPStatus.METHOD_NOT_ALLOWED, f"Use {method} here", f"Allow: {method}")
    if method == "POST":
        media_type, _, parameters = (head.header("content-type") or "").lower().partition(";")
        charset = parameters.replace(" ", "").replace('"', "")
        if media_type.strip() != "application/json" or charset not in ("", "charset=utf-8"):
            return error_response(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "Send Content-Type: application/json")
    return None


def _is_loopback(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _host_name(host: str) -> str | None:
    """Return the name of a Host header without its port, in lower case; None if it is malformed."""
    try:
        parts = urlsplit(f"//{host}")
        _ = parts.port  # raises when it is none
    except ValueError:
        return None
    if parts.netloc != host or "@" in host or parts.path or parts.query or parts.fragment:
        return None
    return parts.hostname


def _origin(origin: str) -> tuple[str, str, int | None]:
    """Return the scheme, name and port of an origin; raises ConfigError for anything else, `null` too."""
    try:
        parts = urlsplit(origin)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if not parts.scheme or not parts.hostname or "@" in origin or parts.path or parts.query or parts.fragment:
        raise ConfigError(f"MCP_TASK_ALLOWED_ORIGINS: {origin!r} is not of the form scheme://host[:port]")
    return parts.scheme, parts.hostname, port
