"""What goes wrong around a server, over each kind of transport: a clear error, and nothing is lost.

The server goes on when the fault has ended, where that is safe, and stops where it is not.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from support import (
    PATIENCE,
    HttpServer,
    JsonObject,
    McpClient,
    Process,
    StdioClient,
    ToolCaller,
    create,
    server_script,
    stdio,
    wait_until,
)

from config import SERVER_NAME

WIRES = ["stdio", "http"]
each_wire = pytest.mark.parametrize("wire", WIRES)


class LastingClient(McpClient):
    """A client of the HTTP service that keeps its connection: it costs no further descriptor."""

    def __init__(self, server: HttpServer) -> None:
        super().__init__(server)
        self._connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)

    def request(self, method: str, params: JsonObject | None = None) -> JsonObject:
        body, headers = self.message(method, params)
        self._connection.request("POST", "/mcp", body, headers)
        response: JsonObject = json.loads(self._connection.getresponse().read())
        return response

    def health(self) -> int:
        """Return the status that /health answers with."""
        self._connection.request("GET", "/health")
        response = self._connection.getresponse()
        response.read()
        return response.status

    def close(self) -> None:
        self._connection.close()


class Served:
    """A server, its client, and what the server has acknowledged."""

    def __init__(self, process: Process, client: ToolCaller) -> None:
        self.process, self.client = process, client
        self.decisions: list[str] = []
        self._said = process.stderr()

    def begin(self) -> None:
        """Make the task that all writes are about."""
        create(self.client, "t")
        self.write("first")

    def write(self, decision: str) -> None:
        """Make a write that must be acknowledged."""
        self.client.call("save_checkpoint", task_id="t", agent="a", decisions=[decision])
        self.decisions.append(decision)

    def require_refusal(self, message: str, decision: str = "refused") -> None:
        """Require that a write is refused in these words."""
        refusal = self.client.refusal("save_checkpoint", task_id="t", agent="a", decisions=[decision])
        assert (refusal["code"], refusal["message"]) == ("storage_error", message)

    def require_health(self, status: int) -> None:
        """Require that /health answers so; over STDIO there is none to ask."""
        if isinstance(self.client, LastingClient):
            assert self.client.health() == status

    def require_stop(self, line: str, tool: str = "save_checkpoint", **arguments: Any) -> None:
        """Require that a call is not answered, and that the server ends with 1 and says so in this line."""
        wanted = {"agent": "a", "decisions": ["lost"]} if tool == "save_checkpoint" else {}
        with pytest.raises((AssertionError, OSError, http.client.HTTPException)):
            self.client.answer(tool, task_id="t", **wanted, **arguments)
        assert self.process.process.wait(PATIENCE) == 1
        said = self.process.stderr().removeprefix(self._said)
        assert said.startswith(f"{SERVER_NAME}: ")
        assert said.count("\n") == 1
        assert line in said

    def require_all(self, client: ToolCaller | None = None) -> None:
        """Require that all that was acknowledged is there, and nothing else."""
        task = (client or self.client).call("get_task", task_id="t")
        assert task["decisions"] == self.decisions
        assert task["version"] == 1 + len(self.decisions)


@contextlib.contextmanager
def served(wire: str, folder: Path, **options: Any) -> Iterator[Served]:
    """Yield a server over this wire, with all it keeps in `folder`/state."""
    options |= placed_in(folder)
    with contextlib.ExitStack() as ends:
        if wire == "stdio":
            process: Process = ends.enter_context(StdioClient(folder, **options))
            assert isinstance(process, StdioClient)
            process.initialize()
            client: ToolCaller = process
        else:
            process = ends.enter_context(HttpServer(folder, **options))
            client = ends.enter_context(contextlib.closing(LastingClient(process)))
        yield Served(process, client)


@contextlib.contextmanager
def survived(folder: Path, server: Served) -> Iterator[StdioClient]:
    """Yield a client of a new server, after it was seen that all that was acknowledged is there."""
    with stdio(folder, **placed_in(folder)) as client:
        server.require_all(client)
        yield client


def placed_in(folder: Path) -> dict[str, str]:
    """Return the settings of a server that keeps all it has in `folder`/state."""
    places = {"MCP_TASK_DB_PATH": "tasks.db", "MCP_TASK_ARTIFACTS_DIR": "artifacts"}
    return {name: str(folder / "state" / place) for name, place in places.items()}


# --- The disk -----------------------------------------------------------------------------------------

SMALL_DISK = """
import os, sys
namespace = "-m" if os.geteuid() == 0 else "-rm"
mount = 'mount -t tmpfs -o size=1m tmpfs "$0" && head -c 262144 /dev/zero > "$0/ballast" && exec "$@"'
command = ["unshare", namespace, "sh", "-c", mount, {disk}, sys.executable, {server}, *sys.argv[1:]]
os.execvp(command[0], command)
"""


@each_wire
def test_a_full_disk(tmp_path: Path, wire: str) -> None:
    """A full disk refuses writes and serves reads; once there is space, the same write succeeds."""
    disk = tmp_path / "state"
    disk.mkdir()
    namespace = ["unshare", "-m" if os.geteuid() == 0 else "-rm", "mount", "-t", "tmpfs", "tmpfs", str(disk)]
    if shutil.which("unshare") is None or subprocess.run(namespace, capture_output=True).returncode:
        pytest.skip("no small disk can be mounted here: unshare and mount are missing or not permitted")
    with server_script(tmp_path, SMALL_DISK, disk=str(disk)), served(wire, tmp_path) as server:
        inside = Path(f"/proc/{server.process.process.pid}/root{disk}")
        server.begin()
        answer, is_refused, number = JsonObject(), False, 0
        while not is_refused:
            number += 1
            assert number < 1000
            decision = f"{number} {'x' * 9000}"
            answer, is_refused = server.client.answer(
                "save_checkpoint", task_id="t", agent="a", decisions=[decision]
            )
            server.decisions += [] if is_refused else [decision]
        assert answer["error"]["message"] == "The disk is full."
        refusal = server.client.refusal("attach_artifact", task_id="t", name="n", content="y" * 500_000)
        assert "No space left on device" in refusal["message"]
        assert os.listdir(inside / "artifacts") == []
        server.require_all()
        server.require_health(200)
        (inside / "ballast").unlink()
        server.write(decision)
        server.require_all()


@contextlib.contextmanager
def failing(
    server: Served, *calls: str, files: Sequence[str] = ("tasks.db", "tasks.db-journal")
) -> Iterator[None]:
    """Have system calls on these files fail with EIO inside the block, as those of a dying disk do."""
    if shutil.which("strace") is None:
        pytest.skip("there is no strace to make system calls fail with")
    command = ["strace", "-f", "-p", str(server.process.process.pid), f"--trace={','.join(calls)}"]
    command += [f"--inject={call}:error=EIO" for call in calls]
    command += [f"--trace-path={server.process.folder / 'state' / file}" for file in files]
    log = server.process.folder / "strace.log"
    with log.open("wb") as errors:
        tracer = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors)
    try:
        wait_until(lambda: b"attached" in log.read_bytes() or tracer.poll() is not None, "strace is attached")
        if tracer.poll() is not None:
            pytest.skip(f"no process can be traced here: {log.read_text()}")
        yield
    finally:
        tracer.kill()  # asked politely while the server ends, strace may wait for ever
        tracer.wait(PATIENCE)


@each_wire
def test_a_disk_that_cannot_sync(tmp_path: Path, wire: str) -> None:
    """After a failed fsync nothing is acknowledged any more: the server stops, and a new one goes on."""
    with served(wire, tmp_path) as server:
        server.begin()
        with failing(server, "fsync", "fdatasync"):
            server.require_stop("input/output error")
        with survived(tmp_path, server) as client:
            client.call("save_checkpoint", task_id="t", agent="a")


@each_wire
def test_a_disk_that_cannot_take_a_commit(tmp_path: Path, wire: str) -> None:
    """After a commit that wrote the journal alone nobody knows what is there: the server stops."""
    with served(wire, tmp_path) as server:
        server.begin()
        with failing(server, "write", "pwrite64", files=["tasks.db"]):
            server.require_stop("input/output error")
        with survived(tmp_path, server) as client:
            client.call("save_checkpoint", task_id="t", agent="a")


@each_wire
def test_a_disk_that_cannot_be_written(tmp_path: Path, wire: str) -> None:
    """A write that the disk refuses is not acknowledged; reads go on, and writes when the fault has ended."""
    with served(wire, tmp_path) as server:
        server.begin()
        with failing(server, "write", "pwrite64"):
            server.require_refusal("The disk reports an input/output error.")
            server.require_all()
        server.write("after")
        server.require_all()


@each_wire
@pytest.mark.parametrize("tool", ["save_checkpoint", "get_task"])
def test_a_disk_that_cannot_be_read(tmp_path: Path, wire: str, tool: str) -> None:
    """SQLite takes what cannot be read for damage: the server stops, and a new one finds all again."""
    with served(wire, tmp_path) as server:
        server.begin()
        with failing(server, "read", "pread64"):
            server.require_stop("The database is damaged", tool)
        with survived(tmp_path, server) as client:
            client.call("save_checkpoint", task_id="t", agent="a")


UNPRIVILEGED = """
import os, sys
prefix = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
command = [*prefix, sys.executable, {server}, *sys.argv[1:]]
os.execvp(command[0], command)
"""


@contextlib.contextmanager
def unprivileged(folder: Path) -> Iterator[None]:
    """Have the servers of the block be bound by file modes, as root is not."""
    if os.geteuid() == 0 and shutil.which("setpriv") is None:
        pytest.skip("root is not bound by file modes, and there is no setpriv to change that")
    with server_script(folder, UNPRIVILEGED):
        yield


@each_wire
def test_a_read_only_database(tmp_path: Path, wire: str) -> None:
    """A read-only file serves reads and refuses writes, and /health is well; made writable, it takes them."""
    database = tmp_path / "state" / "tasks.db"
    with unprivileged(tmp_path):
        with served(wire, tmp_path) as server:
            server.begin()
        database.chmod(0o400)
        with served(wire, tmp_path) as reading:
            reading.decisions = server.decisions
            reading.require_refusal("The database is read-only.")
            reading.require_all()
            reading.require_health(200)
        database.chmod(0o600)
        with served(wire, tmp_path) as writing:
            writing.decisions = server.decisions
            writing.write("after")
            writing.require_all()


@each_wire
def test_a_database_that_cannot_be_opened(tmp_path: Path, wire: str) -> None:
    """A server whose database is closed to it says so in one line, and ends with 1."""
    (tmp_path / "tasks.db").touch(mode=0)
    with (
        unprivileged(tmp_path),
        Process(tmp_path, *([] if wire == "stdio" else ["--http", "--port", "0"])) as server,
    ):
        assert server.process.wait(PATIENCE) == 1
        path = tmp_path / "tasks.db"
        assert server.stderr() == f"{SERVER_NAME}: {path}: The database or its journal cannot be opened.\n"


# --- The file -----------------------------------------------------------------------------------------

MOVED = "The database file has been moved or deleted."


@each_wire
@pytest.mark.parametrize("part", ["state/tasks.db", "state"], ids=["file", "folder"])
def test_a_database_that_is_moved_away(tmp_path: Path, wire: str, part: str) -> None:
    """While the file is elsewhere all calls are refused and /health is not well; put back, all goes on."""
    with served(wire, tmp_path) as server:
        server.begin()
        for number in range(2):
            (tmp_path / part).rename(tmp_path / "elsewhere")
            server.require_refusal(MOVED)
            assert server.client.refusal("get_task", task_id="t")["message"] == MOVED
            server.require_health(503)
            assert not (tmp_path / "state" / "tasks.db").exists()
            (tmp_path / "elsewhere").rename(tmp_path / part)
            server.require_health(200)
            server.write(f"after {number}")
        server.require_all()
        with survived(tmp_path, server):
            pass


@each_wire
@pytest.mark.parametrize("tool", ["save_checkpoint", "get_task"])
def test_a_database_that_is_deleted_and_restored(tmp_path: Path, wire: str, tool: str) -> None:
    """A restored copy is another file: whoever has the deleted one open stops, and a new server serves it."""
    database = tmp_path / "state" / "tasks.db"
    with served(wire, tmp_path) as server:
        server.begin()
        shutil.copy(database, tmp_path / "copy")
        database.unlink()
        server.require_refusal(MOVED)
        shutil.copy(tmp_path / "copy", database)
        before = database.read_bytes()
        server.require_stop("another file has taken the place of the database", tool)
        assert database.read_bytes() == before
        with survived(tmp_path, server) as client:
            client.call("save_checkpoint", task_id="t", agent="a")


MOVED_IN_COMMIT = """
import os, sqlite3
connect, path, flag = sqlite3.connect, {path!r}, {flag!r}

