"""Losing power at any moment: what was acknowledged is there afterwards, and nothing is there by half.

Real servers are recorded while they carry out calls. From the recording the disk is rebuilt as it could be
after a loss of power at each point, and the product is started on it. The controls prove that the simulated
disk is as treacherous as it should be: with less durability than the product has, the same tests must fail.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import re
import signal
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import power_trace
import pytest
from power_audit import Acknowledged, Corrupt, Lost, audit
from power_disk import Disk, Kind, Operation, State, outcomes
from power_record import Recording, Stage
from power_trace import LAYER, STRACE, Recorder, why_no_layer, why_no_strace
from support import PATIENCE, StdioClient, request

SEED = 20260728
MEMORY = "/dev/shm"  # where a rebuilt disk costs no real one's time


# --- Losing power ---------------------------------------------------------------------------------------


class Loss(NamedTuple):
    """A state after which something was wrong."""

    error: AssertionError
    description: str


class Survey(NamedTuple):
    """How many different states were examined, and which of them failed."""

    states: int
    losses: list[Loss]

    def kinds(self) -> Counter[type[AssertionError]]:
        return Counter(type(loss.error) for loss in self.losses)

    def __str__(self) -> str:
        shown = "\n".join(loss.description for loss in self.losses[:5])
        return f"{len(self.losses)} of {self.states} states failed, such as\n{shown}"


def survey(recording: Recording, samples: int = 2, stride: int = 16, since: int = 0) -> Survey:
    """Lose power at each point, within rows of writes at each `stride`-th one, and examine what is left.

    `samples` is how many outcomes of each random sort are tried at a point; nothing is examined before
    `since` calls have been acknowledged.
    """
    disk, told = Disk(recording.root), list[Acknowledged]()
    seen: set[tuple[bytes, int]] = set()
    moments: set[str] = set()  # what the database held since the last acknowledgement
    losses = []
    for point, operation in enumerate(recording.operations):
        disk.apply(operation)
        if point in recording.acknowledged:
            told.append(recording.acknowledged[point])
            moments = set()
        if len(told) < since or not _is_a_point(recording.operations, point, stride):
            continue
        for outcome in outcomes(disk, random.Random(f"{SEED}:{point}"), samples):
            state = disk.after_loss(outcome.choose)
            key = _digest(state), len(told)
            if key in seen:
                continue
            seen.add(key)
            try:
                content = _content(state, recording.place, told)
                if outcome.name == "all is kept":
                    moments.add(content)
                if content not in moments:
                    raise Lost("the database is not what it was at any moment since the last answer")
            except AssertionError as error:
                done = str(operation).replace(recording.root + "/", "")
                where = f"seed {SEED}, after operation {point} ({done}), {outcome.name}"
                losses.append(Loss(error, f"{where}: {type(error).__name__}: {error}"))
    return Survey(len({digest for digest, _ in seen}), losses)


def _is_a_point(operations: list[Operation], point: int, stride: int) -> bool:
    here, following = operations[point], operations[min(point + 1, len(operations) - 1)]
    return not (here.kind is following.kind is Kind.WRITE) or point % stride == 0


def _digest(state: State) -> bytes:
    digest = hashlib.blake2b()
    for path, content in sorted(state.items()):
        digest.update(f"{path}:{-1 if content is None else len(content)}:".encode())
        digest.update(content or b"")
    return digest.digest()


def _content(state: State, place: str, told: list[Acknowledged]) -> str:
    """Put a disk's state into a folder, and have it audited."""
    with tempfile.TemporaryDirectory(dir=MEMORY if os.access(MEMORY, os.W_OK) else None) as folder:
        for path, content in sorted(state.items()):  # a folder comes before what is in it
            if content is None:
                os.mkdir(os.path.join(folder, path))
            else:
                Path(folder, path).write_bytes(content)
        return audit(os.path.join(folder, place), told)


# --- Work that is recorded ------------------------------------------------------------------------------


def two_agents(stage: Stage, client: StdioClient, name: str, size: int = 3000) -> None:
    """Have two agents bring a task, and one that waits for it, to an end; `size` bytes go with each call."""
    first, second = name, f"{name}-next"
    text = "".join(random.Random(name).choices("abcdefgh ", k=size)).strip()
    create = {"title": f"Title of {name}", "remaining_steps": ["build", "test"], "tags": ["power"]}
    stage.call(client, "create_task", task_id=first, goal=f"goal{name} {text}", **create)
    stage.call(client, "create_task", task_id=second, title="Title", goal=f"late{name}", depends_on=[first])
    report = {"task_id": first, "agent": "ann", "completed_steps": ["build"], "decisions": [text]}
    stage.call(client, "save_checkpoint", **report, remaining_steps=["test"])
    attached = {"task_id": first, "name": "log", "type": "log", "content": f"{name} {text}"}
    stage.call(client, "attach_artifact", **attached, agent="ann")
    passed = {"task_id": first, "from_agent": "ann", "to_agent": "ben", "reason": "quota"}
    stage.call(client, "handoff_task", **passed, resume_prompt=text[::-1], dead_ends=["guessing"])
    stage.call(client, "claim_task", task_id=first, agent="ben")
    stage.call(client, "attach_artifact", task_id=first, name="empty", content="")
    stage.call(client, "mark_exhausted", task_id=first, agent="ben", reason="context", files=["a.py"])
    stage.call(client, "update_task", task_id=first, title=f"Done: {name}", status="done")


