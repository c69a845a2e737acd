"""Settings and the command line: what is meant by what, and one clear line for what cannot be used."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from support import PATIENCE, PROJECT, SERVER, Process, StdioClient, environment, stdio

import config
from config import ConfigError, Settings, load_settings, make_folder, parse_port
from origins import Origin

AGENT_HOME = "/home/agent"


def load(working_dir: str = "/somewhere/here", **environ: str) -> Settings:
    return load_settings(environ, working_dir)


def run(folder: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run the server without a client, in `folder`."""
    return subprocess.run(
        [sys.executable, str(SERVER), *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment(folder, **settings),
        timeout=PATIENCE,
    )


def refusal(folder: Path, *arguments: str, **settings: str) -> str:
    """Return the one line that a server says which refuses to start."""
    ended = run(folder, *arguments, **settings)
    assert (ended.returncode, ended.stdout) == (2, ""), ended.stderr
    assert ended.stderr.startswith(f"{config.SERVER_NAME}: ")
    assert ended.stderr.count("\n") == 1
    return ended.stderr


# --- Values -------------------------------------------------------------------------------------------


def test_nothing_needs_to_be_set() -> None:
    """Without any variable all is kept beside server.py, on port 8766, for this machine alone."""
    assert load() == Settings(
        db_path=str(PROJECT / "tasks.db"),
        artifacts_dir=str(PROJECT / "artifacts"),
        port=8766,
        debug=False,
        token=None,
        allowed_origins=(),
        attach_roots=("/somewhere/here",),
        agent_idle_seconds=1800,
        on_handoff=(),
    )


@pytest.mark.parametrize(
    "name",
    ["DB_PATH", "ARTIFACTS_DIR", "BASE_DIR", "PORT", "TOKEN", "TOKEN_FILE", "ALLOWED_ORIGINS"],
)
def test_an_empty_variable_counts_as_unset(name: str) -> None:
    """A variable that a client's settings leave empty means the default, not a path or port of nothing."""
    assert load(**{f"MCP_TASK_{name}": ""}) == load()
    assert load(MCP_DEBUG="") == load()


def test_relative_paths_resolve_against_the_base_and_never_the_working_directory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Every client starts the server somewhere else, and all of them meet in one database."""
    monkeypatch.chdir(tmp_path)
    relative = {"MCP_TASK_DB_PATH": "state/t.db", "MCP_TASK_ARTIFACTS_DIR": "../files/"}
    settings = load(str(tmp_path), MCP_TASK_BASE_DIR="/srv/tasks", **relative)
    assert (settings.db_path, settings.artifacts_dir) == ("/srv/tasks/state/t.db", "/srv/files")
    settings = load(str(tmp_path), MCP_TASK_BASE_DIR="var", **relative)
    assert settings.db_path == str(PROJECT / "var/state/t.db")
    settings = load(str(tmp_path), **relative)
    assert settings.db_path == str(PROJECT / "state/t.db")


def test_absolute_paths_are_taken_as_they_are() -> None:
    """The base only matters to relative paths."""
    settings = load(MCP_TASK_BASE_DIR="/srv", MCP_TASK_DB_PATH="/a/t.db", MCP_TASK_ARTIFACTS_DIR="/b/")
    assert (settings.db_path, settings.artifacts_dir) == ("/a/t.db", "/b")


def test_the_home_directory_may_be_a_tilde(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients pass the environment without a shell that would expand it."""
    monkeypatch.setenv("HOME", AGENT_HOME)
    for name, field in (("DB_PATH", "db_path"), ("ARTIFACTS_DIR", "artifacts_dir")):
        assert getattr(load(**{f"MCP_TASK_{name}": "~/x"}), field) == f"{AGENT_HOME}/x"
    assert load(MCP_TASK_BASE_DIR="~/base").db_path == f"{AGENT_HOME}/base/tasks.db"
    assert load(MCP_TASK_ATTACH_ROOTS="~/a").attach_roots == (f"{AGENT_HOME}/a",)


def test_a_nul_in_a_path_is_refused() -> None:
    """No file can have such a name."""
    with pytest.raises(ConfigError, match="NUL"):
        load(MCP_TASK_DB_PATH="a\0b")


@pytest.mark.parametrize(("text", "port"), [("0", 0), ("1", 1), ("8766", 8766), ("65535", 65535)])
def test_a_port_is_a_number(text: str, port: int) -> None:
    """Every TCP port can be named, and 0, which lets the system choose."""
    assert load(MCP_TASK_PORT=text).port == parse_port(text, "--port") == port


BAD_PORTS = (
    "65536",
    "-1",
    "+1",
    "1e3",
    "0x50",
    "80.0",
    "http",
    " 80",
    "80 ",
    "1_0",
    "٣",
    "99999999999999999999",
)


@pytest.mark.parametrize("text", BAD_PORTS)
def test_anything_else_is_no_port(text: str) -> None:
    """What is no port is refused under the name of the variable, with the value."""
    with pytest.raises(ConfigError) as caught:
        load(MCP_TASK_PORT=text)
    assert "MCP_TASK_PORT" in str(caught.value)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(
    ("value", "debug"),
    [
        ("1", True),
        ("true", True),
        ("YES", True),
        ("0", False),
        ("false", False),
        ("No", False),
        ("off", False),
    ],
)
def test_the_debug_log_is_switched_by_a_word(value: str, debug: bool) -> None:
    """MCP_DEBUG is on for anything but the usual ways of saying no."""
    assert load(MCP_DEBUG=value).debug is debug


def test_origins_are_a_list() -> None:
    """Origins are separated by commas, blanks or both."""
    origins = load(MCP_TASK_ALLOWED_ORIGINS=" https://a.example,http://b:1 ,  x://c ").allowed_origins
    assert origins == (
        Origin("https", "a.example", None),
        Origin("http", "b", "1"),
        Origin("x", "c", None),
    )


# --- The token ----------------------------------------------------------------------------------------


def test_a_token_comes_from_a_variable_or_a_file(tmp_path: Path) -> None:
    """Blanks and line ends around a token are not part of it; the variable wins over the file."""
    (tmp_path / "token").write_text("  from-file \n")
    named = {"MCP_TASK_BASE_DIR": str(tmp_path), "MCP_TASK_TOKEN_FILE": "token"}
    assert load(**named).token == "from-file"
    assert load(**named, MCP_TASK_TOKEN=" from-variable\n").token == "from-variable"
    assert load(**named, MCP_TASK_TOKEN="").token == "from-file"


@pytest.mark.parametrize("content", [b"", b" \n", b"two words", "schlüssel".encode(), b"a\0b", None])
def test_a_token_file_that_cannot_be_used_stops_the_start(tmp_path: Path, content: bytes | None) -> None:
    """A service that was meant to be protected never starts unprotected: one line, exit 2."""
    file = tmp_path / "token"
    if content is not None:
        file.write_bytes(content)
    said = refusal(tmp_path, "--http", "--port", "0", MCP_TASK_TOKEN_FILE=str(file))
    assert "token" in said.lower()


@pytest.mark.parametrize("token", ["two words", "tab\there", "schlüssel"])
def test_a_token_must_fit_in_a_header(token: str) -> None:
    """What no client could send is refused, and not repeated."""
    with pytest.raises(ConfigError) as caught:
        load(MCP_TASK_TOKEN=token)
    assert token not in str(caught.value)


# --- Attachments --------------------------------------------------------------------------------------


def test_files_are_attached_from_the_working_directory(tmp_path: Path) -> None:
    """By default the one folder is where the client started the server, its links resolved."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert load(str(tmp_path / "link")).attach_roots == (os.path.realpath(tmp_path / "real"),)


@pytest.mark.parametrize("working_dir", ["/", AGENT_HOME, AGENT_HOME + "/", "//"])
def test_the_default_is_never_everything(monkeypatch: pytest.MonkeyPatch, working_dir: str) -> None:
    """Started in the root or the home directory, the server attaches nothing by path."""
    monkeypatch.setenv("HOME", AGENT_HOME)
    assert load(working_dir).attach_roots == ()


def test_attach_roots_can_be_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """MCP_TASK_ATTACH_ROOTS replaces the default, relative to the base; what the user names may be wide."""
    monkeypatch.setenv("HOME", AGENT_HOME)
    roots = os.pathsep.join(["/", AGENT_HOME, "", "logs"])
    settings = load(MCP_TASK_BASE_DIR=str(tmp_path), MCP_TASK_ATTACH_ROOTS=roots)
    assert settings.attach_roots == ("/", AGENT_HOME, os.path.realpath(tmp_path / "logs"))


# --- The process --------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [(), ("--http",)], ids=["STDIO", "HTTP"])
@pytest.mark.parametrize(
    "settings",
    [
        {"MCP_TASK_PORT": "http"},
        {"MCP_TASK_TOKEN": "two words"},
        {"MCP_TASK_DB_PATH": "file/tasks.db"},
        {"MCP_TASK_ARTIFACTS_DIR": "file"},
        {"MCP_TASK_ARTIFACTS_DIR": "file/below"},
    ],
    ids=lambda settings: "=".join(*settings.items()),
)
def test_a_setting_that_cannot_be_used_is_one_line(
    tmp_path: Path, arguments: tuple[str, ...], settings: dict[str, str]
) -> None:
    """A bad value, or a folder that cannot be made, is said under its variable's name: exit 2."""
    (tmp_path / "file").write_text("in the way")
    said = refusal(tmp_path, *arguments, MCP_TASK_BASE_DIR=str(tmp_path), **settings)
    (name,) = settings
    assert name in said or name == "MCP_TASK_TOKEN"
    assert (tmp_path / "file").read_text() == "in the way"


@pytest.mark.parametrize("port", ["http", "65536", "-1"])
def test_a_bad_port_argument_is_one_line(tmp_path: Path, port: str) -> None:
    """--port is judged as the variable is."""
    assert "--port" in refusal(tmp_path, "--http", f"--port={port}")


@pytest.mark.parametrize(
    "arguments", [["--port", "1"], ["--host", "::1"], ["--nonsense"], ["--ht"], ["x"]], ids=" ".join
)
def test_a_command_line_that_makes_no_sense_is_refused(tmp_path: Path, arguments: list[str]) -> None:
    """--port and --host without --http, unknown and abbreviated options: exit 2, and nothing is made."""
    ended = run(tmp_path, *arguments)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "usage: " in ended.stderr
    assert ("--http" in ended.stderr.splitlines()[-1]) is (arguments[0] in ("--port", "--host"))
    assert os.listdir(tmp_path) == []


def test_the_version_is_told(tmp_path: Path) -> None:
    """--version names the server and its version, and does nothing else."""
    ended = run(tmp_path, "--version")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "mcp-task-server 1.0.0\n", "")
    assert os.listdir(tmp_path) == []


