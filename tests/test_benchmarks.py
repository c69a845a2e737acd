"""The benchmarks run through on small sizes, and never take a failure for a figure."""

from __future__ import annotations

import json
import os
import re
import shlex
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import pytest
from support import PATIENCE, PROJECT, SERVER, stdio, wait_until

from benchmarks import measures, plot, report, stored
from benchmarks.__main__ import call_rows, options_parser, peers, start_rows
from benchmarks.clients import Requests
from benchmarks.contenders import OURS, Failed
from benchmarks.figures import Compared, Figure, Quartiles, percentile, quartiles, relative, turns

SVG = "{http://www.w3.org/2000/svg}"
PYTHON = shlex.quote(sys.executable)
OURS_AGAIN = f"{PYTHON} {shlex.quote(str(SERVER))}"

# A server that answers nothing but what `answers` says, by the method or the tool; it may stay for ever.
PEER = """
import json, signal, sys
answers = {answers}
for line in sys.stdin:
    message = json.loads(line)
    asked = message.get("params", {{}}).get("name", message["method"])
    if "id" in message:
        if asked not in answers:
            sys.exit("no answer to " + asked)
        if answers[asked] == "silence":
            open("asked", "w").close()
            signal.pause()
        print(json.dumps({{"jsonrpc": "2.0", "id": message["id"], **answers[asked]}}), flush=True)
if "stay" in answers:
    signal.pause()
"""
TOOLS = {"tools": [{"name": "create_task"}, {"name": "get_task"}]}


def peer(folder: Path, **answers: object) -> str:
    """Return the command of a server that has been written to `folder`."""
    path = folder / "peer.py"
    path.write_text(PEER.format(answers={"initialize": {"result": {}}} | answers))
    return f"{PYTHON} {shlex.quote(str(path))}"


class Ran(NamedTuple):
    """What a run of the benchmarks said."""

    status: int
    output: str
    errors: str

    def table(self) -> list[list[str]]:
        """Return the cells of the table, without its head."""
        return cells(self.output)[2:]