def a_short_day(stage: Stage) -> None:
    """Have a server make the database and work on it; a second one goes on beside a third, and is killed."""
    with stage.start() as client:
        two_agents(stage, client, "one")
        assert client.close() == 0
    with stage.start() as client, stage.start() as other:
        for number in range(2):
            for writer in (client, other):
                title = f"Title {number} {writer is client}"
                stage.call(writer, "update_task", task_id="one-next", title=title)
        stage.call(other, "attach_artifact", task_id="one", name="same", content="same bytes", agent="ann")
        stage.call(client, "attach_artifact", task_id="one-next", name="same", content="same bytes")
        stage.kill(client)
        assert other.close() == 0


LITTLE_MEMORY = """
import os, signal, sqlite3
connect = sqlite3.connect

class Connection(sqlite3.Connection):
    def execute(self, statement, values=()):
        if statement == "COMMIT" and os.path.exists({flag!r}):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().execute(statement, values)

def connect_with_little_memory(path, **options):
    connection = connect(path, factory=Connection, **options)
    connection.execute("PRAGMA cache_size = 1")
    return connection

sqlite3.connect = connect_with_little_memory
"""


def an_undone_call(stage: Stage) -> None:
    """Have a server die when half of a transaction is in the database; the next one undoes it and goes on."""
    flag = stage.folder / "die-in-commit"
    with stage.start() as client:
        stage.call(client, "create_task", task_id="undone", title="Title", goal="goalundone")
        stage.call(client, "save_checkpoint", task_id="undone", agent="ann", decisions=["x" * 9000])
        assert client.close() == 0
    with stage.start(LITTLE_MEMORY.format(flag=str(flag))) as dying:
        dying.result("resources/list")  # from here on the database is open
        flag.touch()
        lost = {"task_id": "undone", "agent": "ann", "decisions": [f"{n} {'y' * 9000}" for n in range(2)]}
        dying.send(request("tools/call", {"name": "save_checkpoint", "arguments": lost}, "lost"))
        assert dying.process.wait(PATIENCE) == -signal.SIGKILL
        assert (stage.state / "tasks.db-journal").read_bytes()[:8] != bytes(8)  # it is to be undone
        flag.unlink()
    with stage.start() as heir:
        assert stage.call(heir, "save_checkpoint", **lost)["version"] == 3
        assert heir.close() == 0


def a_long_day(stage: Stage) -> None:
    """Have all of that happen in one database, and texts that fill many pages go in between."""
    a_short_day(stage)
    with stage.start(LITTLE_MEMORY.format(flag="")) as client:
        two_agents(stage, client, "two", 10_000)
        assert client.close() == 0
    an_undone_call(stage)
    with stage.start() as client:
        two_agents(stage, client, "three", 40_000)
        assert client.close() == 0


def recorded(
    folder: Path, recorder: Recorder, work: Callable[[Stage], None] = a_short_day, place: str = ""
) -> Recording:
    """Have servers do some work, and return what they did."""
    stage = Stage(folder, recorder, place)
    work(stage)
    return stage.recording()


# --- What survives --------------------------------------------------------------------------------------


@pytest.mark.parametrize("work", [a_short_day, an_undone_call])
def test_nothing_acknowledged_is_lost(
    tmp_path: Path, recorder: Recorder, work: Callable[[Stage], None]
) -> None:
    """Whatever a loss of power does to unsynced data, the server starts, and all it acknowledged is there."""
    found = survey(recorded(tmp_path, recorder, work, place="made/by/the server"))
    assert not found.losses, str(found)
    assert found.states > 200


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("place", ["", "made/by/the server"])
def test_nothing_acknowledged_is_lost_in_thousands_of_states(
    tmp_path: Path, recorder: Recorder, place: str
) -> None:
    """The same for a longer day, in a folder that was there and in one that the server makes."""
    found = survey(recorded(tmp_path, recorder, a_long_day, place), stride=8)
    assert not found.losses, str(found)
    assert found.states > 5000


def test_the_recording_is_complete(tmp_path: Path, recorder: Recorder) -> None:
    """What was recorded makes the very files that are there: nothing a server did went unseen."""
    recording = recorded(tmp_path, recorder)
    disk = Disk(recording.root)
    for operation in recording.operations:
        disk.apply(operation)
    root = Path(recording.root)
    found = {str(path.relative_to(root)): path for path in root.rglob("*")}
    content = {name: path.read_bytes() if path.is_file() else None for name, path in found.items()}
    assert disk.after_loss(lambda part, count: count - 1) == content


