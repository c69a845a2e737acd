"""Sockets for HTTP: who may connect, what has arrived, what still has to leave. Knows no endpoint.

Theory of operation. One thread at a time is the loop, and owns every socket: it accepts, reads, and closes.
Requests that have arrived whole it answers itself, since to hand one to another thread takes longer than
most answers. Of those that have arrived by the end of a turn, some are answered together as far as they are
quick, for the sake of one commit; what is not quick is answered by itself in the next turn. What takes
longer than SLOW_SECONDS is left to its thread, and another thread becomes the loop: the lock `_looping` is
held by whoever is the loop, and free while that one answers. Of such slow answers there are at most
SLOW_ANSWERS at a time; other requests wait for those to end. So an idle connection, keep-alive or event
stream, costs a file descriptor and some bytes, but no thread. What the loop and slow answers share of a
connection is guarded by that connection's lock; only the loop closes sockets, so that no descriptor is used
after it was given to somebody else. (This is the leader/followers pattern, but for the follower, which is
made only once the leader has been too long about an answer.)

    RECEIVING --request whole--> ANSWERING --answer--> SENDING --sent--> RECEIVING  (keep-alive)
                                                               --last--> LINGERING  (until it was read)
                                           --stream--> STREAMING                    (until the client goes)

An answer that is sent whole at once, with nothing else to do, goes straight to RECEIVING.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from enum import Enum
from functools import partial
from http import HTTPStatus
from typing import NamedTuple, Protocol

from config import (
    CONNECTIONS,
    DRAIN_SECONDS,
    IDLE_SECONDS,
    KIB,
    LINGER_SECONDS,
    QUEUED_REQUESTS,
    REQUEST_SECONDS,
    RESERVED_DESCRIPTORS,
    SLOW_ANSWERS,
    SLOW_SECONDS,
    STREAM_DEAD_SECONDS,
    STREAM_PING_SECONDS,
    STREAM_QUEUE_BYTES,
    ConfigError,
)
from errors import StoreFailure
from http_message import (
    CONTINUE,
    Head,
    HttpError,
    Request,
    Response,
    encode_response,
    encode_stream_head,
    take_head,
)
from log import say_exception

_SWEEP_SECONDS = 1.0  # how often deadlines are looked at
_LIVELY_SECONDS = 1.0  # since the last request, until nobody looks for slow answers any more
_READ_BYTES = 64 * KIB
_PIPELINED_BYTES = 256 * KIB  # what a client may send ahead while its request is being answered
_ACCEPTED_AT_ONCE = 128
_GATHERING_SECONDS = 0.5  # until those that have gathered go on, though a group is not answered yet
_ANSWERED_TOGETHER = 32  # requests; more wait a turn, so that the first need not wait for all
_TURNED_AWAY = 32  # connections that may be told at one time that there are too many
_OUT_OF_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_PING = b":\n\n"  # a comment, which every event stream parser ignores


class EventStream(Protocol):
    """An answer that goes on: the application's end of an event stream."""

    def opened(self, send: Callable[[bytes], None]) -> None:
        """Start: `send` takes bytes of the stream from any thread, without waiting."""

    def closed(self) -> None:
        """Stop: the client is gone or was dropped. Called once, whether or not it was opened."""


class LateResponse:
    """A response that is not there yet: its request holds a connection meanwhile, but no thread.

    `on_gone` is called if the client goes before it was answered.
    """

    def __init__(self, on_gone: Callable[[], None]) -> None:
        self.on_gone = on_gone
        self._lock = threading.Lock()
        self._response: Response | None = None
        self._deliver: Callable[[Response], None] | None = None

    def complete(self, response: Response) -> None:
        """Give the response, once, from any thread."""
        with self._lock:
            self._response = response
            deliver = self._deliver
        if deliver is not None:
            deliver(response)

    def start(self, deliver: Callable[[Response], None]) -> None:
        """Have the response delivered as soon as it is there, which may be now."""
        with self._lock:
            self._deliver = deliver
            response = self._response
        if response is not None:
            deliver(response)


