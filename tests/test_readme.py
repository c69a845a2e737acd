"""What the README shows is run, and what it lists is compared with the code."""

from __future__ import annotations

import ast
import hashlib
import http.client
import json
import re
import shlex
import string
import subprocess
import sys
import tomllib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
from support import (
    PATIENCE,
    PROJECT,
    SERVER,
    HttpServer,
    JsonObject,
    StdioClient,
    environment,
    stdio,
    wait_until,
)

import config
import errors
import prompts
import protocol
import resources
import tools
from arguments import ReportArguments
from models import PRIORITY, ClaimKind, OwnerState, Status, TestStatus
from tool_list import list_tools

README = (PROJECT / "README.md").read_text(encoding="utf-8")
PLACEHOLDER = "/path/to/mcp-task-server"
PYTHON = ".venv/bin/python"


# --- Reading the README -------------------------------------------------------------------------------


def section(title: str) -> str:
    """Return what stands below the heading `title`, up to the next one of its rank or higher."""
    for rank in (2, 3):
        pattern = rf"^#{{{rank}}} {re.escape(title)}\n(.*?)(?=^#{{2,{rank}}} |\Z)"
        if found := re.search(pattern, README, re.M | re.S):
            return found[1]
    raise AssertionError(f"the README has no section {title!r}")


def blocks(text: str, language: str) -> list[str]:
    """Return the fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)


def rows(title: str) -> list[list[str]]:
    """Return the cells of the table in a section, without its head."""
    lines = [line for line in section(title).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def code(text: str) -> list[str]:
    """Return what is marked as code."""
    return re.findall(r"`([^`]+)`", text)


def commands() -> list[list[str]]:
    """Return the steps of each command line of the quick start."""
    first = blocks(section("Quick start"), "sh")[0]
    return [line.split(" && ") for line in first.splitlines()]


# --- What it tells people to run ----------------------------------------------------------------------


def test_the_quick_start_has_two_lines_that_set_up_and_run() -> None:
    """Both lines make the environment and install from a requirements file that is there."""
    assert len(blocks(section("Quick start"), "sh")) == 1
    for (venv, install, _), requirements in zip(
        commands(), ("requirements.txt", "requirements-dev.txt"), strict=True
    ):
        assert venv == "python3 -m venv .venv"
        assert install == f"{PYTHON} -m pip install -q -r {requirements}"
        assert (PROJECT / requirements).is_file()


def test_the_quick_start_shows_what_the_example_prints() -> None:
    """The first line's command runs, and the excerpt below it is in its output."""
    python, *arguments = shlex.split(commands()[0][2])
    assert python == PYTHON
    played = subprocess.run(
        [sys.executable, *arguments], cwd=PROJECT, capture_output=True, text=True, timeout=PATIENCE
    )
    assert played.returncode == 0, played.stderr
    (excerpt,) = blocks(section("Quick start"), "text")
    assert excerpt in played.stdout


def test_the_quick_start_runs_the_tests() -> None:
    """The second line's command is this test run, and the first of its kind, which .ci/run looks for."""
    assert commands()[1][2] == f"{PYTHON} -m pytest"
    assert README.index(f"{PYTHON} -m pytest") == README.index(f"{commands()[1][2]}\n```")


def test_every_guarantee_has_its_proof() -> None:
    """Each promise names tests that are there, with full-size ones where it says so and nowhere else."""
    assert blocks(section("Guarantees"), "sh") == [f"{PYTHON} -m pytest -m slow -n 0\n"]
    proving: set[str] = set()
    for _, _, command, full_size in rows("Guarantees"):
        names = shlex.split(code(command)[0].removeprefix(f"{PYTHON} -m pytest "))
        assert names
        has_slow = ["@pytest.mark.slow" in (PROJECT / name).read_text() for name in names]
        assert any(has_slow) == bool(full_size), names
        proving |= set(names)
    slow = {f"tests/{path.name}" for path in TESTS.glob("test_*.py") if SLOW.search(path.read_text())}
    assert slow <= proving


TESTS = PROJECT / "tests"
SLOW = re.compile("^@pytest.mark.slow", re.MULTILINE)


