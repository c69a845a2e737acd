"""healthcheck.sh and the systemd template, used as people use them, on a copy of the project."""

from __future__ import annotations

import contextlib
import http.server
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from config import SERVER_NAME, SERVER_VERSION

ROOT = Path(__file__).resolve().parent.parent
UNIT = "mcp-task-server.service"


class Report(NamedTuple):
    """What healthcheck.sh said: its exit status, and verdict and text by the name of the check."""

    status: int
    verdicts: dict[str, str]
    texts: dict[str, str]


class Installation:
    """A copy of the project whose `.venv/bin/python` is the interpreter of these tests."""

    def __init__(self, folder: Path, state: Path) -> None:
        self.folder = folder
        self.environ = {k: v for k, v in os.environ.items() if not k.startswith(("MCP_", "PYTHON"))}
        self.scratch = state.parent / "scratch"
        self.scratch.mkdir()
        self.environ |= {"MCP_TASK_BASE_DIR": str(state), "TMPDIR": str(self.scratch)}
        shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(".*", "__pycache__", "*.db*", "tests"))
        self.program(".venv/bin/python", f'exec {shlex.quote(sys.executable)} "$@"')
        self.systemctl("exit 1")

    def program(self, path: str, script: str) -> Path:
        """Put a shell script at `path` inside the project."""
        program = self.folder / path
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        return program

    def systemctl(self, script: str) -> None:
        """Stand in for the machine's systemctl, so that a service it may run does not matter."""
        bin_folder = self.program("bin/systemctl", script).parent
        self.environ["PATH"] = f"{bin_folder}{os.pathsep}{os.environ['PATH']}"

    def edit(self, name: str, old: str, new: str) -> None:
        """Replace `old`, which must be there, in one of the project's files."""
        text = (self.folder / name).read_text()
        assert old in text
        (self.folder / name).write_text(text.replace(old, new))

    def check(self, *options: str, **variables: str | Path) -> Report:
        """Run healthcheck.sh, as root without root's exemption from file modes."""
        done = subprocess.run(
            [*bound_by_modes(), str(self.folder / "healthcheck.sh"), *options],
            env=self.environ | {name: str(value) for name, value in variables.items()},
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stderr == ""
        rows = [line.split(maxsplit=2) for line in done.stdout.splitlines()]
        return Report(
            done.returncode,
            {name: verdict for verdict, name, _ in rows},
            {name: text for _, name, text in rows},
        )


def bound_by_modes() -> list[str]:
    """Return the command prefix under which mode bits bind even root."""
    return ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """Return the folder that relative paths of database and artifacts resolve against."""
    folder = tmp_path / "state folder"
    folder.mkdir()
    return folder


@pytest.fixture
def installation(tmp_path: Path, state: Path) -> Installation:
    """Return a working installation, in a folder with a blank in its name."""
    return Installation(tmp_path / "the project", state)


def listing(folder: Path) -> dict[Path, int]:
    """Return everything below `folder`, files with the time of their last change."""
    return {path: 0 if path.is_dir() else path.lstat().st_mtime_ns for path in folder.rglob("*")}


def free_port() -> int:
    """Return a loopback port on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def health_service(status: int, body: bytes) -> Iterator[int]:
    """Answer one GET on the port it yields with `status` and `body`."""

    class Health(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body if self.path == "/health" else b"")

        def log_message(self, *args: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Health) as service:
        thread = threading.Thread(target=service.handle_request)
        thread.start()
        yield service.server_port
        thread.join()


def test_a_good_installation_passes(installation: Installation, state: Path) -> None:
    """Every check is ok, HTTP is not asked for, and relative paths are found as the server does."""
    report = installation.check()
    required = ["python", "pydantic", "database", "artifacts", "stdio"]
    assert report.verdicts == dict.fromkeys(required, "ok") | {"http": "skip"}
    assert report.status == 0
    assert report.texts["database"] == str(state / "tasks.db")
    assert report.texts["artifacts"] == str(state / "artifacts")
    assert report.texts["stdio"] == f"{SERVER_NAME} {SERVER_VERSION}"


def test_nothing_is_left_behind(tmp_path: Path, installation: Installation, state: Path) -> None:
    """A check leaves no file, changes none, and does not even read the live database."""
    live = state / "tasks.db"
    live.write_bytes(b"whatever the live server has in its hands")
    os.utime(live, (1, 1))
    before = listing(tmp_path)
    assert installation.check().status == 0
    assert listing(tmp_path) == before
    assert live.stat().st_atime == 1


@pytest.mark.parametrize("interruption", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_check_cleans_up(
    tmp_path: Path, installation: Installation, interruption: signal.Signals
) -> None:
    """Interrupted while the server is tried out, the check ends that server and removes its folder."""
    started = tmp_path / "started"
    os.mkfifo(started)
    (installation.folder / "server.py").write_text(
        "import os, signal\n"
        f"signal.signal({interruption:d}, signal.SIG_IGN)\n"
        f"open({str(started)!r}, 'w').write(str(os.getpid()))\n"
        "signal.alarm(60)  # in case the check lets it live\n"
        "signal.pause()\n"
    )
    held_by_check, ours = os.pipe()
    with subprocess.Popen(
        [str(installation.folder / "healthcheck.sh")],
        env=installation.environ,
        stdout=subprocess.DEVNULL,
        pass_fds=[ours],
        start_new_session=True,
    ) as check:
        os.close(ours)
        server = int(started.read_text())
        os.killpg(check.pid, interruption)
        assert check.wait() != 0
    with open(held_by_check, "rb") as every_process_of_the_check:
        assert every_process_of_the_check.read() == b""
    with pytest.raises(ProcessLookupError):
        os.kill(server, 0)
    assert list(installation.scratch.iterdir()) == []


def test_a_missing_environment_fails(installation: Installation) -> None:
    """Without .venv the check fails, and says how to make it."""
    shutil.rmtree(installation.folder / ".venv")
    report = installation.check()
    assert report.status == 1
    assert report.verdicts["python"] == "FAIL"
    assert "python3 -m venv .venv" in report.texts["python"]


def test_an_old_interpreter_fails(installation: Installation) -> None:
    """A Python before 3.11 is refused by its version."""
    pretence = "import sys; sys.version_info = (3, 10, 9); exec(sys.argv[1])"
    installation.program(
        ".venv/bin/python", f'exec {shlex.quote(sys.executable)} -c {shlex.quote(pretence)} "$2"'
    )
    report = installation.check()
    assert (report.status, report.verdicts["python"]) == (1, "FAIL")
    assert "is 3.10.9, but 3.11 is needed" in report.texts["python"]


def test_missing_pydantic_fails(tmp_path: Path, installation: Installation) -> None:
    """In an environment without pydantic the check fails, and says how to install it."""
    venv.create(tmp_path / "bare", symlinks=True)
    bare = shlex.quote(str(tmp_path / "bare" / "bin" / "python"))
    installation.program(".venv/bin/python", f'exec {bare} "$@"')
    report = installation.check()
    assert (report.status, report.verdicts["pydantic"]) == (1, "FAIL")
    assert "pip install -r requirements.txt" in report.texts["pydantic"]


def test_old_pydantic_fails(tmp_path: Path, installation: Installation) -> None:
    """A pydantic before 2 is refused by its version."""
    (tmp_path / "pydantic.py").write_text("VERSION = '1.10.19'\n")
    report = installation.check(PYTHONPATH=tmp_path)
    assert (report.status, report.verdicts["pydantic"]) == (1, "FAIL")
    assert "is 1.10.19, but 2 is needed" in report.texts["pydantic"]


@pytest.mark.parametrize("variable", ["MCP_TASK_DB_PATH", "MCP_TASK_ARTIFACTS_DIR"])
@pytest.mark.parametrize("obstacle", ["file", "closed folder"])
def test_a_place_that_cannot_be_made_fails(
    installation: Installation, state: Path, variable: str, obstacle: str
) -> None:
    """Database and artifacts each need a folder to be made in, not a file, and open to us."""
    place = state / obstacle
    if obstacle == "file":
        place.touch(mode=0o700)
    else:
        place.mkdir(mode=0o500)
    report = installation.check(**{variable: place / "below" / "it"})
    failed = "database" if variable == "MCP_TASK_DB_PATH" else "artifacts"
    assert report.status == 1
    assert [name for name, verdict in report.verdicts.items() if verdict == "FAIL"] == [failed]
    assert str(place) in report.texts[failed]


@pytest.mark.parametrize("suffix", ["", "-journal", "-wal", "-shm", ".lock"])
def test_a_database_that_cannot_be_written_fails(
    installation: Installation, state: Path, suffix: str
) -> None:
    """The database and what is beside it must be writable, whoever left it behind."""
    (state / f"tasks.db{suffix}").touch(mode=0o400)
    report = installation.check()
    assert (report.status, report.verdicts["database"]) == (1, "FAIL")
    assert str(state / f"tasks.db{suffix}") in report.texts["database"]


def test_a_database_in_a_closed_folder_fails(installation: Installation, state: Path) -> None:
    """A writable database is not enough: its journal must be made beside it."""
    (state / "tasks.db").touch()
    state.chmod(0o500)
    report = installation.check(MCP_TASK_ARTIFACTS_DIR=installation.folder / "artifacts")
    assert (report.status, report.verdicts["database"]) == (1, "FAIL")


def test_a_setting_that_cannot_be_used_fails(installation: Installation) -> None:
    """A bad variable is reported in the server's own words."""
    report = installation.check(MCP_TASK_PORT="http")
    assert (report.status, report.verdicts["settings"]) == (1, "FAIL")
    assert "MCP_TASK_PORT is 'http'" in report.texts["settings"]


@pytest.mark.parametrize(
    ("server", "complaint"),
    [
        ("raise RuntimeError('broken beyond repair')", "RuntimeError: broken beyond repair"),
        ("print('this is no JSON-RPC')", "it did not answer"),
        ("print('{}')", "it did not answer"),
        ("pass", "it did not answer"),
        ("import signal; signal.pause()", "did not answer and end within 0.2 s"),
    ],
)
def test_a_server_that_does_not_answer_fails(installation: Installation, server: str, complaint: str) -> None:
    """A server that dies, babbles, is silent or hangs fails the check, with its last words."""
    installation.edit("healthcheck.sh", "answer_seconds=10", "answer_seconds=0.2")
    (installation.folder / "server.py").write_text(f"{server}\n")
    report = installation.check()
    assert (report.status, report.verdicts["stdio"]) == (1, "FAIL")
    assert complaint in report.texts["stdio"]


def test_a_service_that_does_not_listen_fails(installation: Installation) -> None:
    """With --http a service must listen on MCP_TASK_PORT."""
    port = free_port()
    report = installation.check("--http", MCP_TASK_PORT=str(port))
    assert (report.status, report.verdicts["http"]) == (1, "FAIL")
    assert f"127.0.0.1:{port}" in report.texts["http"]


@pytest.mark.parametrize(
    ("status", "body", "verdict"),
    [
        (200, b'{"status": "ok"}', "ok"),
        (200, b'{"status": "starting"}', "FAIL"),
        (200, b"ok", "FAIL"),
        (503, b'{"status": "ok"}', "FAIL"),
    ],
)
def test_the_service_is_judged_by_its_health(
    installation: Installation, status: int, body: bytes, verdict: str
) -> None:
    """Only a 200 with the status ok counts as healthy."""
    with health_service(status, body) as port:
        report = installation.check("--http", MCP_TASK_PORT=str(port))
    assert report.verdicts["http"] == verdict
    assert report.status == (verdict == "FAIL")


@pytest.mark.parametrize("question", ["is-enabled", "is-active"])
def test_a_systemd_unit_means_that_the_service_is_meant_to_run(
    installation: Installation, question: str
) -> None:
    """An enabled or active unit makes the HTTP service required without any option."""
    installation.systemctl(f'case "$*" in *{question}*mcp-task-server*) ;; *) exit 1 ;; esac')
    report = installation.check(MCP_TASK_PORT=str(free_port()))
    assert (report.status, report.verdicts["http"]) == (1, "FAIL")


def test_options_are_explained(installation: Installation) -> None:
    """--help explains the check without running it, and an unknown option ends with 2."""
    command = str(installation.folder / "healthcheck.sh")
    asked = subprocess.run([command, "--help"], capture_output=True, text=True, check=True)
    assert "--http" in asked.stdout
    wrong = subprocess.run([command, "--htpp"], capture_output=True, text=True, check=False)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "--http" in wrong.stderr


needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"
)