def test_help_names_every_option(tmp_path: Path) -> None:
    """--help explains the options and where the settings come from."""
    ended = run(tmp_path, "--help")
    assert (ended.returncode, ended.stderr) == (0, "")
    for word in ("--http", "--host", "--port", "--version", "MCP_TASK_", "127.0.0.1", "8766"):
        assert word in ended.stdout
    assert os.listdir(tmp_path) == []


def test_the_working_directory_does_not_matter(tmp_path: Path) -> None:
    """Two clients that start the server in different folders find each other's tasks."""
    relative = {"MCP_TASK_BASE_DIR": str(tmp_path), "MCP_TASK_DB_PATH": "t.db", "MCP_TASK_ARTIFACTS_DIR": "a"}
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    with stdio(tmp_path, cwd=tmp_path / "one", **relative) as one:
        one.call("create_task", task_id="t1", title="t", goal="g")
    with stdio(tmp_path, cwd=tmp_path / "two", **relative) as two:
        assert two.call("get_task", task_id="t1")["title"] == "t"
    assert os.listdir(tmp_path / "one") == os.listdir(tmp_path / "two") == []


def test_everything_on_disk_is_private(tmp_path: Path) -> None:
    """Whatever the caller's umask: every file made is 0600, every folder 0700, parents included."""
    state = tmp_path / "state"
    places = {"MCP_TASK_DB_PATH": f"{state}/a/b/t.db", "MCP_TASK_ARTIFACTS_DIR": f"{state}/c/d"}
    before = os.umask(0)
    try:
        client: StdioClient = stdio(tmp_path, **places)
    finally:
        os.umask(before)
    with client:
        client.call("create_task", task_id="t1", title="t", goal="g")
        client.call("attach_artifact", task_id="t1", name="log", content="text")
        modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (state, *state.rglob("*"))}
    assert len([path for path in modes if path.is_file()]) >= 3
    assert {mode for path, mode in modes.items() if path.is_file()} == {0o600}
    assert {mode for path, mode in modes.items() if path.is_dir()} == {0o700}


