"""The example plays a whole handoff, and does not pass over anything that goes wrong in it."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from support import PATIENCE, PROJECT, SERVER, environment

EXAMPLE = PROJECT / "examples" / "handoff.py"
REAL = f"[sys.executable, {str(SERVER)!r}]"
SEPARATED = f"""
import os, sys
os.environ["MCP_TASK_DB_PATH"] += str(os.getpid())
os.execv(sys.executable, {REAL})
"""
UNTRUE = f"""
import subprocess, sys
with subprocess.Popen({REAL}, stdout=subprocess.PIPE, text=True) as server:
    for line in server.stdout:
        print(line.replace("Measure again", "Rest"), end="", flush=True)
"""
BROKEN_SERVERS = {
    "ends at once": ("raise SystemExit", "is gone|without an answer"),
    "ends badly": (f"import subprocess, sys; subprocess.run({REAL}); sys.exit(3)", "ended with status 3"),
    "is mute": ("import sys; sys.stdin.read()", "without an answer"),
    "chatters": ("import sys; print('hello', flush=True); sys.stdin.read()", "no message: hello"),
    "does not share its database": (SEPARATED, "agent-b sent tools/call .*list_tasks"),
    "does not tell the truth": (UNTRUE, "agent-b sent tools/call .*get_task"),
}


@pytest.fixture
def handoff(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return the example as a module whose temporary folder is made inside `tmp_path`."""
    spec = importlib.util.spec_from_file_location("handoff", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(module.tempfile, "tempdir", str(scratch))
    return module


def test_the_example_plays_a_handoff(tmp_path: Path) -> None:
    """Both agents speak, nothing is complained of, and nothing is left behind."""
    played = subprocess.run(
        [sys.executable, str(EXAMPLE)],
        env=environment(tmp_path, TMPDIR=str(tmp_path)),
        cwd="/",
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert (played.returncode, played.stderr) == (0, "")
    assert "\nagent-a: " in played.stdout
    assert "\nagent-b: " in played.stdout
    assert played.stdout.index("agent-a is gone") < played.stdout.index("agent-b comes")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fault", BROKEN_SERVERS)
def test_the_example_fails_loudly(
    handoff: ModuleType,
    fault: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """A server that does not do as it should ends the play with status 1 and a text that says why."""
    source, complaint = BROKEN_SERVERS[fault]
    broken = tmp_path / "server.py"
    broken.write_text(source)
    monkeypatch.setattr(handoff, "SERVER", broken)
    monkeypatch.setattr(handoff, "PATIENCE", 0.5 if fault == "is mute" else PATIENCE)
    assert handoff.main() == 1
    printed, complained = capfd.readouterr()
    assert "nothing was lost" not in printed
    assert complained.startswith("\nThe handoff failed: ")
    assert re.search(complaint, complained)
    assert list((tmp_path / "scratch").iterdir()) == []
