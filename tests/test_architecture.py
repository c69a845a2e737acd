"""The walls of the house: which module may know which, where SQL stands, how long a function may be."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from support import PROJECT

MODULES = {path.stem: path for path in sorted(PROJECT.glob("*.py"))}
HTTP = sorted(name for name in MODULES if name.startswith("http_"))
TRANSPORTS = [*HTTP, "stdio_transport", "origins"]
PURE = ["protocol", "eras", "errors", "lifecycle", "models", "brief", "origins"]
TABLES = ["schema", "presence", "dependencies", "listing", "word_index", "event_log", "notices"]
SQL = ["database", *TABLES, "store", "recovery"]
KEEPING = [*SQL, "lifecycle", "models", "sessions", "locks", "artifact_files", "attachment", "repository"]
ENTRY = ["server", "cli"]
SPEAKING = [
    "protocol",
    "eras",
    "dispatcher",
    "methods",
    "tool_list",
    "arguments",
    "tools",
    "resources",
    "prompts",
    "brief",
    "subscriptions",
    "waiting",
    "farewells",
]
PROCESSES = ["repository", "wakeup"]
RUNTIME_PACKAGES = {"pydantic", "pydantic_core"}
LONG_FUNCTION, LONGEST_FUNCTION = 40, 60  # lines
LONG_FOR_A_REASON: set[str] = set()

each_module = pytest.mark.parametrize("name", MODULES)


@cache
def tree(name: str) -> ast.Module:
    return ast.parse(MODULES[name].read_text())


def imports(name: str) -> set[str]:
    """Return the top-level names that a module imports anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relatively"
            found.add((node.module or "").partition(".")[0])
    return found


def reachable(name: str) -> set[str]:
    """Return the modules of ours that a module imports, directly or through others."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        new = (imports(waiting.pop()) & set(MODULES)) - found
        found |= new
        waiting += new
    return found


def importers(name: str) -> set[str]:
    """Return the modules of ours that import `name`."""
    return {module for module in MODULES if name in imports(module)}


def spoken(name: str) -> Iterator[str]:
    """Yield the strings of a module that are not docstrings."""
    strings = [node for node in ast.walk(tree(name)) if isinstance(node, ast.Constant)]
    docs = {id(node.value) for node in ast.walk(tree(name)) if isinstance(node, ast.Expr)}
    yield from (node.value for node in strings if isinstance(node.value, str) and id(node) not in docs)


def called(name: str) -> set[str]:
    """Return what a module calls, as it is written: `open`, `os.open`, `self._db.read`."""
    return {ast.unparse(node.func) for node in ast.walk(tree(name)) if isinstance(node, ast.Call)}


def mentioned(name: str) -> set[str]:
    """Return the attributes that a module names, as they are written: `os.environ`, `sys.stderr`."""
    return {ast.unparse(node) for node in ast.walk(tree(name)) if isinstance(node, ast.Attribute)}


def functions(name: str) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


# --- Who knows whom -------------------------------------------------------------------------------------


def test_the_named_modules_are_there() -> None:
    """The modules that the walls are about exist, so that no test here looks at nothing."""
    named = {"config", "log", *ENTRY, *TRANSPORTS, *PURE, *KEEPING, *SPEAKING, *PROCESSES}
    assert named <= set(MODULES)
    assert len(HTTP) >= 2


@pytest.mark.parametrize("name", TRANSPORTS)
def test_a_transport_knows_bytes_only(name: str) -> None:
    """A transport reaches framing, settings and the facts of the protocol, and nothing through them."""
    assert reachable(name) <= {"config", "errors", "log", "origins", "protocol", *HTTP}


@pytest.mark.parametrize("name", KEEPING)
def test_what_keeps_tasks_knows_no_protocol(name: str) -> None:
    """What keeps tasks knows neither JSON-RPC nor tools nor transports, not even through another module."""
    assert not reachable(name) & {"wakeup", *ENTRY, *SPEAKING, *HTTP, "stdio_transport"}


@pytest.mark.parametrize("name", ["protocol", "eras"])
def test_the_protocol_knows_no_tasks(name: str) -> None:
    """The facts of the protocol are about messages, whatever they are for."""
    assert reachable(name) <= {"protocol", "errors", "config", "origins"}


@pytest.mark.parametrize("name", ["tools", "brief", "wakeup"])
def test_the_tools_know_no_transport(name: str) -> None:
    """Tools return plain answers; who carries them, and in which revision, is the dispatcher's business."""
    others = set(SPEAKING) - {"arguments", "tools", "brief", "protocol"}
    assert not reachable(name) & {*ENTRY, *others, *HTTP, "stdio_transport"}
    assert name == "brief" or "protocol" not in imports(name)


