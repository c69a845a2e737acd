"""The command line: it reads the settings, puts the parts together and says how the process ended.

Every agent session starts a server and waits for it, so that each part is loaded where it is first needed.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from config import (
    DEFAULT_PORT,
    SERVER_NAME,
    SERVER_VERSION,
    ConfigError,
    Settings,
    load_settings,
    make_folder,
    parse_port,
)
from dispatcher import Dispatcher
from errors import StoreFailure
from log import say

if TYPE_CHECKING:
    from methods import TaskMethods


class Options(NamedTuple):
    """What the command line says."""

    http: bool = False
    host: str = "127.0.0.1"
    port: int | None = None
    backup: str | None = None
    verify: bool = False


def main(arguments: list[str]) -> int:
    """Run the server; returns the exit status: 0 at a proper end, 1 for the store, 2 for the settings."""
    os.umask(0o077)
    _on_stop_signals(_quit)
    try:
        options = _read_options(arguments) if arguments else Options()
        settings = load_settings(os.environ, _working_dir())
        if options.verify or options.backup is not None:
            return _run_recovery(settings, options)
        _make_folders(settings)
        return _run_http(settings, options) if options.http else _run_stdio(settings)
    except ConfigError as error:
        say(str(error))
        return 2
    except StoreFailure as error:
        say(str(error))
        return 1
    except ModuleNotFoundError as error:
        if error.name not in ("pydantic", "pydantic_core"):
            raise
        say(f"{sys.executable} has no pydantic: start the server with .venv/bin/python, as the README shows")
        return 2
    except _Quit:
        return 0


def _run_stdio(settings: Settings) -> int:
    from stdio_transport import StdioLoop

    dispatcher = Dispatcher(
        lambda patience: _open_methods(settings, settings.attach_roots, patience), settings.debug
    )
    loop = StdioLoop(dispatcher)
    _on_stop_signals(loop.stop)
    if os.isatty(0):
        say("waiting for an MCP client on stdin, which starts this by itself; Ctrl-C ends, --http serves")
    if loop.run():
        dispatcher.close()
    dispatcher.leave(loop.session_id)
    return 0


def _run_http(settings: Settings, options: Options) -> int:
    from heap import give_memory_back
    from http_sockets import HttpService, listen
    from http_transport import Access, HttpTransport

    give_memory_back()
    access = Access(options.host, settings.token, settings.allowed_origins)
    listener = listen(options.host, settings.port if options.port is None else options.port)
    # No attach_roots: a service has no working directory that its clients would mean.
    methods = _open_methods(settings, attach_roots=())
    dispatcher = Dispatcher(lambda _: methods, settings.debug)
    dispatcher.prepare()
    service = HttpService(HttpTransport(dispatcher, methods.store.check, access), listener)
    _on_stop_signals(service.stop)
    say(f"listening on {service.url}")
    if service.run():
        methods.leave()
    return 0


def _open_methods(
    settings: Settings, attach_roots: tuple[str, ...], patience: float | None = None
) -> TaskMethods:
    # From here on, for good. Little of what is loaded next, or made by a call, is garbage that only the
    # collector can find: to look for it as often as by default takes 5 ms of the start.
    gc.set_threshold(20_000)
    from methods import TaskMethods
    from store import Store
    from tools import Workplace

    gc.freeze()  # what is loaded stays: no later collection needs to look at it
    store = Store(settings.db_path, settings.artifacts_dir, settings.agent_idle_seconds, patience)
    return TaskMethods(Workplace(store, attach_roots, settings.on_handoff))


def _run_recovery(settings: Settings, options: Options) -> int:
    from recovery import back_up, verify

    for number in _STOP_SIGNALS:
        signal.signal(number, signal.SIG_DFL)  # either can be cut off anywhere, and must not end with 0 then
    if options.backup is not None:
        is_sound = back_up(settings.db_path, settings.artifacts_dir, options.backup, _print)
    else:
        is_sound = verify(settings.db_path, settings.artifacts_dir, _print)
    return 0 if is_sound else 1


def _print(line: str) -> None:
    try:
        print("".join(letter if letter.isprintable() else "?" for letter in line), flush=True)
    except OSError:
        pass  # whoever read it has seen enough; the exit status tells the rest


def _make_folders(settings: Settings) -> None:
    if os.path.isdir(settings.db_path):
        raise ConfigError(f"MCP_TASK_DB_PATH: {settings.db_path} is a folder, not a database file")
    if os.path.exists(settings.db_path) and not os.path.isfile(settings.db_path):
        raise ConfigError(f"MCP_TASK_DB_PATH: {settings.db_path} is not a regular file")
    make_folder(os.path.dirname(settings.db_path), "MCP_TASK_DB_PATH")
    make_folder(settings.artifacts_dir, "MCP_TASK_ARTIFACTS_DIR")


def _working_dir() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:  # the client's folder was deleted since
        return ""


class _Quit(BaseException):
    """A signal came before there was anything to finish."""


def _quit() -> None:
    raise _Quit


_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def _on_stop_signals(stop: Callable[[], None]) -> None:
    for number in _STOP_SIGNALS:
        signal.signal(number, lambda *_: stop())


def _read_options(arguments: list[str]) -> Options:
    import argparse  # only here: most starts have no arguments

    parser = argparse.ArgumentParser(
        prog="server.py",
        description="Tasks, checkpoints and handoffs between agents, over the Model Context Protocol. "
        "Without options it serves one client on stdin and stdout.",
        epilog="Settings come from MCP_TASK_* in the environment; see the README.",
        allow_abbrev=False,
    )
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument("--http", action="store_true", help="run as an HTTP service for many clients")
    modes.add_argument(
        "--backup",
        metavar="DIR",
        help="copy the database and the artifacts to DIR, a new or empty folder; servers may run meanwhile",
    )
    modes.add_argument(
        "--verify",
        action="store_true",
        help="check the database and the artifacts, and change nothing; servers may run meanwhile",
    )
    parser.add_argument("--host", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", help=f"port to listen on (default: MCP_TASK_PORT or {DEFAULT_PORT})")
    parser.add_argument("--version", action="version", version=f"{SERVER_NAME} {SERVER_VERSION}")
    given = parser.parse_args(arguments)
    if not given.http and (given.host or given.port):
        parser.error("--host and --port go with --http")
    port = None if given.port is None else parse_port(given.port, "--port")
    return Options(given.http, given.host or Options().host, port, given.backup, given.verify)
