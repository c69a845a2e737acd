"""The official Python SDK, 1.x and 2.x, plays a handoff over STDIO and HTTP/SSE.

Each test starts a driver from `tests/clients` with the interpreter that has its SDK; the servers
run on this interpreter. The two SDKs cannot share an environment: `MCP1_PYTHON` names the one that
has mcp 1.x, `.venv-mcp1` in the project folder is where it is looked for otherwise.
"""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).resolve().parent
PROJECT = TESTS.parent
SERVER = str(PROJECT / "server.py")
MCP1_PYTHON = PROJECT / ".venv-mcp1" / "bin" / "python"
MCP1_MISSING = (
    "mcp 1.x is not installed. In the project folder: python3 -m venv .venv-mcp1 && "
    ".venv-mcp1/bin/pip install -r tests/clients/requirements-mcp1.txt "
    "(or name a Python that has it in MCP1_PYTHON)"
)
DRIVER_SECONDS = 40
START_SECONDS = 15
STOP_SECONDS = 6

Json = dict[str, Any]


@dataclass(frozen=True)
class Sdk:
    """A release of the SDK, and the command that plays a plan with it."""

    release: str
    driver: list[str]

    def play(self, scenario: str, servers: list[Json]) -> None:
        """Run the driver, which must find every answer right and have nothing to complain of."""
        python, module, *arguments = self.driver
        plan = json.dumps({"scenario": scenario, "servers": servers})
        played = subprocess.run(
            [python, "-m", f"clients.{module}", plan, *arguments],
            cwd=TESTS,
            env=os.environ | {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"},
            capture_output=True,
            text=True,
            timeout=DRIVER_SECONDS,
        )
        assert played.returncode == 0, played.stderr
        assert not played.stderr
        outcome = json.loads(played.stdout)
        assert outcome["sdk"].startswith(self.release)
        assert min(outcome["revisions"]) >= "2025-11-25"


def mcp1_python() -> str:
    """Return the interpreter that has mcp 1.x; skip the test where there is none."""
    if named := os.environ.get("MCP1_PYTHON"):
        return named
    if not MCP1_PYTHON.exists():
        pytest.skip(MCP1_MISSING)
    return str(MCP1_PYTHON)


@pytest.fixture(params=["mcp2", "mcp2-legacy", "mcp1"])
def sdk(request: pytest.FixtureRequest) -> Sdk:
    """Each SDK in turn; 2.x both as it comes and told to initialize without probing."""
    if request.param == "mcp1":
        return Sdk("1.30.", [mcp1_python(), "mcp1_driver"])
    mode = "legacy" if request.param == "mcp2-legacy" else "auto"
    return Sdk("2.", [sys.executable, "mcp2_driver", mode])


class Servers:
    """Server processes on one database, each with its standard error in a file of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._settings = {
            "MCP_TASK_DB_PATH": str(folder / "tasks.db"),
            "MCP_TASK_ARTIFACTS_DIR": str(folder / "artifacts"),
        }
        self._working_folder = folder / "repository"
        self._working_folder.mkdir()
        log = "".join(f"test_{number} passed, naïve café ✓\n" for number in range(5000))
        (self._working_folder / "test-run.log").write_text(log, encoding="utf-8")
        self._statuses: list[Path] = []
        self._services: list[subprocess.Popen[bytes]] = []

    def add(self, transport: str) -> Json:
        """Describe one more server to a driver; one for HTTP is running by then."""
        return self._stdio() if transport == "stdio" else self._sse()

    def _stdio(self) -> Json:
        # A client does not tell the exit status of a server that it spawned. The shell writes it
        # down, unless the client had to kill the two of them.
        status = self._folder / f"stdio-{len(self._statuses)}.status"
        self._statuses.append(status)
        shell = ["/bin/sh", "-c", '"$@"; echo $? >"$0"', str(status)]
        return {
            "command": [*shell, sys.executable, SERVER],
            "env": self._settings,
            "cwd": str(self._working_folder),
            "stderr": str(status.with_suffix(".stderr")),
        }

    def _sse(self) -> Json:
        with closing(socket.create_server(("127.0.0.1", 0))) as free:
            port: int = free.getsockname()[1]
        with open(self._folder / f"{port}.stderr", "wb") as stderr:
            service = subprocess.Popen(
                [sys.executable, SERVER, "--http", "--port", str(port)],
                cwd=self._working_folder,
                env=foreign_environment() | self._settings,
                stdin=subprocess.DEVNULL,
                stderr=stderr,
            )
        self._services.append(service)
        wait_until_healthy(service, port)
        return {"url": f"http://127.0.0.1:{port}/sse"}

    def stop(self) -> list[int | None]:
        """End the services by SIGTERM; return every exit status, None where a client killed."""
        for service in self._services:
            service.send_signal(signal.SIGTERM)
        spawned = [int(path.read_text()) if path.exists() else None for path in self._statuses]
        return spawned + [exit_status(service) for service in self._services]

    def complaints(self) -> str:
        """Return what the servers wrote to standard error."""
        return "".join(path.read_text() for path in sorted(self._folder.glob("*.stderr")))


def exit_status(service: subprocess.Popen[bytes]) -> int:
    """Wait for the service to end; one that does not is killed, which its status then tells."""
    try:
        return service.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        service.kill()
        return service.wait()


def foreign_environment() -> dict[str, str]:
    """Return the environment without settings of the server, whoever left them there."""
    return {name: value for name, value in os.environ.items() if not name.startswith("MCP_")}


def wait_until_healthy(service: subprocess.Popen[bytes], port: int) -> None:
    """Return when GET /health answers 200; fail when the service ends or takes too long."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        assert service.poll() is None, "the service ended before it was healthy"
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=2)) as connection:
            try:
                connection.request("GET", "/health")
                if connection.getresponse().status == 200:
                    return
            except OSError:
                pass  # nobody listens yet
        time.sleep(0.02)  # only asking again tells
    pytest.fail(f"the service was not healthy within {START_SECONDS} s")


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Servers]:
    """Servers on a new database, which end with the test: all of them with 0, no traceback."""
    running = Servers(tmp_path)
    try:
        yield running
    finally:
        statuses = running.stop()
    assert "Traceback" not in running.complaints()
    assert statuses == [0] * len(statuses)


@pytest.mark.parametrize("transports", ["stdio-stdio", "sse-sse", "stdio-sse"])
def test_handoff(sdk: Sdk, servers: Servers, transports: str) -> None:
    """Two clients on two server processes hand a task over, and nothing is lost on its way."""
    sdk.play("handoff", [servers.add(transport) for transport in transports.split("-")])


def test_ids_survive_as_uris(sdk: Sdk, servers: Servers) -> None:
    """Task ids with upper case, dots and look-alike addresses are the same inside an SDK's URIs."""
    sdk.play("ids", [servers.add("stdio"), servers.add("sse")])