@pytest.mark.parametrize("name", ["resources", "prompts", "subscriptions", "waiting", "farewells"])
def test_what_speaks_knows_no_transport(name: str) -> None:
    """Resources, prompts and whoever notifies send through a peer, whatever is behind it."""
    assert not reachable(name) & {*ENTRY, "dispatcher", *HTTP, "stdio_transport"}


def test_rows_and_statements_stay_inside_the_store() -> None:
    """Only the store's own modules know the database, the tables and the parts that the store is made of."""
    for inner in set(SQL) - {"store", "recovery"}:
        assert importers(inner) <= set(SQL), inner
    assert importers("store") == {
        "cli",
        "tools",
        "resources",
        "prompts",
        "subscriptions",
        "waiting",
        "farewells",
    }


@pytest.mark.parametrize(
    ("inner", "users"),
    [
        ("server", set()),
        ("cli", {"server"}),
        ("dispatcher", {"cli"}),
        ("methods", {"cli", "dispatcher"}),
        ("tools", {"cli", "methods", "prompts", "waiting"}),
        ("arguments", {"tools"}),
        ("tool_list", {"dispatcher"}),
        ("eras", {"dispatcher"}),
        ("brief", {"tools"}),
        ("wakeup", {"tools"}),
        ("repository", {"methods", "tools"}),
        ("attachment", {"tools"}),
        ("artifact_files", {"store", "recovery"}),
        ("recovery", {"cli"}),
        ("stdio_transport", {"cli"}),
        ("http_transport", {"cli"}),
    ],
)
def test_a_room_has_its_doors(inner: str, users: set[str]) -> None:
    """What belongs to one place is used from there alone, and nobody imports the entry point."""
    assert importers(inner) == users


def test_no_module_imports_itself_in_a_circle() -> None:
    """The modules can be read in an order in which each knows only those before it."""
    assert not [name for name in MODULES if name in reachable(name)]


# --- What a module may touch ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", PURE)
def test_rules_do_no_input_or_output(name: str) -> None:
    """What is called pure imports nothing that touches a file, a socket, a clock, a thread or a process."""
    touching = {"socket", "os", "time", "sys", "sqlite3", "threading", "subprocess", "select", "selectors"}
    assert not imports(name) & (touching | {"pathlib", "io", "tempfile", "signal", "random", "log", "shutil"})
    assert not called(name) & {"open", "print", "input", "breakpoint", "exec", "eval"}
    assert not {call.rpartition(".")[2] for call in called(name)} & {"now", "utcnow", "today"}
    assert reachable(name) <= {*PURE, "config"}


@pytest.mark.parametrize(
    ("package", "users"),
    [
        ("sqlite3", {"database"}),
        ("socket", {"http_sockets"}),
        ("selectors", {"http_sockets"}),
        ("fcntl", {"locks"}),
        ("signal", {"cli", "stdio_transport"}),
        ("argparse", {"cli"}),
        ("subprocess", set(PROCESSES)),
        ("traceback", {"log"}),
        ("ctypes", {"heap"}),
        # Chance: jitter, and names that nobody can guess or meet again.
        ("random", {"database"}),
        ("secrets", {"http_transport"}),
        ("pydantic", {"arguments", "models", "tools"}),
        ("pydantic_core", {"arguments"}),
    ],
)
def test_a_package_has_its_place(package: str, users: set[str]) -> None:
    """What touches the world, or is not the standard library's, is imported in one place or in few."""
    assert importers(package) == users


@each_module
def test_some_packages_have_no_place(name: str) -> None:
    """Nothing logs, pickles, warns, loads code or runs an event loop behind the back of the design."""
    assert not imports(name) & {"logging", "warnings", "pickle", "marshal", "importlib", "asyncio"}
    assert not called(name) & {"eval", "exec", "compile", "__import__", "input", "breakpoint"}


