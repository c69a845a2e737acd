"""What a test of real clients needs: server processes on one database, and drivers that use them.

A driver is a program around one SDK. It is given a plan, and either prints one JSON line, which tells
the SDK's release and the revision that each of its clients negotiated, or exits with 1 and a reason.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from support import PROJECT, SERVER, HttpServer, environment

CLIENTS = Path(__file__).resolve().parent
TYPESCRIPT = CLIENTS / "typescript"
INSTALL = "tests/clients/install.sh"
DRIVER_SECONDS = 40
# A proxy that the environment names must not come between a client and its server.
DIRECT = {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}

Json = dict[str, Any]


def interpreter(name: str) -> str:
    """Return the Python that has the client `name`; skip the test where there is none.

    The environment names it, as in MCP1_PYTHON; otherwise it is the one that INSTALL makes.
    """
    variable = f"{name.upper()}_PYTHON"
    python = os.environ.get(variable) or str(PROJECT / ".ci" / f"venv-{name}" / "bin" / "python")
    if shutil.which(python) is None:
        pytest.skip(f"{name} is not installed: run {INSTALL}, or name a Python that has it in {variable}")
    return python


def require_node() -> None:
    """Skip the test where the clients for Node are not installed."""
    if shutil.which("node") is None or not (TYPESCRIPT / "node_modules").exists():
        pytest.skip(f"the TypeScript clients are not installed: run {INSTALL}, with node and npm on the PATH")


@dataclass(frozen=True)
class Sdk:
    """A release of an SDK, the command that plays a plan with it, and the revisions it must agree on."""

    release: str
    driver: list[str]
    revision: str
    revision_on: Mapping[str, str] = field(default_factory=dict)  # where it is another one, by transport

    def play(self, scenario: str, servers: Servers, transports: list[str]) -> None:
        """Run the driver, which must find every answer right and have nothing to complain of."""
        plan = {"scenario": scenario, "servers": [servers.add(transport) for transport in transports]}
        played = subprocess.run(
            [*self.driver, json.dumps(plan)],
            cwd=CLIENTS.parent,
            env=os.environ | DIRECT,
            capture_output=True,
            text=True,
            timeout=DRIVER_SECONDS,
        )
        assert played.returncode == 0, played.stderr
        assert not played.stderr, played.stderr
        outcome = json.loads(played.stdout)
        assert outcome["sdk"].startswith(self.release), outcome
        expected = [self.revision_on.get(transport, self.revision) for transport in transports]
        assert outcome["revisions"] == expected, outcome


class Servers:
    """Server processes on one database, each with its standard error in a file of its own."""

    def __init__(self, folder: Path, running: ExitStack) -> None:
        self._folder = folder
        self._running = running
        self._working_folder = folder / "repository"
        self._working_folder.mkdir()
        log = "".join(f"test_{number} passed, naïve café ✓\n" for number in range(5000))
        (self._working_folder / "test-run.log").write_text(log, encoding="utf-8")
        self._statuses: list[Path] = []
        self._services: list[HttpServer] = []

    def add(self, transport: str) -> Json:
        """Describe one more server to a driver: stdio, sse or mcp; a service is running by then."""
        return self._spawned() if transport == "stdio" else {"url": f"{self._service().url}/{transport}"}

    def _spawned(self) -> Json:
        # A client does not tell the exit status of a server that it spawned, and may spawn a second one
        # to probe with. The shell writes them down, unless the client had to kill it.
        status = self._folder / f"stdio-{len(self._statuses)}.status"
        self._statuses.append(status)
        shell = ["/bin/sh", "-c", '"$@"; echo $? >>"$0"', str(status)]
        settings = environment(self._folder)
        return {
            "command": [*shell, sys.executable, str(SERVER)],
            "env": {name: settings[name] for name in settings if name.startswith("MCP_")},
            "cwd": str(self._working_folder),
            "stderr": str(status.with_suffix(".stderr")),
        }

    def _service(self) -> HttpServer:
        service = self._running.enter_context(HttpServer(self._folder))
        self._services.append(service)
        return service

    def stop(self) -> list[str]:
        """End the services by SIGTERM; return every exit status, none where a client killed."""
        spawned = [path.read_text().split() if path.exists() else ["killed"] for path in self._statuses]
        services = [str(service.terminate()) for service in self._services]
        return [status for statuses in spawned for status in statuses] + services

    def complaints(self) -> str:
        """Return what the servers wrote to standard error, but for where they listen."""
        spawned = [path.with_suffix(".stderr") for path in self._statuses]
        told = "".join(path.read_text() for path in spawned if path.exists())
        lines = (told + "".join(service.stderr() for service in self._services)).splitlines()
        return "\n".join(line for line in lines if ": listening on " not in line)


@contextmanager
def new_servers(folder: Path) -> Iterator[Servers]:
    """Yield servers on a new database; they must end well: all with 0, and nothing to complain of."""
    with ExitStack() as running:
        servers = Servers(folder, running)
        yield servers
        statuses = servers.stop()
        assert set(statuses) <= {"0"}, statuses
        assert not servers.complaints(), servers.complaints()