class Application(Protocol):
    """What a service serves."""

    def refuse(self, head: Head, local_address: str) -> Response | None:
        """Return the answer to a request that is refused before its body is read, else None."""

    def is_urgent(self, head: Head) -> bool:
        """Return whether a request must not wait behind slow answers."""

    def respond(self, request: Request) -> Response | LateResponse | EventStream:
        """Answer a request; called by several threads at once. Raises StoreFailure to end the service."""

    def respond_together(self, requests: Sequence[Request]) -> Sequence[Response | None]:
        """Answer requests that came at the same time, as far as that is quick; None: to be answered alone."""

    def stopping(self) -> None:
        """Take note that the service ends: what is sent to streams now is the last."""


class State(Enum):
    """What a connection is doing; see the diagram above."""

    RECEIVING = "receiving"
    ANSWERING = "answering"
    SENDING = "sending"
    STREAMING = "streaming"
    LINGERING = "lingering"
    CLOSED = "closed"


class Connection:
    """One client. `deadline` (time.monotonic) is when the present state has lasted long enough."""

    __slots__ = (
        "deadline", "has_ended", "head", "inbox", "is_last", "is_paused", "late", "lock", "outbox", "socket",
        "state", "stream", "watched",
    )  # fmt: skip

    def __init__(self, client: socket.socket) -> None:
        self.socket = client
        self.lock = threading.Lock()
        self.state = State.RECEIVING
        self.inbox = bytearray()
        self.outbox = bytearray()
        self.head: Head | None = None
        self.stream: EventStream | None = None
        self.late: LateResponse | None = None
        self.is_last = False  # the answer under way is the last one on this connection
        self.is_paused = False  # nothing is read for the moment
        self.watched = 0  # the selector's events that are registered
        self.has_ended = False  # the client will send no more
        self.deadline = time.monotonic() + IDLE_SECONDS


class _Asked(NamedTuple):
    """A request that has arrived whole, and the connection that wants the answer."""

    connection: Connection
    request: Request


class _Relieved(BaseException):
    """Another thread has become the loop: this one must leave everything as it is."""