def test_the_server_starts_as_shown(tmp_path: Path) -> None:
    """Both ways of starting it exist, and the service's address is the default one."""
    (shown,) = blocks(section("Running the server"), "sh")
    lines = [shlex.split(line, comments=True) for line in shown.splitlines()]
    assert lines == [[PYTHON, SERVER.name], [PYTHON, SERVER.name, "--http"]]
    assert f"http://127.0.0.1:{config.DEFAULT_PORT}\n" in shown
    usage = output("--help", folder=tmp_path)
    for option in re.findall(r"--[a-z]+", section("Running the server")):
        assert option in usage


def output(*arguments: str, folder: Path, lines: str = "") -> str:
    """Return what the server prints for these arguments and lines on its stdin."""
    done = subprocess.run(
        [sys.executable, str(SERVER), *arguments],
        input=lines,
        env=environment(folder),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_a_backup_is_made_verified_and_restored_as_shown(tmp_path: Path) -> None:
    """The three scripts save, check and bring back a task and its artifact, and a server has both."""
    backup, verify, restore = blocks(section("Backup, verify and restore"), "sh")
    with stdio(tmp_path) as client:
        client.call("create_task", task_id="t", title="t", goal="g")
        client.call("attach_artifact", task_id="t", name="a", content="kept")
        assert re.search(r"^copied to .+: 1 task, .+\nsound: 1 task, ", run(backup, tmp_path))
        client.call("create_task", task_id="later", title="t", goal="g")
    assert run(verify, tmp_path) == "sound: 1 task, 1 artifact (4 bytes)\n"
    (tmp_path / "artifacts" / hashlib.sha256(b"kept").hexdigest()).write_bytes(b"lost")
    assert run(restore, tmp_path) == "sound: 1 task, 1 artifact (4 bytes)\n"
    with stdio(tmp_path) as client:
        assert client.call("list_tasks")["total"] == 1
        assert client.call("get_task", task_id="t", artifact=1)["text"] == "kept"


def run(script: str, folder: Path) -> str:
    """Return what a script of the README prints, run where `tasks.db` and `artifacts` are."""
    server = shlex.join([sys.executable, str(SERVER)])
    return subprocess.run(
        ["sh", "-e", "-c", script.replace(f"{PYTHON} {SERVER.name}", server)],
        cwd=folder,
        env=environment(folder),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=PATIENCE,
    ).stdout


def test_systemd_is_set_up_as_the_template_says() -> None:
    """The README's steps are the template's, to the letter."""
    (steps,) = blocks(section("systemd"), "sh")
    template = (PROJECT / "systemd/mcp-task-server.service.template").read_text(encoding="utf-8")
    assert re.findall("^#   (.*\n)", template, re.M) == steps.splitlines(keepends=True)


def test_the_health_check_is_there() -> None:
    """The script and the option that the README names exist."""
    script, option = code(section("Health check"))
    usage = subprocess.run(
        [script, "--help"], cwd=PROJECT, capture_output=True, text=True, check=True, timeout=PATIENCE
    ).stdout
    assert f"{script} [{option}]" in usage


# --- Clients ------------------------------------------------------------------------------------------

CLIENTS = ("Any STDIO client", "Claude Code", "Codex", "Cursor", "VS Code", "Gemini CLI", "Hermes Agent")


class Entry(NamedTuple):
    """One configuration of the server: the client it is for, and what the client is told."""

    client: str
    told: JsonObject


def entries() -> list[Entry]:
    """Return every configuration that the README shows."""
    return (
        [
            Entry(client, server_in(parse(block)))
            for client in CLIENTS
            for language, parse in PARSERS.items()
            for block in blocks(section(client), language)
        ]
        + [
            Entry(client, told_by(shlex.split(line)))
            for client in CLIENTS
            for block in blocks(section(client), "sh")
            for line in block.splitlines()
        ]
        + [Entry(client, json.loads(code(cell)[0])) for client, cell in rows("HTTP+SSE elsewhere")]
    )


def server_in(configuration: JsonObject) -> JsonObject:
    """Return the one entry of a client's configuration, which has the server's name."""
    ((key, servers),) = configuration.items()
    assert key in ("mcpServers", "mcp_servers", "servers")
    ((name, told),) = servers.items()
    assert name == config.SERVER_NAME
    assert isinstance(told, dict)
    return told


def told_by(command: list[str]) -> JsonObject:
    """Return what `claude mcp add [--transport T] NAME (URL | -- COMMAND...)` configures."""
    assert command[:3] == ["claude", "mcp", "add"]
    if "--" in command:
        name, _, program, *arguments = command[3:]
        assert name == config.SERVER_NAME
        return {"command": program, "args": arguments}
    option, transport, name, url = command[3:]
    assert (option, name) == ("--transport", config.SERVER_NAME)
    return {"type": transport, "url": url}


def parse_yaml(text: str) -> JsonObject:
    """Parse nested mappings of plain scalars and flow lists of quoted strings: all that is shown."""
    root: JsonObject = {}
    parents = [(-1, root)]
    for line in text.splitlines():
        match = re.fullmatch(r"( *)([\w-]+):(?: (.+))?", line)
        assert match is not None, line
        indent, key, value = len(match[1]), match[2], match[3]
        while parents[-1][0] >= indent:
            parents.pop()
        members = parents[-1][1]
        if value is None:
            parents.append((indent, members.setdefault(key, {})))
        else:
            members[key] = json.loads(value) if value.startswith("[") else value
    return root


PARSERS: dict[str, Callable[[str], JsonObject]] = {
    "json": json.loads,
    "toml": tomllib.loads,
    "yaml": parse_yaml,
}
STDIO = [entry for entry in entries() if "command" in entry.told]
HTTP = [entry for entry in entries() if "url" in entry.told]
URL = f"http://127.0.0.1:{config.DEFAULT_PORT}"
TOLD: dict[str, dict[str, JsonObject]] = {  # how each client is told which transport a URL has
    "/mcp": {
        "Claude Code": {"type": "http"},
        "Codex": {},
        "Cursor": {},
        "VS Code": {"type": "http"},
        "Gemini CLI": {"type": "http"},
        "Hermes Agent": {},
    },
    "/sse": {
        "Claude Code": {"type": "sse"},
        "Cursor": {},
        "VS Code": {"type": "sse"},
        "Gemini CLI": {"type": "sse"},
        "Hermes Agent": {"transport": "sse"},
    },
}


def test_every_client_is_configured() -> None:
    """Each client has a configuration, its own or that of any client, for each transport that it speaks."""
    shared = " ".join(section("Any STDIO client").split())
    listed = [row for row in rows("Clients") if len(row) == 4]
    speaking = {client: {"yes": True, "no": False} for client, *_ in listed}
    spoken = {client: [speaking[client][cell] for cell in cells] for client, *cells in listed}
    own = {entry.client for entry in STDIO}
    assert {client for client in spoken if client in own or f"{client} (" in shared} == set(spoken)
    assert own <= {*spoken, "Any STDIO client"}
    for client, (over_stdio, at_mcp, at_sse) in spoken.items():
        assert over_stdio
        assert at_mcp == (client in TOLD["/mcp"])
        assert at_sse == (client in TOLD["/sse"])
    assert {(entry.client, entry.told["url"].removeprefix(URL)) for entry in HTTP} == {
        (client, path) for path, clients in TOLD.items() for client in clients
    }


@pytest.mark.parametrize("entry", STDIO, ids=lambda entry: entry.client)
def test_a_stdio_configuration_starts_the_server(entry: Entry, tmp_path: Path) -> None:
    """The command and arguments of the snippet, in the place of the placeholder, answer `initialize`."""
    assert entry.told["command"] == f"{PLACEHOLDER}/{PYTHON}"
    assert entry.told.get("type", "stdio") == "stdio"
    arguments = [argument.replace(PLACEHOLDER, str(PROJECT)) for argument in entry.told["args"]]
    requests = [line for line in workflow() if '"initialize"' in line]
    answered = subprocess.run(
        [sys.executable, *arguments],
        input="\n".join(requests),
        env=environment(tmp_path),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE,
    )
    assert json.loads(answered.stdout)["result"]["serverInfo"]["name"] == config.SERVER_NAME


@pytest.mark.parametrize("entry", HTTP, ids=lambda entry: f"{entry.client} {entry.told['url'][-4:]}")
def test_an_http_configuration_names_the_endpoint(entry: Entry) -> None:
    """The snippet names an endpoint of the service, and its transport as the client wants it."""
    path = entry.told["url"].removeprefix(URL)
    assert entry.told == {"url": URL + path, **TOLD[path][entry.client]}


def test_the_token_goes_where_it_is_looked_for() -> None:
    """Every client with an HTTP configuration has a header of the form that the service reads."""
    table = rows("With a token")
    assert {client for client, _ in table} == {entry.client for entry in HTTP}
    for client, cell in table:
        header = code(cell)[0]
        if client == "Codex":
            assert tomllib.loads(header) == {"bearer_token_env_var": "MCP_TASK_TOKEN"}
            continue
        assert re.search(r'Authorization"?: "Bearer \$\{?[\w:]+\}?"\}$', header), client
        if client != "Hermes Agent":
            assert json.loads("{" + header + "}").keys() == {"headers"}


# --- What it lists ------------------------------------------------------------------------------------


def test_every_variable_is_listed_with_its_default(tmp_path: Path) -> None:
    """The table has the variables that config.py reads, no other, and the defaults it gives them."""
    source = ast.parse((PROJECT / "config.py").read_text(encoding="utf-8"))
    texts = {node.value for node in ast.walk(source) if isinstance(node, ast.Constant)}
    read = {text for text in texts if isinstance(text, str) and re.fullmatch("MCP_[A-Z_]+", text)}
    listed = {code(name)[0]: default for name, default, _ in rows("Environment variables")}
    assert set(listed) == read
    settings = config.load_settings({}, str(tmp_path))
    assert (settings.token, settings.allowed_origins, settings.debug) == (None, (), False)
    assert settings.on_handoff == ()
    assert settings.attach_roots == (str(tmp_path),)
    assert listed == {
        "MCP_TASK_DB_PATH": f"`{Path(settings.db_path).relative_to(PROJECT)}`",
        "MCP_TASK_ARTIFACTS_DIR": f"`{Path(settings.artifacts_dir).relative_to(PROJECT)}`",
        "MCP_TASK_BASE_DIR": "the folder of `server.py`",
        "MCP_TASK_PORT": f"`{settings.port}`",
        "MCP_TASK_TOKEN": "none",
        "MCP_TASK_TOKEN_FILE": "none",
        "MCP_TASK_ALLOWED_ORIGINS": "none",
        "MCP_TASK_ATTACH_ROOTS": "the working directory",
        "MCP_TASK_IDLE_SECONDS": f"`{settings.agent_idle_seconds}`",
        "MCP_TASK_ON_HANDOFF": "none",
        "MCP_DEBUG": "off",
    }


def test_every_endpoint_is_listed(tmp_path: Path) -> None:
    """The table has the endpoints that the service names, each with the method that it takes."""
    listed = [code(name)[0].split() for name, _ in rows("Endpoints")]
    with HttpServer(tmp_path) as server:
        _, _, answer = server.request("GET", "/nowhere")
        paths = re.findall(r"/\w+", json.loads(answer)["error"])
        assert [path.partition("?")[0] for _, path in listed] == paths
        for method, path in listed:
            status, headers, _ = server.request("PUT", path, b"")
            assert (status, headers["allow"]) == (http.client.METHOD_NOT_ALLOWED, method)


def test_every_revision_is_listed(tmp_path: Path) -> None:
    """The table has the revisions, oldest first, and what the table of revisions says of each."""
    yes_or_no = {True: "yes", False: "no"}
    assert rows("Protocol revisions") == [
        [
            revision.date,
            "any request" if revision.is_stateless else "`initialize`",
            yes_or_no[revision.batches],
            yes_or_no[revision.advertises >= {"prompts", "completions"}],
            "`subscriptions/listen`" if revision.is_stateless
            else "`resources/subscribe`" if revision.subscribes
            else "nothing",
        ]
        for revision in protocol.REVISIONS
    ]  # fmt: skip
    with StdioClient(tmp_path) as client:
        agreed = client.initialize("2099-01-01")["protocolVersion"]
    assert f"another revision is answered with {agreed}." in " ".join(section("Protocol revisions").split())
    with_titles = [revision.date for revision in protocol.REVISIONS if "title" not in revision.lacks]
    assert f"come with {with_titles[0]}." in section("Protocol revisions")


def test_every_tool_is_listed_with_its_arguments() -> None:
    """The table has the tools in order, with all their arguments, the lists and the required ones marked."""
    introduction, _, _ = section("Tools").partition("|")
    checkpoint_fields = dict.fromkeys(code(introduction.partition("Checkpoint fields")[2]), False)
    assert {name.removesuffix("[]") for name in checkpoint_fields} == set(ReportArguments.model_fields)
    listed = {}
    for name, arguments, _ in rows("Tools"):
        found = {one[1]: bool(one[2]) for one in re.finditer(r"`([^`]+)`(\\\*)?", arguments)}
        listed[code(name)[0]] = found | (checkpoint_fields if "checkpoint fields" in arguments else {})
    assert list(listed) == list(tools.TOOLS)
    assert listed == {tool["name"]: arguments_of(tool["inputSchema"]) for tool in list_tools()}


def arguments_of(schema: JsonObject) -> dict[str, bool]:
    """Return the arguments of a tool as the README writes them, and whether they are required."""
    required = schema.get("required", ())
    return {
        name + "[]" * (member["type"] == "array"): name in required
        for name, member in schema["properties"].items()
    }


def test_every_word_of_a_tool_is_known() -> None:
    """The values that the README names for an argument are those of the tool's schema."""
    attach = {tool["name"]: tool for tool in list_tools()}["attach_artifact"]["inputSchema"]
    row = next(row for row in rows("Tools") if code(row[0]) == ["attach_artifact"])
    for argument in ("type", "encoding"):
        assert set(attach["properties"][argument]["enum"]) <= set(code(row[2]))
    entry = next(line for line in section("Tools").splitlines() if "An entry of `test_results`" in line)
    assert set(code(entry)) > set(TestStatus)
    (told,) = [line for line in section("The resume brief").splitlines() if line.startswith("- `how`")]
    assert code(told) == ["how", *ClaimKind]


def test_every_state_of_an_owner_is_listed() -> None:
    """The table has the states in which the owner of a task can be, and no other."""
    assert [code(state)[0] for state, *_ in rows("When an agent dies")] == ["live", "unknown", "gone"]
    assert {"live", "unknown", "gone"} == set(OwnerState)


def test_every_error_is_listed() -> None:
    """The table has every code that a tool or the dispatcher can answer with, and no other."""
    listed = [code(name)[0] for name, _ in rows("Errors")]
    refusals = [str(kind.code) for kind in errors.ToolError.__subclasses__()]
    failures = [str(kind.code) for kind in protocol.RpcError.__subclasses__()]
    assert sorted(listed) == sorted(refusals + failures)


def test_every_resource_is_listed() -> None:
    """The table has the URI templates that the server lists."""
    assert [code(uri)[0] for uri, _ in rows("Resources")] == [
        template["uriTemplate"] for template in resources.TEMPLATES
    ]
    assert f"{config.RESOURCES_PAGE} a page" in section("Resources")


def test_resources_are_watched_as_told(tmp_path: Path) -> None:
    """Who subscribed hears of a change that another server made, by the name that the README gives."""
    with stdio(tmp_path) as watcher, stdio(tmp_path) as other:
        other.call("create_task", task_id="t", title="t", goal="g")
        watcher.result("resources/subscribe", {"uri": "task://t"})
        other.call("save_checkpoint", task_id="t", agent="a")
        told = watcher.receive()
    assert told["params"] == {"uri": "task://t"}
    assert told["method"] in code(section("Resources"))


def test_every_prompt_is_listed() -> None:
    """The table has the prompts in order, with their arguments."""
    assert [[code(name)[0], argument] for name, argument, _ in rows("Prompts")] == [
        [
            prompt["name"],
            ", ".join(f"`{one['name']}`" + r"\*" * one["required"] for one in prompt["arguments"]),
        ]
        for prompt in prompts.PROMPTS
    ]


def test_the_life_of_a_task_is_complete() -> None:
    """Table and diagram have every status, and between them only tools lead."""
    assert [code(row[0])[0] for row in rows("The life of a task")] == list(Status)
    (diagram,) = blocks(section("The life of a task"), "text")
    words = set(re.findall(r"[a-z_]+", diagram)) - {"or"}
    assert words > set(Status)
    assert words - set(Status) < set(tools.TOOLS)


UNITS = {"KiB": config.KIB, "MiB": config.MIB}
NO_LIMITS = {"TYPE_CHECKING", "KIB", "MIB", "DEFAULT_PORT", "DEFAULT_AGENT_IDLE_SECONDS"}


def test_every_limit_is_listed_with_its_value() -> None:
    """The table has every number that config.py names, as it is there."""
    named = {
        name: value
        for name, value in vars(config).items()
        if name.isupper() and isinstance(value, int | float) and name not in NO_LIMITS
    }
    listed = {code(constant)[0]: value_of(limit) for _, limit, constant, _ in rows("Limits")}
    assert listed == named


def value_of(limit: str) -> float:
    """Return the number that a cell such as `1,000 entries` or `8 MiB` stands for."""
    number, _, unit = limit.partition(" ")
    return float(number.replace(",", "")) * UNITS.get(unit, 1)


def test_every_module_is_listed() -> None:
    """The structure names every module of the project, and nothing that is not there."""
    listed = [code(path)[0] for path, _ in rows("Project structure")]
    assert {path for path in listed if re.fullmatch(r"\w+\.py", path)} == {
        path.name for path in PROJECT.glob("*.py")
    }
    for path in listed:
        assert (PROJECT / path).exists(), path
        assert (PROJECT / path).is_dir() == path.endswith("/"), path


def test_links_lead_somewhere() -> None:
    """A link within the project names a heading or a file that is there."""
    headings = {slug(heading) for heading in re.findall(r"^#+ (.+)$", README, re.M)}
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", README):
        path, _, anchor = target.partition("#")
        assert not path or (PROJECT / path).exists(), target
        assert not anchor or anchor in headings, target


def test_the_threat_model_names_tests_that_are_there() -> None:
    """Every test that SECURITY.md calls a proof exists, and every defence has one."""
    source = "".join(path.read_text(encoding="utf-8") for path in (PROJECT / "tests").glob("test_*.py"))
    tests = set(re.findall(r"^def (test_\w+)", source, re.M))
    text = (PROJECT / "SECURITY.md").read_text(encoding="utf-8")
    threats = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    for _, defence, *proofs in (threat for threat in threats if threat[0] != "threat"):
        assert defence.startswith("none:") or code(" ".join(proofs)), defence
        assert set(code(" ".join(proofs))) <= tests


def slug(heading: str) -> str:
    """Return the anchor that a heading gets."""
    kept = string.ascii_lowercase + string.digits + "-_"
    return "".join(letter for letter in heading.lower().replace(" ", "-") if letter in kept)


# --- The queue, the resume brief, and waking the next agent -------------------------------------------


def test_the_queue_has_the_order_that_is_told(tmp_path: Path) -> None:
    """Tasks come line by line, then by priority, then by age; what waits for another does not come."""
    lines = ["named", "anyone", "left", "orphaned", "urgent", "older", "newer"]
    with stdio(tmp_path) as client, stdio(tmp_path) as dying:
        for task_id in ["older", "newer", "urgent", "orphaned", "left", "anyone", "named"]:
            priority = 0 if task_id == "urgent" else PRIORITY
            client.call("create_task", task_id=task_id, title="t", goal="g", priority=priority)
        client.call("create_task", task_id="waiting", title="t", goal="g", depends_on=["newer"], priority=0)
        dying.call("claim_task", agent="b", task_id="orphaned")
        dying.kill()
        client.call("mark_exhausted", task_id="left", agent="c", reason="r")
        client.call("handoff_task", task_id="anyone", from_agent="c", to_agent="any", reason="r")
        client.call("handoff_task", task_id="named", from_agent="c", to_agent="a", reason="r")
        assert client.call("list_tasks", ready=True)["total"] == 3
        assert [client.call("claim_task", agent="a")["task"]["task_id"] for _ in lines] == lines
        assert client.call("claim_task", agent="a") == {"task": None}
    told = section("The queue")
    assert f"up to {config.CLAIM_WAIT_SECONDS}," in told
    assert f"{PRIORITY} the default" in told


def test_the_brief_is_as_shown(tmp_path: Path) -> None:
    """A task like the one in the README gives the brief that stands there; times, path and commits differ."""
    (shown,) = blocks(section("The resume brief"), "json")
    work_tree = tmp_path / "webshop"
    commit(work_tree, "init", "--quiet", "--initial-branch=main", str(work_tree))
    commit(work_tree)
    brief = json.loads(shown)["task"]
    told = {name: brief[name] for name in ReportArguments.model_fields}
    with stdio(tmp_path) as client:
        task = {name: brief[name] for name in ("task_id", "title", "goal")}
        client.call("create_task", **task, repo_path=str(work_tree))
        client.call(
            "attach_artifact", task_id=brief["task_id"], name="login.log", type="log", content="DNS 2.6 s"
        )
        client.call(
            "handoff_task", **told, **{name: brief["handoff"][name] for name in HANDOFF},
            task_id=brief["task_id"],
        )  # fmt: skip
        commit(work_tree)
        answer = client.call("claim_task", agent=brief["current_owner"])
    found = json.dumps(answer).replace(str(work_tree), brief["repo_path"])
    assert without_circumstances(found) == without_circumstances(json.dumps(json.loads(shown)))
    assert f"{config.BRIEF_CHARACTERS:,} characters" in section("The resume brief")


HANDOFF = ("from_agent", "to_agent", "reason")


def commit(work_tree: Path, *command: str) -> None:
    """Make an empty commit, or run another command of git."""
    command = command or ("commit", "--quiet", "--allow-empty", "--message=work")
    author = ("-c", "user.name=Nobody", "-c", "user.email=nobody@example.org", "-c", "commit.gpgsign=false")
    work_tree.mkdir(exist_ok=True)
    subprocess.run(["git", *author, *command], cwd=work_tree, check=True, timeout=PATIENCE)


def without_circumstances(text: str) -> str:
    """Return a brief's text with all times, ages and commits made equal."""
    text = re.sub(r'"age": "[^"]+"', '"age": "<age>"', without_times(text))
    return re.sub(r'"commit": "[0-9a-f]{40}"', '"commit": "<commit>"', text)


def test_the_script_wakes_the_agent_that_a_task_was_handed_to(tmp_path: Path) -> None:
    """Set as the command, the README's script starts the addressee, in its folder, with its orders."""
    (source,) = blocks(section("Waking the next agent"), "sh")
    script, started = tmp_path / "wake.sh", tmp_path / "started"
    executable(script, source)
    (tmp_path / "webshop").mkdir()
    for agent in AGENTS:
        executable(
            tmp_path / agent,
            f'#!/bin/sh\n{{ echo {agent}; pwd; printf "%s\\n" "$@"; echo; }} >>"$HOME/started"\n',
        )
    path = f"{tmp_path}:/usr/bin:/bin"
    settings = {"MCP_TASK_ON_HANDOFF": str(script), "PATH": path, "HOME": str(tmp_path)}
    with stdio(tmp_path, **settings) as client:
        client.call("create_task", task_id="t", title="t", goal="g")
        for sender, addressee in (("a", "nobody here"), ("a", "claude"), ("claude", "codex")):
            client.call("handoff_task", task_id="t", from_agent=sender, to_agent=addressee, reason="r")
            if addressee in AGENTS:
                wait_until(partial(was_started, started, addressee), f"{addressee} is started")
    orders = "Take task t with claim_task, as agent {}, and continue it."
    folder = str(tmp_path / "webshop")
    assert started.read_text().split("\n\n") == [
        "\n".join(
            ["claude", folder, "-p", orders.format("claude"), "--allowedTools", "mcp__mcp-task-server"]
        ),
        "\n".join(["codex", folder, "exec", orders.format("codex")]),
        "",
    ]


AGENTS = ("claude", "codex")


def executable(path: Path, source: str) -> None:
    """Write a script that can be run."""
    path.write_text(source)
    path.chmod(0o700)


def was_started(started: Path, agent: str) -> bool:
    """Return whether an agent has written down all of how it was started."""
    return started.exists() and re.search(rf"^{agent}\n(.+\n)+\n", started.read_text(), re.M) is not None


# --- The example workflow -----------------------------------------------------------------------------


def workflow() -> list[str]:
    """Return the lines of the example workflow, requests and answers, in order."""
    return "".join(blocks(section("Example workflow"), "json")).splitlines()


def test_the_example_workflow_goes_as_shown(tmp_path: Path) -> None:
    """Each request, sent as it stands there, gets the answer below it; only the times differ."""
    with StdioClient(tmp_path) as client:
        for line in workflow():
            if "method" in json.loads(line):
                client.send_raw(line.encode() + b"\n")
            else:
                assert without_times(client.receive_line().decode()) == without_times(line)
        assert client.close() == 0


def test_the_example_workflow_is_a_whole_handoff() -> None:
    """It opens the connection, and a task is created, saved, handed off, read both ways and finished."""
    messages = [json.loads(line) for line in workflow()]
    requests = [message for message in messages if "method" in message and "id" in message]
    assert [request["params"].get("name", request["method"]) for request in requests] == [
        "initialize", "create_task", "save_checkpoint", "handoff_task", "get_task", "resources/read",
        "claim_task", "update_task",
    ]  # fmt: skip
    assert len(messages) == 2 * len(requests) + 1  # each has its answer; `initialized` has none


def without_times(line: str) -> str:
    """Return the line with all times made equal."""
    return re.sub(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", "<time>", line)