@each_module
def test_imports_at_run_time_are_few(name: str) -> None:
    """The product needs the standard library and pydantic, nothing else."""
    assert imports(name) <= sys.stdlib_module_names | RUNTIME_PACKAGES | set(MODULES)


@each_module
def test_no_module_hides_a_standard_one(name: str) -> None:
    """The script's folder is first on the path: a module named like a standard one would replace it."""
    assert name not in sys.stdlib_module_names
    assert name not in RUNTIME_PACKAGES


@each_module
def test_processes_are_started_in_two_modules(name: str) -> None:
    """Git and the operator's command are started, without a shell; nothing forks, and nothing else runs."""
    starters = r"os\.(fork|forkpty|exec\w*|spawn\w*|posix_spawn\w*|popen|system|startfile)|pty\.\w+"
    assert not [call for call in called(name) if re.fullmatch(starters, call)]
    started = {call for call in called(name) if call.startswith("subprocess.")}
    assert started == {"repository": {"subprocess.run"}, "wakeup": {"subprocess.Popen"}}.get(name, set())
    assert not [
        keyword
        for node in ast.walk(tree(name))
        if isinstance(node, ast.Call)
        for keyword in node.keywords
        if keyword.arg in ("shell", "preexec_fn")
    ]


@each_module
def test_files_are_opened_in_few_modules(name: str) -> None:
    """Artifacts, files to attach, lock files and the token are opened where they belong; nothing else is."""
    opens = called(name) & {"open", "os.open", "io.open", "os.fdopen", "tempfile.NamedTemporaryFile"}
    assert bool(opens) == (
        name in ("artifact_files", "attachment", "config", "locks", "sessions", "tool_list")
    )


# --- SQL ------------------------------------------------------------------------------------------------


@each_module
def test_sql_stands_in_the_store(name: str) -> None:
    """Statements are written in the store's modules; transactions and PRAGMAs in database.py alone."""
    statements = r"\b(SELECT|INSERT|UPDATE|DELETE|REPLACE|CREATE (TABLE|INDEX)|ALTER TABLE|WHERE|ORDER BY)\b"
    control = r"\b(BEGIN|COMMIT|ROLLBACK|SAVEPOINT|PRAGMA|VACUUM|ATTACH)\b"
    strings = list(spoken(name))
    if name not in SQL:
        assert not [text for text in strings if re.search(statements, text)]
    if name != "database":
        assert not [text for text in strings if re.search(control, text)]


def test_tables_are_made_in_one_place() -> None:
    """schema.py alone makes and alters tables and indexes."""
    making = r"\b(CREATE|ALTER|DROP) (UNIQUE |VIRTUAL )?(TABLE|INDEX)\b"
    assert [name for name in MODULES if re.search(making, "\n".join(spoken(name)))] == ["schema"]


@each_module
def test_nobody_commits_by_method_call(name: str) -> None:
    """A transaction ends where it began, in database.py, by a statement."""
    methods = {mention.rpartition(".")[2] for mention in mentioned(name)}
    assert not methods & {"commit", "rollback", "executescript"}


@pytest.mark.parametrize("name", SQL)
def test_values_never_become_part_of_a_statement(name: str) -> None:
    """What an f-string puts into a statement is a constant, a list of marks, or a clause made of such."""
    clauses = r"[A-Z_]+|marks|conditions|where|source|select|order|table|column|comparison|clauses|\w*columns"
    counted = r"', '\.join\('\?' \* len\(\w+\)\)"
    for node in ast.walk(tree(name)):
        if not isinstance(node, ast.JoinedStr):
            continue
        text = "".join(str(part.value) for part in node.values if isinstance(part, ast.Constant))
        if re.search(r"\b(SELECT|INSERT|UPDATE|DELETE|WHERE|AND)\b", text):
            for part in node.values:
                if isinstance(part, ast.FormattedValue):
                    assert re.fullmatch(f"{clauses}|{counted}", ast.unparse(part.value)), ast.unparse(node)


# --- The environment and the streams --------------------------------------------------------------------


