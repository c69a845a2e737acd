"""Settings from the environment, and every limit by name.

Nothing else in the project reads `os.environ`, and no limit stands as a bare number elsewhere. Relative
paths resolve against `MCP_TASK_BASE_DIR`, never against the working directory: each MCP client starts
the server somewhere else, and all of them must meet in one database.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

SERVER_NAME = "mcp-task-server"
SERVER_TITLE = "MCP Task Server"
SERVER_VERSION = "1.0.0"

KIB = 1024
MIB = 1024 * KIB

# --- What a caller may send ---------------------------------------------------------------------------
MESSAGE_BYTES = 8 * MIB  # one JSON-RPC message, on every transport
JSON_DEPTH = 64  # arrays and objects inside one another
BATCH_MESSAGES = 50
ID_CHARACTERS = 128  # task ids and agent names
TITLE_CHARACTERS = 300  # titles come back with every acknowledgement
PATH_CHARACTERS = 4096
ARTIFACT_NAME_CHARACTERS = 255
QUERY_CHARACTERS = 1000
TEXT_BYTES = 256 * KIB  # one text field or list entry, as UTF-8
LIST_ENTRIES = 1000  # one list argument
ARTIFACT_BYTES = 64 * MIB  # by path; by content the message limit is the smaller one

# --- What a task may hold -----------------------------------------------------------------------------
MERGED_LIST_ENTRIES = 10_000  # a list that checkpoints append to
TASK_ARTIFACTS = 1000
HANDOFFS_KEPT = 20  # shown with the task; the event log keeps all

# --- What one answer holds ----------------------------------------------------------------------------
TASKS_PAGE = 20
TASKS_PAGE_MAX = 100
RESOURCES_PAGE = 100
ARTIFACT_CHUNK_BYTES = 32 * KIB  # get_task with `artifact`
RESOURCE_BYTES = 8 * MIB  # resources/read of one artifact

# --- Time, in seconds ---------------------------------------------------------------------------------
BUSY_SECONDS = 30.0  # waiting for other writers before the tool error `busy`
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
STREAMS = 6000
WORKERS = 8
QUEUED_REQUESTS = 1024
STREAM_QUEUE_BYTES = 4 * MIB  # what a slow reader may leave unread before it is dropped

DEFAULT_PORT = 8766
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
    allowed_origins: tuple[str, ...]
    attach_roots: tuple[str, ...]


def load_settings(environ: Mapping[str, str], working_dir: str) -> Settings:
    """Read the variables of design section 7; an empty one counts as unset.

    `working_dir` is where the client started the server: the default root for artifacts by path.
    Raises ConfigError for a value that cannot be used.
    """
    base_dir = os.path.abspath(_path(environ.get("MCP_TASK_BASE_DIR") or _HERE, _HERE))
    return Settings(
        db_path=_path(environ.get("MCP_TASK_DB_PATH") or "tasks.db", base_dir),
        artifacts_dir=_path(environ.get("MCP_TASK_ARTIFACTS_DIR") or "artifacts", base_dir),
        port=parse_port(environ.get("MCP_TASK_PORT") or str(DEFAULT_PORT), "MCP_TASK_PORT"),
        debug=environ.get("MCP_DEBUG", "").strip().lower() not in ("", "0", "false", "no", "off"),
        token=_token(environ, base_dir),
        allowed_origins=tuple(environ.get("MCP_TASK_ALLOWED_ORIGINS", "").replace(",", " ").split()),
        attach_roots=_attach_roots(environ, base_dir, working_dir),
    )


def parse_port(text: str, source: str) -> int:
    """Return the TCP port in `text`, 0 to 65535 (0 lets the system choose); raise ConfigError."""
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and int(text) <= 65535):
        raise ConfigError(f"{source} is {text!r}: it must be a port number from 0 to 65535")
    return int(text)


def make_folder(path: str, source: str) -> None:
    """Make the folder `path`, private to this user, with its parents; raise ConfigError if that fails."""
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
    except OSError as error:
        reason = error.strerror or "it cannot be made"
        raise ConfigError(f"{source}: the folder {path} cannot be made: {reason}") from None


def _path(text: str, base_dir: str) -> str:
    if "\0" in text:
        raise ConfigError("a path in MCP_TASK_* holds a NUL character")
    return os.path.normpath(os.path.join(base_dir, os.path.expanduser(text)))


def _token(environ: Mapping[str, str], base_dir: str) -> str | None:
    token = environ.get("MCP_TASK_TOKEN", "").strip()
    path = environ.get("MCP_TASK_TOKEN_FILE")
    if not token and path:
        try:
            with open(_path(path, base_dir), encoding="ascii") as file:
                token = file.read(4096).strip()
        except (OSError, UnicodeDecodeError):
            raise ConfigError(f"MCP_TASK_TOKEN_FILE: {path} cannot be read as ASCII text") from None
        if not token:
            raise ConfigError(f"MCP_TASK_TOKEN_FILE: {path} is empty")
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
    root = os.path.realpath(working_dir)
    too_wide = {os.path.realpath(os.path.expanduser("~")), os.path.realpath(os.sep)}
    return () if root in too_wide else (root,)