def cells(text: str) -> list[list[str]]:
    """Return the cells of the table in a text."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def run(folder: Path, *options: str) -> Ran:
    """Run the benchmarks on next to nothing; all that they keep for a while is in folder/temporary."""
    process = begun(folder, *options)
    try:
        output, errors = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    return Ran(process.returncode, output, errors)


def begun(folder: Path, *options: str) -> subprocess.Popen[str]:
    """Return the process of such a run."""
    (folder / "temporary").mkdir()
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks", "--quick", "--levels", "20,40", *options],
        cwd=PROJECT, env=os.environ | {"TMPDIR": str(folder / "temporary")},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


# --- A whole run --------------------------------------------------------------------------------------

ROWS = [
    "spawn to `tools/list` answered",
    "the same, in runs of a bare `python -c pass`",
    "spawn to first durable write answered",
    "first write after 200 ms of quiet",
    "peak memory after `tools/list`",
    "peak memory after a call",
    "tool list",
    "tool list",
    "STDIO read, 20 tasks stored",
    "STDIO write, 20 tasks stored",
    "the same, in bare commits",
    "STDIO read, 40 tasks stored",
    "the same, as a share of the speed with 20",
    "STDIO write, 40 tasks stored",
    "the same, as a share of the speed with 20",
    "`/mcp` read, 1 connection",
    "`/mcp` read, 16 connections",
    "`/mcp` write, 1 connection",
    "`/mcp` write, 16 connections",
    "4 writing processes, p99 of the waits",
    "4 writing processes, worst wait",
    "memory of an idle `/sse` stream",
]
STARTING = {"spawn to `tools/list` answered", "peak memory after `tools/list`", "tool list", ROWS[1]}
DAY = r"\d{4}-\d\d-\d\d"
NUMBER = r"\d[\d,]*(\.\d+)?"
README = f"# Before\n\n{report.BEGIN}\nold\n{report.END}\n\nAfter\n"


def test_a_run_measures_and_shows_everything(tmp_path: Path) -> None:
    """Against itself and a peer without tools, the server gets its table, in a README too, and its plots."""
    (tmp_path / "README.md").write_text(README)
    (tmp_path / "plots").mkdir()
    count = "import json, sys; print(json.dumps([len(text) for text in json.load(sys.stdin)]))"
    ran = run(
        tmp_path,
        *("--peer", f"again={OURS_AGAIN}", "--http", f"again={OURS_AGAIN} --http --port {{port}}"),
        *("--sse", f"again={OURS_AGAIN} --http --port {{port}}", "--env", "again=MCP_DEBUG=0"),
        *("--peer", f"idle={peer(tmp_path, **{'tools/list': {'result': {'tools': []}}})}"),
        *("--tokens", f"{PYTHON} -c {shlex.quote(count)}"),
        *("--out", str(tmp_path / "plots"), "--readme", str(tmp_path / "README.md")),
    )
    assert ran.status == 0, ran.errors
    check_rows(ran.table())
    check_ratios(ran.table())
    check_readme((tmp_path / "README.md").read_text(), ran.output)
    check_plot(tmp_path / "plots/latency.svg", {"again: read", "again: write"})
    check_plot(tmp_path / "plots/start.svg", {"python -c pass", "again", "idle"})
    assert not [*(tmp_path / "temporary").iterdir()]
    assert not processes_in(tmp_path / "temporary")


def check_rows(table: list[list[str]]) -> None:
    """Each row has a figure of the server and of its peer; a peer without the tools has those on starting."""
    assert [what for what, *_ in table] == ROWS
    for what, ours, again, idle in table:
        assert re.match(NUMBER, ours), what
        assert re.match(NUMBER, again), what
        assert bool(idle) == (what in STARTING), what


def check_ratios(table: list[list[str]]) -> None:
    """How many times as fast has an x, a share has none, and a row that is a ratio itself has no other."""
    for what, _, again, _ in table:
        times = "x" if what.startswith(("STDIO", "`/mcp`")) else ""
        ratio = rf".*; \*\*{NUMBER}{times}\*\*( \[.+\])?"
        assert re.fullmatch(NUMBER + (r" \[.+\]" if what.startswith("the same") else ratio), again), what
    ours_again = {(what, ours.split()[-1]): again for what, ours, again, _ in table}
    assert ours_again["tool list", "bytes"].endswith("; **1.00**")
    assert ours_again["tool list", "tokens"].endswith("; **1.00**")
    assert re.search(r"; \*\*(0\.9\d*|1(\.0\d*)?)\*\*$", ours_again["peak memory after a call", "MiB"])


def check_readme(readme: str, output: str) -> None:
    """Between the marks stands what was printed, with the machine and the day; nothing else changed."""
    begun, _, rest = readme.partition(report.BEGIN)
    made, _, after = rest.partition(report.END)
    assert (begun, after) == ("# Before\n\n", "\n\nAfter\n")
    assert made.strip() == output.strip()
    assert re.search(rf"^Measured on .+ cores; .+SQLite {sqlite3.sqlite_version}; {DAY}\.$", made, re.M)


def check_plot(path: Path, shown: set[str]) -> None:
    """Small and well-formed, the SVG says what it shows and in which unit, and stays inside its frame."""
    root = ElementTree.parse(path).getroot()
    texts = {element.text or "" for element in root.iter(f"{SVG}text")}
    assert root.tag == f"{SVG}svg"
    assert shown < texts
    assert [text for text in texts if re.fullmatch(NUMBER + " ms", text)]
    assert path.stat().st_size < 20_000
    ends = {"x": "width", "x1": "width", "x2": "width", "cx": "width"}
    ends |= {"y": "height", "y1": "height", "y2": "height", "cy": "height"}
    for element in root.iter():
        for place, end in ends.items():
            assert 0 <= float(element.get(place, 0)) <= float(root.get(end, 0)), ElementTree.tostring(element)


def processes_in(folder: Path) -> list[str]:
    """Return the processes that work in `folder`, or in one that was there."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            place = (process / "cwd").readlink()
        except OSError:
            continue
        found += [process.name] * str(place).startswith(str(folder))
    return found


# --- Failures -----------------------------------------------------------------------------------------

REFUSED = {"result": {"isError": True, "content": [{"type": "text", "text": "the disk is full"}]}}


@pytest.mark.parametrize(
    ("answers", "told"),
    [
        ({"tools/list": {"result": TOOLS}, "create_task": REFUSED}, "the disk is full"),
        ({"tools/list": {"result": TOOLS}, "create_task": {"error": {"message": "what?"}}}, "what?"),
        ({"tools/list": {"result": TOOLS}}, "no answer to create_task"),
        ({"tools/list": {"error": {"message": "no tools"}}, "stay": True}, "no tools"),
    ],
)
def test_a_failing_peer_ends_the_run(answers: dict[str, object], told: str, tmp_path: Path) -> None:
    """A refused call, an error and an end are told with their text, and nothing is printed as measured."""
    ran = run(tmp_path, "--peer", f"broken={peer(tmp_path, **answers)}")
    assert ran.status == 1
    assert "broken: " in ran.errors
    assert told in ran.errors
    assert "Traceback" not in ran.errors
    assert ran.output == ""
    assert not processes_in(tmp_path / "temporary")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--http", "nobody=x"), "there is no --peer nobody"),
        (("--peer", "x"), "not of the form NAME="),
        (("--peer", "a=b", "--write", "a=tool:{"), "Expecting property name"),
    ],
)
def test_an_option_that_cannot_be_used_is_refused(
    options: tuple[str, ...], told: str, tmp_path: Path
) -> None:
    """It is told before anything is started."""
    ran = run(tmp_path, *options)
    assert (ran.status, ran.output) == (2, "")
    assert told in ran.errors