@each_module
def test_the_environment_is_read_in_one_place(name: str) -> None:
    """cli.py hands os.environ to load_settings; who starts a program passes it on; nobody else looks."""
    nodes = list(ast.walk(tree(name)))
    touched = [node for node in nodes if isinstance(node, ast.Attribute | ast.Name) and _is_environment(node)]
    assert len(touched) == (1 if name in ("cli", *PROCESSES) else 0)
    handed_over = [
        argument
        for node in nodes
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "load_settings"
        for argument in node.args
        if _is_environment(argument)
    ]
    assert handed_over == (touched if name == "cli" else [])


@pytest.mark.parametrize("name", PROCESSES)
def test_who_passes_the_environment_on_reads_none_of_it(name: str) -> None:
    """A program that we start gets our environment as a whole; no single variable decides anything."""
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Subscript):
            assert not _is_environment(node.value)
        elif isinstance(node, ast.Compare):
            assert not any(_is_environment(operand) for operand in [node.left, *node.comparators])
        elif isinstance(node, ast.Attribute) and _is_environment(node.value):
            assert node.attr == "items"


def _is_environment(node: ast.expr) -> bool:
    name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
    is_parameter = isinstance(node, ast.Name) and name == "environ"  # load_settings' own argument
    return name in ("environ", "environb", "getenv", "putenv") and not is_parameter


@each_module
def test_only_the_log_prints(name: str) -> None:
    """log.py writes to stderr, stdio_transport.py owns stdout, cli.py prints what a command finds."""
    streams = {mention for mention in mentioned(name) if re.match(r"sys\.(__)?(std(in|out|err))", mention)}
    expected = {"log": {"sys.stderr"}, "stdio_transport": {"sys.stderr", "sys.stdout"}}
    assert streams == expected.get(name, set())
    assert bool(called(name) & {"print", "traceback.print_exc"}) == (name in ("log", "cli"))
    written = [
        node.args[0].value
        for node in ast.walk(tree(name))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in ("os.write", "os.writev")
        and isinstance(node.args[0], ast.Constant)
    ]
    assert not written


# --- Size and words -------------------------------------------------------------------------------------


@each_module
def test_functions_are_short(name: str) -> None:
    """A function over LONG_FUNCTION lines needs a reason, and none has more than LONGEST_FUNCTION."""
    lengths = {function.name: _lines(function) for function in functions(name)}
    long = {f"{name}.{function}" for function, length in lengths.items() if length > LONG_FUNCTION}
    assert long <= LONG_FOR_A_REASON
    assert not [function for function, length in lengths.items() if length > LONGEST_FUNCTION]


def _lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return (function.end_lineno or function.lineno) - function.lineno + 1


@each_module
def test_every_public_part_says_what_it_is(name: str) -> None:
    """A module and each public class and function has a docstring; a tool's arguments have the tool's."""
    assert ast.get_docstring(tree(name))
    for node in tree(name).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            assert node.name in _tool_arguments(name) or ast.get_docstring(node), node.name


def _tool_arguments(name: str) -> set[str]:
    """Return the argument models that a `@tool(...)` names."""
    decorators = [decorator for function in functions(name) for decorator in function.decorator_list]
    return {
        ast.unparse(decorator.args[0])
        for decorator in decorators
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "tool"
    }


@each_module
def test_nothing_is_left_for_later(name: str) -> None:
    """No module holds a note to finish it."""
    assert not re.search(r"\b(TODO|FIXME|XXX|HACK)\b", MODULES[name].read_text())


def test_the_readers_see_what_they_are_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The readers above see nested imports, calls, SQL in f-strings and the environment, but no docstring."""
    planted = tmp_path / "planted.py"
    planted.write_text(
        '"""PRAGMA in a docstring."""\n'
        "def f(x):\n    import os.path\n    os.system(x)\n    sys.stderr.flush()\n"
        '    return f"SELECT {x}"\n'
        "@tool(Model, 'T')\ndef g(): ...\n"
    )
    monkeypatch.setitem(MODULES, "planted", planted)
    tree.cache_clear()
    assert imports("planted") == {"os"}
    assert importers("os") >= {"planted"}
    assert list(spoken("planted")) == ["T", "SELECT "]
    assert called("planted") == {"os.system", "sys.stderr.flush", "tool"}
    assert mentioned("planted") == {"os.system", "sys.stderr", "sys.stderr.flush"}
    assert _tool_arguments("planted") == {"Model"}
    assert _is_environment(ast.parse("os.environ", mode="eval").body)