class Connection(sqlite3.Connection):
    def execute(self, statement, values=()):
        if statement == "COMMIT" and os.path.exists(flag):
            os.rename(path, path + ".away")
            if os.path.exists(path + ".other"):
                os.rename(path + ".other", path)
        return super().execute(statement, values)

sqlite3.connect = lambda *arguments, **options: connect(*arguments, factory=Connection, **options)
"""


@each_wire
@pytest.mark.parametrize("is_replaced", [False, True], ids=["moved", "replaced"])
def test_a_database_that_is_moved_during_a_write(tmp_path: Path, wire: str, is_replaced: bool) -> None:
    """A commit into a file that the path no longer names is not acknowledged: the server stops."""
    database, flag = tmp_path / "state" / "tasks.db", tmp_path / "flag"
    prelude = MOVED_IN_COMMIT.format(path=str(database), flag=str(flag))
    with served(wire, tmp_path, prelude=prelude) as server:
        server.begin()
        if is_replaced:
            shutil.copy(database, f"{database}.other")
        flag.touch()
        server.require_stop("the database was moved or replaced during a write")
        if is_replaced:
            with survived(tmp_path, server):
                pass


def overwrite_all(database: Path) -> None:
    with database.open("r+b") as file:
        file.write(b"no database " * (database.stat().st_size // 12))


def overwrite_the_middle(database: Path) -> None:
    """Overwrite all but the first page, and say in that one that there was a change, as a writer does."""
    with database.open("r+b") as file:
        file.seek(24)
        file.write(b"\x7f\xff\xff\xff")
        file.seek(4096)
        file.write(b"\xa5" * (database.stat().st_size - 4096))


def cut_in_the_middle(database: Path) -> None:
    os.truncate(database, 3 * 4096)


@each_wire
@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (overwrite_all, "The file is not a database."),
        (overwrite_the_middle, "The database is damaged."),
        (cut_in_the_middle, "The database is damaged."),
    ],
)
@pytest.mark.parametrize("tool", ["save_checkpoint", "get_task"])
def test_a_database_that_is_damaged(
    tmp_path: Path, wire: str, damage: Callable[[Path], None], line: str, tool: str
) -> None:
    """Garbage in the file of a running server stops it, for reads as for writes, and is left as it is."""
    database = tmp_path / "state" / "tasks.db"
    with served(wire, tmp_path) as server:
        server.begin()
        damage(database)
        before = database.read_bytes()
        server.require_stop(line, tool)
        assert database.read_bytes() == before


@each_wire
def test_a_database_that_is_emptied(tmp_path: Path, wire: str) -> None:
    """An emptied file is neither filled again nor served; a new server serves its content once it is back."""
    database = tmp_path / "state" / "tasks.db"
    with served(wire, tmp_path) as server:
        server.begin()
        content = database.read_bytes()
        database.write_bytes(b"")
        for _ in range(2):
            server.require_refusal("The database cannot carry this out.")
            server.require_health(503)
        assert database.read_bytes() == b""
        database.write_bytes(content)
        with survived(tmp_path, server) as client:
            client.call("save_checkpoint", task_id="t", agent="a")


@each_wire
def test_a_database_that_becomes_newer(tmp_path: Path, wire: str) -> None:
    """A running server stops at its next write, which changes nothing, once a newer program has migrated."""
    database = tmp_path / "state" / "tasks.db"
    with served(wire, tmp_path) as server:
        server.begin()
        with contextlib.closing(sqlite3.connect(database)) as other:
            other.execute("PRAGMA user_version = 99")
        before = database.read_bytes()
        server.require_stop("emptied, or made newer, by another program")
        assert database.read_bytes() == before


# --- The artifacts ------------------------------------------------------------------------------------


def remove(artifacts: Path) -> None:
    artifacts.rename(artifacts.with_name("aside"))


def replace_by_a_file(artifacts: Path) -> None:
    remove(artifacts)
    artifacts.touch()


def close(artifacts: Path) -> None:
    artifacts.chmod(0o500)


@each_wire
@pytest.mark.parametrize("fault", [remove, replace_by_a_file, close])
def test_artifacts_that_cannot_be_stored(tmp_path: Path, wire: str, fault: Callable[[Path], None]) -> None:
    """Without its folder nothing is attached, and all else goes on; put back, the same call succeeds."""
    artifacts = tmp_path / "state" / "artifacts"
    with unprivileged(tmp_path), served(wire, tmp_path) as server:
        server.begin()
        kept, new = ({"task_id": "t", "name": name, "content": name} for name in ("kept", "new"))
        assert server.client.call("attach_artifact", **kept)["version"] == 3
        fault(artifacts)
        refusal = server.client.refusal("attach_artifact", **new)
        assert refusal["code"] == "storage_error"
        assert refusal["message"].startswith("The artifact could not be stored: ")
        answer, is_refused = server.client.answer("get_task", task_id="t", artifact=1)
        assert is_refused == (fault is not close), answer
        server.write("meanwhile")
        server.require_health(200)
        if fault is not close:
            artifacts.unlink() if artifacts.exists() else None
            artifacts.with_name("aside").rename(artifacts)
        artifacts.chmod(0o700)
        assert server.client.call("attach_artifact", **new)["artifact"]["number"] == 2
        for number, text in enumerate(("kept", "new"), 1):
            assert server.client.call("get_task", task_id="t", artifact=number)["text"] == text
        assert server.client.call("get_task", task_id="t")["decisions"] == server.decisions
        assert len(os.listdir(artifacts)) == 2


# --- The clock and the descriptors --------------------------------------------------------------------

BACKWARDS = """
import itertools, time
hours, ns = itertools.count(), time.time_ns
time.time_ns = lambda: ns() - next(hours) * 3_600_000_000_000
time.time = lambda: time.time_ns() / 1e9
"""


@each_wire
def test_a_clock_that_goes_backwards(tmp_path: Path, wire: str) -> None:
    """An hour back at each look: changes keep their order, versions go on, and no owner is taken for gone."""
    with served(wire, tmp_path, prelude=BACKWARDS) as server:
        server.begin()
        create(server.client, "u")
        for number in range(5):
            server.write(f"{number}")
        server.require_all()
        task = server.client.call("get_task", task_id="t")
        assert task["updated_at"] < task["created_at"]  # the clock does go back
        assert task["owner_state"] == ("live" if wire == "stdio" else "unknown")
        assert server.client.refusal("claim_task", task_id="t", agent="b")["code"] == "not_owner"
        assert [row["task_id"] for row in server.client.call("list_tasks")["tasks"]] == ["t", "u"]
        history = server.client.call("get_task", task_id="t", view="history")["events"]
        assert [event["checkpoint"] for event in history[:-1]] == [6, 5, 4, 3, 2, 1]
        assert history[-1]["what"] == "created"


HUNGRY = """
import os, resource, threading, time
resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))