def test_a_folder_that_is_there_is_left_as_it_is(tmp_path: Path) -> None:
    """Only folders that are made get the private mode: others are their owner's decision."""
    tmp_path.chmod(0o755)
    make_folder(str(tmp_path), "MCP_TASK_DB_PATH")
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755


# --- A start that cannot go well ----------------------------------------------------------------------


def started(folder: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SERVER)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=environment(folder, **settings),
        timeout=PATIENCE,
    )


def test_a_working_directory_that_is_gone_is_no_obstacle(tmp_path: Path) -> None:
    """A client may start the server in a folder that has been deleted since: no traceback."""
    (tmp_path / "gone").mkdir()
    code = f"import os, sys; os.chdir({str(tmp_path / 'gone')!r}); os.rmdir(os.getcwd()); "
    code += f"os.execv(sys.executable, [sys.executable, {str(SERVER)!r}])"
    ended = subprocess.run(
        [sys.executable, "-c", code],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment(tmp_path), timeout=PATIENCE,
    )  # fmt: skip
    assert "Traceback" not in ended.stderr
    assert ended.returncode == 0


def test_a_database_path_that_is_a_folder_is_a_bad_setting(tmp_path: Path) -> None:
    """A value that can never work is exit 2 under its variable's name, not exit 1."""
    ended = started(tmp_path, MCP_TASK_DB_PATH=str(tmp_path))
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
    assert "MCP_TASK_DB_PATH" in ended.stderr