@pytest.fixture
def unit(installation: Installation, state: Path) -> Path:
    """Return the unit, filled in by the sed command that the head of the template gives."""
    template = installation.folder / "systemd" / f"{UNIT}.template"
    (command,) = re.findall(r"^#   (sed .*)$", template.read_text(), re.MULTILINE)
    values = {"USER": "tasks", "STATE": str(state)}
    subprocess.run(
        ["sh", "-c", command],
        cwd=installation.folder,
        env=installation.environ | values,
        check=True,
    )
    return installation.folder / UNIT


def unit_settings(unit: Path) -> dict[str, list[str]]:
    """Return the values of each setting of the unit, in order."""
    settings: dict[str, list[str]] = {}
    for line in unit.read_text().splitlines():
        if line and not line.startswith(("#", "[")):
            name, _, value = line.partition("=")
            settings.setdefault(name, []).append(value)
    return settings


def analyze(*arguments: str) -> tuple[int, str]:
    """Run systemd-analyze and return its exit status and what it complains about."""
    done = subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


def test_the_unit_has_no_gaps(unit: Path) -> None:
    """One sed command fills every placeholder, and leaves the instructions behind."""
    assert unit.read_text().startswith("[Unit]\n")
    assert not re.search("@[A-Z]+@", unit.read_text())