def test_a_run_that_is_ended_ends_its_servers(tmp_path: Path) -> None:
    """After SIGTERM no server runs, no folder is left, and nothing is printed as measured."""
    process = begun(tmp_path, "--peer", f"silent={peer(tmp_path, **{'tools/list': 'silence'})}")
    wait_until(lambda: [*tmp_path.glob("temporary/*/asked")], "the peer is asked for its tools")
    process.terminate()
    output, _ = process.communicate(timeout=PATIENCE)
    assert (process.returncode, output) == (1, "")
    assert not processes_in(tmp_path / "temporary")
    assert not [*(tmp_path / "temporary").iterdir()]


def test_named_tools_must_be_there(tmp_path: Path) -> None:
    """A peer that lacks a tool which was named for it is not quietly measured in less."""
    command = peer(tmp_path, **{"tools/list": {"result": {"tools": [{"name": "other"}]}}})
    ran = run(tmp_path, "--peer", f"other={command}", "--write", "other=add:{}", "--read", "other=other:{}")
    assert (ran.status, ran.output) == (1, "")
    assert "other has no tool add" in ran.errors


# --- What is stored -----------------------------------------------------------------------------------


def test_tasks_written_in_bulk_are_as_calls_make_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A database that was filled in bulk has the rows and finds the words of one that was filled by calls."""
    folders = [tmp_path / "bulk", tmp_path / "calls"]
    for folder, by_calls in zip(folders, (5, 1000), strict=True):
        folder.mkdir()
        monkeypatch.setattr(stored, "BY_CALLS", by_calls)
        stored.fill(OURS, str(folder), 40)
    assert rows(folders[0]) == rows(folders[1])
    found = []
    for folder in folders:
        with stdio(folder) as client:
            page = client.call("list_tasks", query="race 17")
            found.append((page["total"], [task["task_id"] for task in page["tasks"]]))
            assert client.call("list_tasks")["total"] == 40
    assert found == [(1, ["task-17"])] * 2


def rows(folder: Path) -> list[tuple[object, ...]]:
    """Return all tasks and events, without their times."""
    with sqlite3.connect(folder / "tasks.db") as connection:
        text = json.dumps(
            [
                connection.execute("SELECT * FROM tasks ORDER BY born").fetchall(),
                connection.execute("SELECT * FROM events ORDER BY event_id").fetchall(),
            ]
        )
    connection.close()
    made: list[tuple[object, ...]] = json.loads(re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+Z", "<time>", text))
    return made


def test_peers_are_not_filled_with_more_than_they_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """At a level above theirs only the server itself is measured; each round gives each figure a value."""
    monkeypatch.setattr(measures, "PEER_LEVEL", 10)
    twin = replace(OURS, name="twin", is_ours=False)
    calls, bare = measures.calls([OURS, twin], [10, 20], measures.QUICK)
    assert {kind: set(figure.rounds) for kind, figure in calls.items()} == {
        ("read", 10): {OURS.name, "twin"},
        ("write", 10): {OURS.name, "twin"},
        ("read", 20): {OURS.name},
        ("write", 20): {OURS.name},
    }
    for figure in (*calls.values(), bare):
        assert {len(values) for values in figure.rounds.values()} == {measures.QUICK.call_rounds}


# --- Arithmetic ---------------------------------------------------------------------------------------


def test_quartiles_are_those_of_the_values() -> None:
    """They lie where a quarter, half and three quarters of the values are below; one value is all three."""
    assert quartiles([5, 1, 4, 2, 3]) == Quartiles(2, 3, 4)
    assert quartiles([1, 2]) == Quartiles(1.25, 1.5, 1.75)
    assert quartiles([7]) == Quartiles(7, 7, 7)


def test_a_percentile_is_a_value_that_was_seen() -> None:
    """It is the smallest one that so many percent do not exceed."""
    values = [*range(1000, 0, -1)]
    assert [percentile(values, percent) for percent in (0.01, 50, 99, 99.9, 100)] == [1, 500, 990, 999, 1000]
    assert percentile([3, 1, 2], 99) == 3


def test_every_round_begins_with_another_server() -> None:
    """All have their turn in each round, and the first round does not count."""
    assert [*turns("abc", 2)] == [
        ("a", False), ("b", False), ("c", False),
        ("b", True), ("c", True), ("a", True),
        ("c", True), ("a", True), ("b", True),
    ]  # fmt: skip


def test_servers_are_compared_within_a_round() -> None:
    """A ratio is the median of the rounds' ratios, not the ratio of medians, in the direction asked for."""
    rounds = {"ours": [1.0, 10.0, 2.0], "peer": [2.0, 40.0, 3.0]}
    assert Figure("w", rounds=rounds).ratios("ours", "peer").median == 0.5
    assert Figure("w", "", Compared.AS_SPEED, rounds=rounds).ratios("ours", "peer").median == 2
    assert Figure("w", "", Compared.AS_RATE, rounds=rounds).ratios("ours", "peer").median == 0.5
    assert Figure("w", summary=max, rounds=rounds).value("peer") == 40
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        Figure("w", rounds={"ours": [1.0, 2.0], "peer": [1.0]}).ratios("ours", "peer")
    assert relative("w", rounds, {"ours": [2.0, 2.0, 2.0]}).rounds == {"ours": [0.5, 5.0, 1.0]}