def test_both_recorders_see_the_same(tmp_path: Path) -> None:
    """The recording layer, which serves where no process may trace another, sees what strace sees."""
    if why_not := why_no_strace() or why_no_layer():
        pytest.skip(why_not)
    seen = []
    for recorder in (STRACE, LAYER):
        folder = tmp_path / recorder.name
        folder.mkdir()
        recording = recorded(folder, recorder, one_server, place="new")
        seen.append([_without_chance(operation, recording.root) for operation in recording.operations])
    assert seen[0] == seen[1]
    assert len(seen[0]) > 500


def one_server(stage: Stage) -> None:
    """Have one server do the same each time."""
    with stage.start() as client:
        two_agents(stage, client, "one")
        assert client.close() == 0


def _without_chance(operation: Operation, root: str) -> tuple[str, str, int, int, str]:
    """Return an operation without random names and times, which are as long each time."""
    path, target = (
        re.sub(r"\b[0-9a-f]{16}$", "random", name.removeprefix(root))
        for name in (operation.path, operation.target)
    )
    return operation.kind, path, operation.offset, len(operation.data), target


# --- Controls: servers that promise more than they keep -------------------------------------------------


def durability(journal_mode: str, synchronous: str) -> str:
    """Return a prelude of a server that sets its database up in another way."""
    return f"""
import database
def choose(self):
    self._pragma("journal_mode = {journal_mode}")
    self._connection.execute("PRAGMA synchronous = {synchronous}")
database.Database._choose_durability = choose
"""


def without_sync(of_what: str) -> str:
    """Return a prelude of a server that does not sync its files or its folders; SQLite does as before."""
    return f"""
import os, stat
fsync = os.fsync
os.fsync = lambda file: None if stat.{of_what}(os.fstat(file).st_mode) else fsync(file)
"""


@pytest.mark.parametrize(
    ("change", "failures"),
    [
        pytest.param(durability("WAL", "NORMAL"), {Lost}, id="WAL-NORMAL"),
        pytest.param(durability("WAL", "FULL"), set(), id="WAL-FULL"),
        pytest.param(durability("PERSIST", "OFF"), {Corrupt, Lost}, id="OFF"),
        pytest.param(durability("PERSIST", "NORMAL"), {Corrupt}, id="NORMAL"),
        pytest.param(durability("DELETE", "FULL"), {Lost}, id="DELETE"),
        pytest.param(durability("DELETE", "EXTRA"), set(), id="DELETE-EXTRA"),
        pytest.param(without_sync("S_ISREG"), {Lost}, id="files"),
        pytest.param(without_sync("S_ISDIR"), {Lost}, id="folders"),
    ],
)
def test_other_durability(
    tmp_path: Path, recorder: Recorder, change: str, failures: set[type[AssertionError]]
) -> None:
    """Less durable ways to write fail, each as it must, and other durable ones do not: the disk is fair."""

    def work(stage: Stage) -> None:
        with stage.start() as sound:
            stage.call(sound, "create_task", task_id="one", title="Title", goal="goalone")
            assert sound.close() == 0
        with stage.start(change) as weak:
            report = {"task_id": "one", "agent": "ann", "decisions": ["x" * 3000]}
            stage.call(weak, "save_checkpoint", **report)
            stage.call(weak, "attach_artifact", task_id="one", name="log", content="y" * 3000)
            stage.call(weak, "update_task", task_id="one", title="Other")
            assert weak.close() == 0

    found = survey(recorded(tmp_path, recorder, work), since=2)  # the first one changes the journal mode
    assert set(found.kinds()) == failures, str(found)


# --- A kill, then a loss of power -----------------------------------------------------------------------


@pytest.mark.parametrize("is_open", [False, True], ids=["new server", "server that was there"])
def test_a_call_that_is_repeated_after_a_kill_is_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_open: bool
) -> None:
    """What a server that was killed left unsynced is acknowledged by another one only once it is durable."""
    if why_not := why_no_strace():
        pytest.skip(why_not)
    stage = Stage(tmp_path, STRACE)
    call = {"name": "update_task", "arguments": {"task_id": "one", "title": "Other"}}
    with stage.start() as heir:
        stage.call(heir, "create_task", task_id="one", title="Title", goal="goalone")
        if not is_open:
            assert heir.close() == 0
        with monkeypatch.context() as patch:
            # The fifth sync of a transaction is the one after the journal's header was cleared: the commit.
            killing = ["-e", "inject=fdatasync:signal=KILL:when=5"]
            patch.setattr(power_trace, "_STRACE", [*power_trace._STRACE, *killing])
            dying = stage.start()
        with dying:
            dying.send(request("tools/call", call, "lost"))
            assert dying.process.wait(PATIENCE) == -signal.SIGKILL
        with contextlib.nullcontext(heir) if is_open else stage.start() as other:
            assert stage.call(other, "update_task", task_id="one", title="Other")["version"] == 2
            stage.kill(other)
    found = survey(stage.recording())
    assert not found.losses, str(found)
