"""The official Python SDK, 1.x and 2.x, plays a handoff over STDIO, HTTP+SSE and Streamable HTTP.

Each test starts a driver from `tests/clients` with the interpreter that has its SDK; the servers
run on this interpreter. The two SDKs cannot share an environment: `MCP1_PYTHON` names the one that
has mcp 1.x, and otherwise it is the one that `tests/clients/install.sh` makes.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from clients.servers import Sdk, Servers, interpreter, new_servers


@pytest.fixture(params=["mcp2", "mcp2-legacy", "mcp1"])
def sdk(request: pytest.FixtureRequest) -> Sdk:
    """Each SDK in turn; 2.x both as it comes and told to initialize without probing."""
    if request.param == "mcp1":
        return Sdk("1.30.", [interpreter("mcp1"), "-m", "clients.mcp1_driver"], "2025-11-25")
    if request.param == "mcp2-legacy":
        return Sdk("2.", [sys.executable, "-m", "clients.mcp2_driver", "legacy"], "2025-11-25")
    return Sdk("2.", [sys.executable, "-m", "clients.mcp2_driver", "auto"], "2026-07-28")


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Servers]:
    """Servers on a new database, which end with the test: all of them with 0, without complaint."""
    with new_servers(tmp_path) as running:
        yield running


@pytest.mark.parametrize("transports", ["stdio-stdio", "sse-sse", "mcp-mcp", "mcp-stdio"])
def test_handoff(sdk: Sdk, servers: Servers, transports: str) -> None:
    """Two clients on two server processes hand a task over, and nothing is lost on its way."""
    sdk.play("handoff", servers, transports.split("-"))


@pytest.mark.parametrize("transports", ["stdio-sse", "sse-mcp"])
def test_ids_survive_as_uris(sdk: Sdk, servers: Servers, transports: str) -> None:
    """Task ids with upper case, dots and look-alike addresses are the same inside an SDK's URIs."""
    sdk.play("ids", servers, transports.split("-"))