@needs_systemd
@pytest.mark.parametrize("token", [False, True])
def test_the_unit_is_valid(unit: Path, token: bool) -> None:
    """Every line is accepted by systemd, also with the comments taken off the token."""
    if token:
        unit.write_text(re.sub(r"^#(\w+=)", r"\1", unit.read_text(), flags=re.MULTILINE))
    assert ("MCP_TASK_TOKEN_FILE=%d/token" in unit_settings(unit)["Environment"]) == token
    assert analyze("verify", "--man=no", "--recursive-errors=no", str(unit)) == (0, "")


@needs_systemd
def test_the_unit_is_hardened(unit: Path) -> None:
    """The exposure of the service is at most 2.0, as systemd counts it."""
    assert analyze("security", "--offline=true", "--threshold=20", str(unit)) == (0, "")


def test_the_unit_starts_the_service(unit: Path, installation: Installation, state: Path) -> None:
    """What the unit starts is healthy, writes only where it may, and ends in good order when told to."""
    settings = unit_settings(unit)
    assert shlex.split(settings["ReadWritePaths"][0]) == [str(state)]
    environ = dict(shlex.split(value)[0].split("=", 1) for value in settings["Environment"])
    before = listing(unit.parent)
    with contextlib.ExitStack() as stack:
        service = stack.enter_context(
            subprocess.Popen(
                shlex.split(settings["ExecStart"][0]),
                cwd=settings["WorkingDirectory"][0],
                env=environ | {"MCP_TASK_PORT": "0", "PYTHONPYCACHEPREFIX": str(state / "byte-code")},
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        stack.callback(service.kill)
        assert service.stderr is not None
        (port,) = re.findall(r"127\.0\.0\.1:(\d+)", service.stderr.readline())
        report = installation.check("--http", MCP_TASK_PORT=port)
        assert (report.status, report.verdicts["http"]) == (0, "ok")
        service.send_signal(signal.Signals[settings["KillSignal"][0]])
        assert service.wait(timeout=float(settings["TimeoutStopSec"][0])) == 0
    assert listing(unit.parent) == before
    assert {"tasks.db", "artifacts"} <= {path.name for path in state.iterdir()}