class HttpService:
    """A listening socket and everything that comes of it."""

    def __init__(self, application: Application, listener: socket.socket) -> None:
        """Serve `application` to whoever connects to `listener`."""
        self._application = application
        self._listener = listener
        self.url = _url(self._listener)
        self._selector = selectors.DefaultSelector()
        self._connections: set[Connection] = set()
        self._looping = threading.Lock()  # held by the loop
        self._answering_since: float | None = None  # time.monotonic; None while the loop answers nothing
        self._last_request = 0.0
        self._is_lively = False  # requests came not long ago
        self._crowd = threading.Lock()  # guards the next two
        self._slow = 0  # answers that hold a thread which is not the loop, or may come to
        self._waiting: deque[_Asked] = deque()  # for one of those to end
        self._most_connections = _allowed_connections()
        self._calls: deque[Callable[[], None]] = deque()  # for the loop, from other threads
        self._arrived: deque[_Asked] = deque()  # to be answered by the loop
        self._grouping_since: float | None = None  # time.monotonic; None while none are answered together
        self._wake_end, self._woken_end = socket.socketpair()
        self._watcher_woken, self._watcher_wake = os.pipe()  # for the thread that watches the loop
        self._failure: StoreFailure | None = None
        self._is_stopping = False
        self._is_accepting = False
        self._is_told = False  # the application, that the service ends

    def run(self) -> bool:
        """Serve until `stop`; returns whether all requests in hand were answered in DRAIN_SECONDS.

        Raises StoreFailure when the application did.
        """
        self._woken_end.setblocking(False)
        self._wake_end.setblocking(False)
        self._selector.register(self._woken_end, selectors.EVENT_READ)
        self._set_accepting(True)
        self._looping.acquire()
        self._start_loop()
        self._watch_loop()
        self._looping.acquire()
        return self._drain()

    def stop(self) -> None:
        """Make `run` end; may be called from any thread and from signal handlers."""
        self._is_stopping = True
        self._wake()
        os.write(self._watcher_wake, b"!")

    # --- Who is the loop ------------------------------------------------------------------------------

    def _start_loop(self) -> None:
        """Have a new thread be the loop, for which `_looping` is held already."""
        threading.Thread(target=self._loop, name="loop", daemon=True).start()

    def _loop(self) -> None:
        next_sweep = 0.0
        try:
            while not self._is_stopping:
                self._turn(_SWEEP_SECONDS)
                if (now := time.monotonic()) >= next_sweep:
                    next_sweep = now + _SWEEP_SECONDS
                    self._sweep(now)
        except _Relieved:
            self._help_out()
            return
        except Exception:
            say_exception()
            self._failure = StoreFailure("the HTTP service came upon an error of its own")
            self.stop()
        self._looping.release()

    def _watch_loop(self) -> None:
        """Relieve the loop of slow answers, until the service ends; costs nothing while nobody asks."""
        while not self._is_stopping:
            if self._is_lively:
                time.sleep(SLOW_SECONDS)
            else:
                os.read(self._watcher_woken, 1)
            now, since = time.monotonic(), self._answering_since
            if since is None:
                self._is_lively = now < self._last_request + _LIVELY_SECONDS
                # A request that came in this very moment has woken nobody, if it still found us lively.
                self._is_lively = self._is_lively or self._answering_since is not None
            elif now >= since + SLOW_SECONDS and self._looping.acquire(blocking=False):
                self._answering_since = None
                try:
                    self._start_loop()
                except RuntimeError:  # no more threads are to be had: the loop must finish its answer
                    self._looping.release()

    def _answer_as_loop(self, answer: Callable[[], None]) -> None:
        """Call `answer`; raises _Relieved if another thread has become the loop meanwhile."""
        self._last_request = self._answering_since = time.monotonic()
        if not self._is_lively:
            self._is_lively = True
            os.write(self._watcher_wake, b"!")
        with self._crowd:
            self._slow += 1
        self._looping.release()  # from here on another thread may become the loop
        answer()
        if not self._looping.acquire(blocking=False):
            raise _Relieved
        self._answering_since = None
        with self._crowd:
            self._slow -= 1

    def _help_out(self) -> None:
        """After a slow answer: see to those who wait for one to end."""
        while True:
            with self._crowd:
                if not self._waiting or self._slow > SLOW_ANSWERS:
                    self._slow -= 1
                    return
                connection, request = self._waiting.popleft()
            self._answer_request(connection, request)

    # --- The loop -------------------------------------------------------------------------------------

    def _turn(self, seconds: float) -> None:
        # Calls and requests may be left: from a loop that was relieved, or more than one turn answers.
        is_due = self._calls or (self._arrived and not self._is_gathering())
        for key, events in self._selector.select(0 if is_due else seconds):
            if isinstance(key.data, Connection):
                if events & selectors.EVENT_WRITE:
                    self._flush(key.data)
                if events & selectors.EVENT_READ:
                    self._receive(key.data)
            elif key.fileobj is self._listener:
                self._accept()
            else:
                _empty(self._woken_end)
        for _ in range(len(self._calls)):  # those that these bring forth wait until others had their turn
            if self._calls:  # another thread may have been the loop for a while
                self._calls.popleft()()
        if self._arrived and not self._is_gathering():
            self._answer_arrived()

    def _is_gathering(self) -> bool:
        """Return whether requests gather while some are answered: most would wait for those anyway."""
        since = self._grouping_since
        return since is not None and time.monotonic() < since + _GATHERING_SECONDS

    def _answer_arrived(self) -> None:
        """Answer requests that wait for it, if nothing else has come in their way."""
        together = [self._arrived.popleft() for _ in range(min(len(self._arrived), _ANSWERED_TOGETHER))]
        if self._is_stopping:  # nobody would relieve this thread, and it must stay the loop
            threading.Thread(target=self._answer_together, args=(together,), daemon=True).start()
        elif self._slow >= SLOW_ANSWERS:  # since they arrived
            for asked in together:
                self._calls.append(partial(self._take_up, asked, self._answer_alone))
        elif len(together) == 1:
            self._answer_alone(together[0])
        else:
            self._grouping_since = time.monotonic()
            self._answer_as_loop(partial(self._answer_together, together))

    def _accept(self) -> None:
        for _ in range(_ACCEPTED_AT_ONCE):
            if self._surplus() >= _TURNED_AWAY:  # who comes next is told once one of these has gone
                self._set_accepting(False)
                return
            try:
                client, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _OUT_OF_RESOURCES:  # tried again once a connection has gone
                    self._set_accepting(False)
                return
            self._admit(client)
            if self._surplus() > 0:
                return  # first see who has left, before more are turned away

    def _surplus(self) -> int:
        """Return how many connections there are beyond those that are served."""
        return len(self._connections) - self._most_connections

    def _admit(self, client: socket.socket) -> None:
        client.setblocking(False)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = Connection(client)
        self._connections.add(connection)
        self._watch(connection)
        if self._surplus() > 0:
            self._refuse(connection, overloaded_response())

    def _receive(self, connection: Connection) -> None:
        try:
            chunk = connection.socket.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            self._close(connection)
            return
        if not chunk:
            self._receive_end(connection)
            return
        with connection.lock:
            if connection.state in (State.STREAMING, State.LINGERING):
                return  # nothing that is sent now is asked for
            is_receiving = connection.state is State.RECEIVING
            if is_receiving and not connection.inbox and connection.head is None:
                connection.deadline = time.monotonic() + REQUEST_SECONDS
            connection.inbox += chunk
        if is_receiving:
            self._advance(connection)
        elif len(connection.inbox) > _PIPELINED_BYTES:
            self._set_paused(connection, True)

    def _receive_end(self, connection: Connection) -> None:
        """Note that the client will send no more; it may still be waiting for the answer."""
        with connection.lock:
            is_answering = connection.state is State.ANSWERING and connection.late is None
            is_waiting = is_answering or connection.state is State.SENDING
            connection.has_ended = True
        if is_waiting:
            self._set_paused(connection, True)
        else:
            self._close(connection)

    def _advance(self, connection: Connection) -> None:
        """Make what has arrived into a request, if it is whole, and answer it, refuse it or have it wait."""
        try:
            if connection.head is None and not self._take_head(connection):
                return
        except HttpError as error:
            self._refuse(connection, error_response(error.status, str(error)))
            return
        head = connection.head
        if head is None or len(connection.inbox) < head.content_length:
            return
        body = bytes(connection.inbox[: head.content_length])
        del connection.inbox[: head.content_length]
        connection.head = None
        connection.state = State.ANSWERING
        connection.is_last = not head.keep_alive
        connection.deadline = float("inf")
        asked = _Asked(connection, Request(head, body))
        if self._application.is_urgent(head):  # it must not wait for those that it came with
            self._calls.append(partial(self._take_up, asked, self._answer_alone))
        else:
            self._take_up(asked, self._arrived.append)

    def _take_up(self, asked: _Asked, go_on: Callable[[_Asked], None]) -> None:
        """Let `go_on` have a request, unless slow answers are so many that it must wait, or be refused."""
        is_urgent = self._application.is_urgent(asked.request.head)
        is_crowded = self._slow >= SLOW_ANSWERS + is_urgent  # there is a place for one of those
        if self._is_stopping:  # nobody would relieve this thread
            threading.Thread(target=self._answer_request, args=asked, daemon=True).start()
        elif is_crowded and len(self._waiting) >= QUEUED_REQUESTS:
            asked.connection.is_last = True
            self._deliver(*asked, overloaded_response())
        elif not is_crowded or not self._has_queued(asked, is_urgent):
            go_on(asked)

    def _has_queued(self, asked: _Asked, is_urgent: bool) -> bool:
        """Leave a request to the slow answers; False if there is none left that would see to it."""
        with self._crowd:
            if self._slow == 0:
                return False
            enqueue = self._waiting.appendleft if is_urgent else self._waiting.append
            enqueue(asked)
            return True

    def _take_head(self, connection: Connection) -> bool:
        head = take_head(connection.inbox)
        if head is None:
            return False
        connection.head = head
        refusal = self._application.refuse(head, connection.socket.getsockname()[0])
        if refusal is not None:
            self._refuse(connection, refusal)
            return False
        if head.wants_continue and len(connection.inbox) < head.content_length:
            self._send(connection, CONTINUE)
        return True

    def _refuse(self, connection: Connection, response: Response) -> None:
        """Answer from the loop, and make it the last answer: what follows on the wire is unknown."""
        method = "GET" if connection.head is None else connection.head.method
        connection.head = None
        connection.is_last = True
        connection.state = State.SENDING
        self._send(connection, encode_response(response, True, method))
        self._finish(connection)

    def _flush(self, connection: Connection) -> None:
        with connection.lock:
            try:
                del connection.outbox[: connection.socket.send(connection.outbox)]
            except BlockingIOError:
                return
            except OSError:
                is_broken = True
            else:
                is_broken = False
            is_done = not connection.outbox
        if is_broken:
            self._close(connection)
        elif is_done:
            self._watch(connection)
            self._finish(connection)

    def _finish(self, connection: Connection) -> None:
        """Go on to what comes after an answer, once all of it was sent; before that, see that it will be."""
        if connection.state is not State.SENDING:
            return
        if connection.outbox:
            connection.deadline = time.monotonic() + REQUEST_SECONDS
            self._watch(connection)
        elif connection.is_last or self._is_stopping:
            self._linger(connection)
        else:
            connection.state = State.RECEIVING
            connection.deadline = time.monotonic() + (REQUEST_SECONDS if connection.inbox else IDLE_SECONDS)
            self._set_paused(connection, connection.has_ended)
            if connection.inbox:
                self._advance(connection)
            if connection.has_ended and connection.state is State.RECEIVING:
                self._linger(connection)  # all that came was answered

    def _linger(self, connection: Connection) -> None:
        """Close once the client has: closing over unread input would take the answer back (RST)."""
        connection.state = State.LINGERING
        connection.deadline = time.monotonic() + LINGER_SECONDS
        try:
            connection.socket.shutdown(socket.SHUT_WR)
        except OSError:
            self._close(connection)
            return
        if connection.has_ended:
            self._close(connection)
        else:
            self._set_paused(connection, False)

    def _close(self, connection: Connection) -> None:
        with connection.lock:
            if connection.state is State.CLOSED:
                return
            connection.state = State.CLOSED
            connection.outbox.clear()
            if connection.watched:
                self._selector.unregister(connection.socket)
            connection.socket.close()
        self._connections.discard(connection)
        if not self._is_stopping:
            self._set_accepting(True)
        if connection.stream is not None:
            connection.stream.closed()
        if connection.late is not None:
            connection.late.on_gone()

    def _sweep(self, now: float) -> None:
        self._set_accepting(True)
        for connection in [one for one in self._connections if one.deadline <= now]:
            if connection.state is State.STREAMING:
                connection.deadline = now + STREAM_PING_SECONDS
                self._send(connection, _PING)
            elif connection.state is State.RECEIVING and (connection.inbox or connection.head):
                message = f"The request took longer than {REQUEST_SECONDS:.0f} seconds to arrive"
                self._refuse(connection, error_response(HTTPStatus.REQUEST_TIMEOUT, message))
            else:
                self._close(connection)

    def _drain(self) -> bool:
        """Answer what is in hand; streams end last, since answers still travel on them."""
        self._set_accepting(False)
        self._listener.close()
        deadline = time.monotonic() + DRAIN_SECONDS
        # What is said then may wait for the database, and the process must not.
        threading.Thread(target=self._tell_application, name="stopping", daemon=True).start()
        while (
            (is_busy := not self._is_told or self._is_answering())
            and time.monotonic() < deadline
            and not self._failure
        ):
            self._turn(0.05)
        for connection in list(self._connections):
            self._close(connection)
        if self._failure is not None:
            raise self._failure
        return not is_busy

    def _tell_application(self) -> None:
        try:
            self._application.stopping()
        except StoreFailure as failure:
            self._failure = self._failure or failure  # the first says why, the others only that
        except Exception:
            say_exception()
        self._is_told = True
        self._wake()

    def _is_answering(self) -> bool:
        return any(one.state in (State.ANSWERING, State.SENDING) or one.outbox for one in self._connections)

    # --- The selector ---------------------------------------------------------------------------------

    def _watch(self, connection: Connection) -> None:
        """Tell the selector what this connection waits for now, which may be nothing."""
        if connection.state is State.CLOSED:
            return
        reads = 0 if connection.is_paused else selectors.EVENT_READ
        events = reads | (selectors.EVENT_WRITE if connection.outbox else 0)
        if events == connection.watched:
            return
        if not connection.watched:
            self._selector.register(connection.socket, events, connection)
        elif not events:
            self._selector.unregister(connection.socket)
        else:
            self._selector.modify(connection.socket, events, connection)
        connection.watched = events

    def _set_paused(self, connection: Connection, is_paused: bool) -> None:
        connection.is_paused = is_paused
        self._watch(connection)

    def _set_accepting(self, is_accepting: bool) -> None:
        if self._is_accepting is is_accepting:
            return
        self._is_accepting = is_accepting
        if is_accepting:
            self._selector.register(self._listener, selectors.EVENT_READ)
        else:
            self._selector.unregister(self._listener)

    # --- Answers, and what any thread may call --------------------------------------------------------

    def _answer_together(self, together: list[_Asked]) -> None:
        """Answer requests, and leave those to the loop that are to be answered alone."""
        answers: Sequence[Response | None] = [None] * len(together)
        try:
            answers = self._application.respond_together([request for _, request in together])
        except StoreFailure as failure:
            self._end_by(failure)
            return
        except Exception:
            say_exception()
        finally:
            self._grouping_since = None
        for asked, answer in zip(together, answers, strict=True):
            if answer is not None:
                self._deliver(*asked, answer)
            else:
                self._call(partial(self._take_up, asked, self._answer_alone))
        if self._arrived:
            self._wake()

    def _answer_alone(self, asked: _Asked) -> None:
        self._answer_as_loop(partial(self._answer_request, *asked))

    def _answer_request(self, connection: Connection, request: Request) -> None:
        answer: Response | LateResponse | EventStream
        try:
            answer = self._application.respond(request)
        except StoreFailure as failure:
            self._end_by(failure)
            return
        except Exception:
            say_exception()
            answer = error_response(HTTPStatus.INTERNAL_SERVER_ERROR, "Internal error; the log says more")
        self._deliver(connection, request, answer)

    def _end_by(self, failure: StoreFailure) -> None:
        self._failure = self._failure or failure  # the first says why, the others only that
        self.stop()

    def _deliver(
        self, connection: Connection, request: Request, answer: Response | LateResponse | EventStream
    ) -> None:
        try:
            if isinstance(answer, Response):
                self._answer(connection, request.head, answer)
            elif isinstance(answer, LateResponse):
                self._answer_later(connection, request.head, answer)
            else:
                self._start_stream(connection, answer)
        except Exception:
            say_exception()
            self._call(lambda: self._close(connection))

    def _answer(self, connection: Connection, head: Head, response: Response) -> None:
        connection.late = None
        connection.is_last = connection.is_last or self._is_stopping
        data = encode_response(response, connection.is_last, head.method)
        with connection.lock:
            is_gone = connection.state is not State.ANSWERING or not self._send_now(connection, data)
            is_waiting = bool(connection.outbox)
        if is_waiting:
            self._call(lambda: self._watch(connection))
        if response.then is not None:
            response.then()
        if is_gone:
            self._call(lambda: self._close(connection))
        else:
            self._end_answer(connection)

    def _end_answer(self, connection: Connection) -> None:
        with connection.lock:
            if connection.state is not State.ANSWERING:
                return  # closed meanwhile
            needs_loop = bool(
                connection.inbox
                or connection.outbox
                or connection.is_last
                or connection.has_ended
                or connection.is_paused
            )
            # From here on the next request may be on its way: nothing of this one comes after it.
            connection.state = State.SENDING if needs_loop else State.RECEIVING
            connection.deadline = time.monotonic() + (REQUEST_SECONDS if needs_loop else IDLE_SECONDS)
        if needs_loop:
            self._call(lambda: self._finish(connection))

    def _answer_later(self, connection: Connection, head: Head, late: LateResponse) -> None:
        with connection.lock:
            is_gone = connection.state is State.CLOSED or connection.has_ended
            connection.late = None if is_gone else late
        if is_gone:
            late.on_gone()
            self._call(lambda: self._close(connection))
        else:
            late.start(lambda response: self._answer(connection, head, response))

    def _start_stream(self, connection: Connection, stream: EventStream) -> None:
        with connection.lock:
            is_gone = connection.state is State.CLOSED or connection.has_ended
            if not is_gone:
                connection.state = State.STREAMING
                connection.stream = stream
                connection.deadline = time.monotonic() + STREAM_PING_SECONDS
                _notice_dead_client(connection.socket)
        if is_gone:
            stream.closed()
            self._call(lambda: self._close(connection))
            return
        self._send(connection, encode_stream_head())
        stream.opened(lambda data: self._send(connection, data))

    def _send(self, connection: Connection, data: bytes) -> None:
        """Send now what the client takes now, and keep the rest, within bounds, for the loop to send."""
        with connection.lock:
            if connection.state is State.CLOSED:
                return
            was_waiting = bool(connection.outbox)
            is_dropped = (
                connection.state is State.STREAMING and len(connection.outbox) > STREAM_QUEUE_BYTES
            ) or not self._send_now(connection, data)
            is_waiting = bool(connection.outbox) and not was_waiting
        if is_dropped:
            self._call(lambda: self._close(connection))
        elif is_waiting:
            self._call(lambda: self._watch(connection))

    @staticmethod
    def _send_now(connection: Connection, data: bytes) -> bool:
        """Send, with the connection's lock held; returns False if the connection is broken."""
        sent = 0
        if not connection.outbox:
            try:
                sent = connection.socket.send(data)
            except BlockingIOError:
                pass
            except OSError:
                return False
        connection.outbox += memoryview(data)[sent:]
        return True

    def _call(self, call: Callable[[], None]) -> None:
        """Have the loop do something: only it may touch the selector and close sockets."""
        self._calls.append(call)
        self._wake()

    def _wake(self) -> None:
        try:
            self._wake_end.send(b"!")
        except BlockingIOError:
            pass  # it will wake up from what is already there


