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
TRANSPORTS = sorted(name for name in MODULES if name.startswith("http_") or name == "stdio_transport")
RUNTIME_PACKAGES = {"pydantic", "pydantic_core"}
LONGEST_FUNCTION = 60  # lines

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


def spoken(name: str) -> Iterator[str]:
    """Yield the strings of a module that are not docstrings."""
    strings = [node for node in ast.walk(tree(name)) if isinstance(node, ast.Constant)]
    docs = {id(node.value) for node in ast.walk(tree(name)) if isinstance(node, ast.Expr)}
    yield from (node.value for node in strings if isinstance(node.value, str) and id(node) not in docs)


def functions(name: str) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def test_the_given_modules_are_there() -> None:
    """The modules that the walls are about exist, so that no test here looks at nothing."""
    given = {"server", "config", "models", "store", "tools", "protocol", "database", "lifecycle"}
    assert given <= set(MODULES)
    assert len(TRANSPORTS) >= 2


@pytest.mark.parametrize("name", TRANSPORTS)
def test_a_transport_knows_bytes_only(name: str) -> None:
    """No transport reaches tools, resources, store, models or database, not even through another module."""
    rooms = {"tools", "resources", "store", "models", "database", "lifecycle", "attachment", "artifact_files"}
    assert not reachable(name) & (rooms | {"server"})


@pytest.mark.parametrize(
    "name", ["store", "database", "lifecycle", "models", "locks", "artifact_files", "attachment"]
)
def test_the_store_knows_no_protocol(name: str) -> None:
    """What keeps tasks knows neither JSON-RPC nor tools nor transports."""
    assert not reachable(name) & {"protocol", "server", "tools", "resources", *TRANSPORTS}


@pytest.mark.parametrize("name", ["lifecycle", "models", "protocol", "errors"])
def test_rules_do_no_input_or_output(name: str) -> None:
    """What is called pure imports nothing that touches a file, a socket, a clock or a process."""
    touching = {"socket", "os", "time", "datetime", "sys", "sqlite3", "threading", "subprocess", "random"}
    assert not imports(name) & (touching | {"pathlib", "io", "secrets", "select", "selectors"})


def test_the_tools_know_no_transport() -> None:
    """Tools return plain answers; what carries them is the dispatcher's business."""
    assert not imports("tools") & {"server", "protocol", *TRANSPORTS}


def test_nobody_imports_the_entry_point() -> None:
    """server.py is where everything meets, and is imported by no module."""
    assert not [name for name in MODULES if "server" in imports(name)]


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
def test_sql_stands_in_two_modules(name: str) -> None:
    """Statements are written in store.py and database.py; transactions and PRAGMAs in database.py alone."""
    statements = r"\b(SELECT|INSERT|UPDATE|DELETE|REPLACE|CREATE TABLE|ALTER TABLE)\b"
    control = r"\b(BEGIN|COMMIT|ROLLBACK|SAVEPOINT|PRAGMA|VACUUM|ATTACH)\b"
    strings = list(spoken(name))
    if name not in ("store", "database"):
        assert not [text for text in strings if re.search(statements, text)]
    if name != "database":
        assert not [text for text in strings if re.search(control, text)]


@each_module
def test_one_module_opens_the_database(name: str) -> None:
    """Only database.py imports sqlite3, and nobody commits by method call."""
    assert ("sqlite3" in imports(name)) == (name == "database")
    calls = {node.attr for node in ast.walk(tree(name)) if isinstance(node, ast.Attribute)}
    assert not calls & {"commit", "rollback", "executescript"}


@each_module
def test_the_environment_is_read_in_one_place(name: str) -> None:
    """server.py hands os.environ to load_settings once; nobody else touches the environment."""
    nodes = list(ast.walk(tree(name)))
    touched = [node for node in nodes if isinstance(node, ast.Attribute | ast.Name) and _is_environment(node)]
    passed = [
        argument
        for node in nodes
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "load_settings"
        for argument in node.args
        if _is_environment(argument)
    ]
    assert touched == passed
    assert len(passed) == (1 if name == "server" else 0)


def _is_environment(node: ast.expr) -> bool:
    name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
    is_parameter = isinstance(node, ast.Name) and name == "environ"  # load_settings' own argument
    return name in ("environ", "environb", "getenv", "putenv") and not is_parameter


@each_module
def test_only_the_entry_point_prints(name: str) -> None:
    """What a module has to say it returns or raises; printing is for server.py."""
    if name != "server":
        assert not [
            node
            for node in ast.walk(tree(name))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
        ]


@each_module
def test_functions_are_short(name: str) -> None:
    """A function over LONGEST_FUNCTION lines does more than one thing."""
    lengths = {function.name: _lines(function) for function in functions(name)}
    assert not {name: length for name, length in lengths.items() if length > LONGEST_FUNCTION}


def _lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return (function.end_lineno or function.lineno) - function.lineno + 1


@each_module
def test_every_public_part_says_what_it_is(name: str) -> None:
    """A module and each public class and function has a docstring; argument models have their tool."""
    assert ast.get_docstring(tree(name))
    documented_by_tool = {"Arguments"} if name == "tools" else set()
    for node in tree(name).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            bases = {base.id for base in getattr(node, "bases", ()) if isinstance(base, ast.Name)}
            is_argument_model = bool(bases & {"ReportArguments", *documented_by_tool})
            assert is_argument_model or ast.get_docstring(node), node.name


def test_the_readers_see_what_they_are_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The readers above see nested imports, SQL in f-strings and uses of the environment, but no docstring."""
    planted = tmp_path / "planted.py"
    planted.write_text(
        '"""PRAGMA in a docstring."""\ndef f(x):\n    import os.path\n    return f"SELECT {x}"\n'
    )
    monkeypatch.setitem(MODULES, "planted", planted)
    tree.cache_clear()
    assert imports("planted") == {"os"}
    assert list(spoken("planted")) == ["SELECT "]
    assert _is_environment(ast.parse("os.environ", mode="eval").body)