def test_a_database_path_that_is_no_regular_file_is_a_bad_setting(tmp_path: Path) -> None:
    """A pipe or a device takes no database: exit 2, and nothing is written beside it."""
    os.mkfifo(tmp_path / "pipe")
    ended = started(tmp_path, MCP_TASK_DB_PATH=str(tmp_path / "pipe"))
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
    assert "MCP_TASK_DB_PATH" in ended.stderr
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("pipe") and path.name != "pipe"]


@pytest.mark.parametrize("arguments", [(), ("--http", "--port", "0"), ("--verify",)])
def test_an_interpreter_without_pydantic_is_told(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """Started with another Python than the one of the virtual environment, it says so: exit 2, one line."""
    with Process(tmp_path, *arguments, prelude="sys.modules['pydantic'] = None") as server:
        assert server.process.wait(PATIENCE) == 2
        assert server.stderr().count("\n") == 1
        assert "has no pydantic" in server.stderr()


def test_a_complaint_is_one_line_whatever_the_value(tmp_path: Path) -> None:
    """A line end in a value does not make two lines of the complaint."""
    (tmp_path / "file").write_text("")
    ended = started(tmp_path, MCP_TASK_ARTIFACTS_DIR=str(tmp_path / "file" / "a\nb"))
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)


def test_a_token_is_never_cut(tmp_path: Path) -> None:
    """A token file is taken whole or refused: half a token would be another token."""
    (tmp_path / "token").write_text("x" * 5000)
    settings = load_settings({"MCP_TASK_TOKEN_FILE": str(tmp_path / "token")}, str(tmp_path))
    assert settings.token == "x" * 5000