def error_response(status: HTTPStatus, message: str, *headers: str) -> Response:
    """Return a refusal that says in a sentence what was wrong; `headers` are whole header lines."""
    return Response(status, json.dumps({"error": message}).encode("ascii"), headers=headers)


def overloaded_response() -> Response:
    """Return the answer of a service that is full: 503, to be repeated in a second."""
    message = "The server is at its limit of connections or requests; try again"
    return error_response(HTTPStatus.SERVICE_UNAVAILABLE, message, "Retry-After: 1")


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens on `host`:`port` (0: any free port); raises ConfigError."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.create_server(address[:2], family=family, backlog=1024)
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"cannot listen on {host} port {port}: {error}") from None
    listener.setblocking(False)
    return listener


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _notice_dead_client(client: socket.socket) -> None:
    """Let the kernel give up on a peer that acknowledges nothing: a cable, not a close."""
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        milliseconds = int(STREAM_DEAD_SECONDS * 1000)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)


def _empty(woken_end: socket.socket) -> None:
    try:
        while woken_end.recv(4096):
            pass
    except BlockingIOError:
        pass


def _allowed_connections() -> int:
    """Return how many connections there may be: as many as wanted, if open files are allowed for them.

    Raises the soft limit of open files as far as the hard one allows; some are kept for the store.
    """
    wanted = CONNECTIONS + RESERVED_DESCRIPTORS
    most = wanted
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        except OSError:
            most = soft  # a sandbox forbids it: what was allowed before still is
    return min(CONNECTIONS, most - min(RESERVED_DESCRIPTORS, most // 2))