def eat():
    eaten = []
    while True:
        if os.path.exists({flag!r}):
            try:
                while True:
                    eaten.append(os.open("/dev/null", os.O_RDONLY))
            except OSError:
                if not os.path.exists({flag!r} + ".eaten"):
                    os.mkdir({flag!r} + ".eaten")
        else:
            while eaten:
                os.close(eaten.pop())
            if os.path.exists({flag!r} + ".eaten"):
                os.rmdir({flag!r} + ".eaten")
        time.sleep(0.001)

threading.Thread(target=eat, daemon=True).start()
"""


@each_wire
def test_no_descriptor_is_left(tmp_path: Path, wire: str) -> None:
    """Without a descriptor for the journal or a file calls are refused; with one, the same calls succeed."""
    flag, eaten = tmp_path / "flag", tmp_path / "flag.eaten"
    with served(wire, tmp_path, prelude=HUNGRY.format(flag=str(flag))) as server:
        server.begin()
        for number in range(2):
            flag.touch()
            wait_until(eaten.exists, "all descriptors are taken")
            server.require_refusal("The database or its journal cannot be opened.")
            refusal = server.client.refusal("attach_artifact", task_id="t", name="n", content="c")
            assert refusal["code"] == "storage_error"
            server.require_health(503)
            flag.unlink()
            wait_until(lambda: not eaten.exists(), "the descriptors are back")
            server.require_health(200)
            server.write(f"after {number}")
        server.require_all()
        assert (
            server.client.call("attach_artifact", task_id="t", name="n", content="c")["artifact"]["number"]
            == 1
        )
    with contextlib.closing(sqlite3.connect(tmp_path / "state" / "tasks.db")) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