def test_a_level_is_a_share_of_the_speed_at_the_first() -> None:
    """Twice the time is half the speed; a write is told in bare commits, and a start in bare runs."""
    calls = {
        (kind, level): Figure(kind, rounds={"ours": [milliseconds]})
        for kind, level, milliseconds in (
            ("read", 1, 1.0),
            ("write", 1, 6.0),
            ("read", 9, 2.0),
            ("write", 9, 8.0),
        )
    }
    rows = call_rows(calls, Figure("bare", rounds={"ours": [3.0]}), [1, 9])
    assert [row.rounds["ours"][0] for row in rows] == [1, 6, 2, 2, 0.5, 8, 0.75]
    starts = {
        name: Figure(name, rounds={"ours": [value]}) for name, value in (("bare", 2.0), ("listed", 5.0))
    }
    assert [row.rounds["ours"][0] for row in start_rows(starts)] == [5, 2.5]


def test_reads_go_through_what_is_stored() -> None:
    """Every task is read before one is read again, and only tasks that are there."""
    requests = Requests(OURS, 12)
    numbers = [json.loads(request)["params"]["arguments"]["task_id"] for request in requests.reads(12)]
    assert {*numbers} == {f"task-{number}" for number in range(1, 13)}
    written = json.loads(requests.write())["params"]["arguments"]
    assert (written["task_id"], requests.stored) == ("task-13", 13)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.03126, "0.0313"),
        (0.5, "0.5"),
        (1.0, "1.00"),
        (12.345, "12.3"),
        (136.2, "136"),
        (13519.0, "13,519"),
        (0.0, "0"),
    ],
)
def test_numbers_have_three_digits(value: float, shown: str) -> None:
    """They are as exact as a measurement is, whatever their size."""
    assert report.number(value) == shown


@pytest.mark.parametrize("top", [0.000123, 0.19, 0.53, 1.0, 9.99, 363.0, 1_000_000.0])
def test_an_axis_has_few_round_ticks(top: float) -> None:
    """They go from zero to the value or beyond it, not far, in at most six equal steps."""
    marks = plot.ticks(top)
    step = marks[1]
    assert marks[0] == 0
    assert top <= marks[-1] < top + step * 1.000001
    assert 3 <= len(marks) <= 7
    assert f"{step:e}".startswith(("1.000000", "2.000000", "5.000000"))


def test_a_readme_without_marks_is_left_alone() -> None:
    """There is nothing to replace, which is said."""
    with pytest.raises(Failed, match="there is no"):
        report.replaced("# Read me\n", "table")


# --- What the README tells ----------------------------------------------------------------------------


def test_the_readme_tells_how_its_table_was_made() -> None:
    """Its command is one that the benchmarks take, with the peers of the table, whose rows are all there."""
    section = (PROJECT / "README.md").read_text().partition("\n## Speed\n")[2].partition("\n## ")[0]
    (command,) = re.findall(r"^```sh\n(.*?)^```$", section, re.M | re.S)
    python, *words = shlex.split(command.replace("\\\n", ""))
    assert [python, *words[:2]] == [".venv/bin/python", "-m", "benchmarks"]
    options = options_parser().parse_args(words[2:])
    table = cells(section)
    assert table[0][1:] == [contender.name for contender in (OURS, *peers(options))]
    assert {without_numbers(row[0]) for row in table[2:]} == {without_numbers(what) for what in ROWS}
    for level in options.levels.split(","):
        assert f"STDIO write, {int(level):,} tasks stored" in {row[0] for row in table}


def without_numbers(text: str) -> str:
    """Return a text with all numbers of tasks made equal."""
    return re.sub(r"[\d,]+(?= tasks|$)", "N", text)
