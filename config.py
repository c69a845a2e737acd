"""Settings from the environment, and every limit by name.

No setting is read from the environment elsewhere, and every limit that a caller can meet is named here.
Relative paths resolve against `MCP_TASK_BASE_DIR`, never against the working directory: each MCP client
starts the server somewhere else, and all of them must meet in one database.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from origins import Origin

SERVER_NAME = "mcp-task-server"
SERVER_TITLE = "MCP Task Server"
SERVER_VERSION = "1.0.0"

KIB = 1024
MIB = 1024 * KIB

# --- What a caller may send ---------------------------------------------------------------------------
MESSAGE_BYTES = 8 * MIB  # one JSON-RPC message, on every transport
JSON_DEPTH = 64  # arrays and objects inside one another
BATCH_MESSAGES = 50
BATCH_ANSWER_BYTES = 16 * MIB  # what follows in a batch is refused: ask for it alone
ID_CHARACTERS = 128  # task ids and agent names
TITLE_CHARACTERS = 300  # titles come back with every acknowledgement
PATH_CHARACTERS = 4096
ARTIFACT_NAME_CHARACTERS = 255
QUERY_CHARACTERS = 1000
TAG_CHARACTERS = 64
TAGS = 20  # of one task
DEPENDENCIES = 100  # of one task
CLAIM_WAIT_SECONDS = 50  # claim_task; most clients give up on a call after 60
BRIEF_CHARACTERS_MIN = 1000
BRIEF_CHARACTERS_MAX = 100_000
WATCHED_URIS = 1000  # one subscription
TEXT_BYTES = 256 * KIB  # one text field or list entry, as UTF-8
LIST_ENTRIES = 1000  # one list argument
ARTIFACT_BYTES = 64 * MIB  # by path; by content the message limit is the smaller one

# --- What is answered together ------------------------------------------------------------------------
GROUPED_BYTES = 64 * KIB  # a larger message, or a call for a larger task, is answered alone

# --- What a task may hold -----------------------------------------------------------------------------
MERGED_LIST_ENTRIES = 10_000  # a list that checkpoints append to
TASK_ARTIFACTS = 1000
HANDOFFS_KEPT = 20  # shown with the task; the event log keeps all

# --- What one answer holds ----------------------------------------------------------------------------
BRIEF_CHARACTERS = 6000  # the resume brief, as JSON text
HISTORY_PAGE = 50
TASKS_PAGE = 20
TASKS_PAGE_MAX = 100
RESOURCES_PAGE = 100
COMPLETIONS = 100
ARTIFACT_CHUNK_BYTES = 32 * KIB  # get_task with `artifact`
RESOURCE_BYTES = 8 * MIB  # resources/read of one artifact

# --- Time, in seconds ---------------------------------------------------------------------------------
BUSY_SECONDS = 30.0  # waiting for other writers before the tool error `busy`
POLL_SECONDS = 0.1  # looking for changes of other processes, while somebody listens
LIVENESS_SECONDS = 1.0  # looking for owners that died, while somebody waits for a task
GIT_SECONDS = 2.0  # all calls of git for one answer
GIT_SECONDS_AT_EXIT = 0.5
QUIET_SECONDS = 0.03  # STDIO: without a message, until what the first call needs is loaded ahead of it
CLOSE_SECONDS = 0.5  # for the statement in hand, when the process ends
HEALTH_SECONDS = 2.0  # the database must answer /health within
STOP_SECONDS = 1.5  # STDIO: from the signal to the exit, commit in hand included
DRAIN_SECONDS = 4.0  # HTTP: from SIGTERM until what is still running is cut off
REQUEST_SECONDS = 30.0  # HTTP: from a request's first byte to its last, and for an answer to be taken
IDLE_SECONDS = 300.0  # HTTP: a keep-alive connection between requests
LINGER_SECONDS = 2.0  # HTTP: for the client to read the last answer before the connection is closed
STREAM_PING_SECONDS = 12.0  # SSE: comment lines, which is also how a dead client is noticed
STREAM_DEAD_SECONDS = 15.0  # SSE: bytes not acknowledged for so long mean that the client is gone

# --- HTTP ---------------------------------------------------------------------------------------------
HEADER_BYTES = 32 * KIB
CONNECTIONS = 8192
RESERVED_DESCRIPTORS = 64  # open files that clients can never take from the store
STREAMS = 6000
SLOW_SECONDS = 0.005  # for an answer, until another thread attends to the other clients
SLOW_ANSWERS = 8  # that take longer than that, at a time
QUEUED_REQUESTS = 1024
STREAM_QUEUE_BYTES = 4 * MIB  # what a slow reader may leave unread before it is dropped

DEFAULT_PORT = 8766
DEFAULT_AGENT_IDLE_SECONDS = 1800
MAX_TOKEN_FILE_BYTES = 64 * KIB
_HERE = os.path.dirname(os.path.abspath(__file__))


class ConfigError(Exception):
    """A setting that cannot be used; its text is one line that names the variable and the way out."""


class Settings(NamedTuple):
    """Everything that the environment decides. Paths are absolute; the port is a number."""

    db_path: str
    artifacts_dir: str
    port: int
    debug: bool
    token: str | None
    allowed_origins: tuple[Origin, ...]
    attach_roots: tuple[str, ...]
    agent_idle_seconds: int
    on_handoff: tuple[str, ...]


def load_settings(environ: Mapping[str, str], working_dir: str) -> Settings:
    """Read the variables that the README lists.

    An empty one counts as unset, but for MCP_TASK_ATTACH_ROOTS, where it means that there are none.
    `working_dir` is where the client started the server, the default root for artifacts by path; "" if
    that folder is gone. Raises ConfigError for a value that cannot be used.
    """
    base_dir = os.path.abspath(_path(environ.get("MCP_TASK_BASE_DIR") or _HERE, _HERE))
    return Settings(
        db_path=_path(environ.get("MCP_TASK_DB_PATH") or "tasks.db", base_dir),
        artifacts_dir=_path(environ.get("MCP_TASK_ARTIFACTS_DIR") or "artifacts", base_dir),
        port=parse_port(environ.get("MCP_TASK_PORT") or str(DEFAULT_PORT), "MCP_TASK_PORT"),
        debug=environ.get("MCP_DEBUG", "").strip().lower() not in ("", "0", "false", "no", "off"),
        token=_token(environ, base_dir),
        allowed_origins=_origins(environ, "MCP_TASK_ALLOWED_ORIGINS"),
        attach_roots=_attach_roots(environ, base_dir, working_dir),
        agent_idle_seconds=_seconds(environ, "MCP_TASK_IDLE_SECONDS", DEFAULT_AGENT_IDLE_SECONDS),
        on_handoff=_command(environ, "MCP_TASK_ON_HANDOFF"),
    )


def parse_port(text: str, source: str) -> int:
    """Return the TCP port in `text`, 0 to 65535 (0 lets the system choose); raise ConfigError."""
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and int(text) <= 65535):
        raise ConfigError(f"{source} is {text!r}: it must be a port number from 0 to 65535")
    return int(text)


def make_folder(path: str, source: str) -> None:
    """Make the folder `path`, private to this user, with its parents, durably; raise ConfigError.

    A folder whose entry in its parent were lost with the power would be rows without their files.
    """
    if os.path.isdir(path):
        return
    parent = os.path.dirname(path)
    make_folder(parent, source)
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        if not os.path.isdir(path):  # else another process was faster
            raise ConfigError(f"{source}: {path} is a file, not a folder") from None
    except OSError as error:
        raise ConfigError(f"{source}: the folder {path} cannot be made: {error.strerror}") from None
    _sync_folder(parent)


def _sync_folder(path: str) -> None:
    try:
        folder = os.open(path, os.O_RDONLY)
    except OSError:
        return  # not ours to read; whoever made it saw to it
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _path(text: str, base_dir: str) -> str:
    if "\0" in text:
        raise ConfigError("a path in MCP_TASK_* holds a NUL character")
    return os.path.normpath(os.path.join(base_dir, os.path.expanduser(text)))


def _origins(environ: Mapping[str, str], name: str) -> tuple[Origin, ...]:
    texts = environ.get(name, "").replace(",", " ").split()
    if not texts:
        return ()
    from origins import parse_origin

    origins = []
    for text in texts:
        origin = parse_origin(text)
        if origin is None:
            raise ConfigError(f"{name}: {text!r} is not of the form scheme://host[:port]")
        origins.append(origin)
    return tuple(origins)


def _seconds(environ: Mapping[str, str], name: str, default: int) -> int:
    text = environ.get(name) or str(default)
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and int(text) > 0):
        raise ConfigError(f"{name} is {text!r}: it must be a number of seconds, 1 or more")
    return int(text)


def _command(environ: Mapping[str, str], name: str) -> tuple[str, ...]:
    text = environ.get(name)
    if not text:
        return ()
    import shlex

    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise ConfigError(f"{name} cannot be split into words: {error}") from None


def _token(environ: Mapping[str, str], base_dir: str) -> str | None:
    token = environ.get("MCP_TASK_TOKEN", "").strip()
    path = environ.get("MCP_TASK_TOKEN_FILE")
    if not token and path:
        try:
            with open(_path(path, base_dir), encoding="ascii") as file:
                token = file.read(MAX_TOKEN_FILE_BYTES + 1).strip()
        except (OSError, UnicodeDecodeError):
            raise ConfigError(f"MCP_TASK_TOKEN_FILE: {path} cannot be read as ASCII text") from None
        if not token or len(token) > MAX_TOKEN_FILE_BYTES:
            raise ConfigError(f"MCP_TASK_TOKEN_FILE: {path} must hold 1 to {MAX_TOKEN_FILE_BYTES} bytes")
    if not all("!" <= character <= "~" for character in token):
        raise ConfigError("the token must be visible ASCII characters without blanks")
    return token or None


def _attach_roots(environ: Mapping[str, str], base_dir: str, working_dir: str) -> tuple[str, ...]:
    """Folders whose files may be attached by path: what is configured, or else the working directory.

    A client that starts its servers in `/` or the home directory would open everything, so these do
    not count as a default; naming them in MCP_TASK_ATTACH_ROOTS is the user's own decision.
    """
    named = environ.get("MCP_TASK_ATTACH_ROOTS")
    if named is not None:
        roots = [_path(root, base_dir) for root in named.split(os.pathsep) if root.strip()]
        return tuple(os.path.realpath(root) for root in roots)
    if not working_dir:
        return ()
    root = os.path.realpath(working_dir)
    too_wide = {os.path.realpath(os.path.expanduser("~")), os.path.realpath(os.sep)}
    return () if root in too_wide else (root,)
