"""Measure the server, side by side with any others that are named, and print a table of what was found.

Every round takes all servers in turn; a ratio is one of two servers in the same round. In the first column
are the medians of this server. In a peer's column its own median is followed by how this server compares:
the share that it takes of what the peer takes, or with a cross, how many times as fast it is; the median of
the rounds, and their quartiles. A call that fails ends the run.

A peer that has the tools create_task and get_task, or those that --write and --read name, is measured in
all that it has commands for; any other in starting only. Its commands run in a new folder each time.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace

from benchmarks import measures, plot, report
from benchmarks.contenders import OURS, READ, WRITE, Call, Command, Contender, Failed, JsonObject
from benchmarks.figures import Figure, relative


def main(arguments: Sequence[str]) -> int:
    """Measure, show what was found, and return the exit status."""
    parser = options_parser()
    options = parser.parse_args(arguments)
    try:
        contenders = [OURS, *peers(options)]
    except ValueError as error:
        parser.error(str(error))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))  # and so do the servers
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # for many streams; servers inherit it
    try:
        publish(measure(contenders, options), options)
    except (Failed, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


# --- What is asked for --------------------------------------------------------------------------------


def options_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for option, form, what in (
        ("--peer", "NAME=COMMAND", "an MCP server over STDIO to compare with"),
        ("--http", "NAME=COMMAND", "the same as a service that answers in JSON at /mcp of {port}"),
        ("--sse", "NAME=COMMAND", "the same as a service with streams at /sse of {port}"),
        ("--env", "NAME=VARIABLE=VALUE", "a variable for it; {folder} is the one it may write to"),
        ("--write", "NAME=TOOL:JSON", "the call that makes a task: {i} is its number, {prose} some text"),
        ("--read", "NAME=TOOL:JSON", "the call that reads task {i}"),
    ):
        parser.add_argument(option, action="append", default=[], metavar=form, help=what)
    parser.add_argument(
        "--levels", default="100,10000", metavar="N,N", help="tasks to be stored when calls are timed"
    )
    parser.add_argument("--quick", action="store_true", help="measure next to nothing, to see that it works")
    parser.add_argument(
        "--tokens", metavar="COMMAND", help="reads a JSON list of texts, prints one of their token counts"
    )
    parser.add_argument("--out", metavar="FOLDER", help="where to write the plots latency.svg and start.svg")
    parser.add_argument("--readme", metavar="FILE", help="replace the table in this file")
    return parser


def peers(options: argparse.Namespace) -> list[Contender]:
    """Return the peers that are named; raises ValueError."""
    found = {name: Contender(name, _command(words)) for name, words in map(_named, options.peer)}
    for given, change in (
        (options.http, lambda peer, value: {"http": _command(value)}),
        (options.sse, lambda peer, value: {"sse": _command(value)}),
        (options.env, lambda peer, value: {"settings": {**peer.settings, **dict([_named(value)])}}),
        (options.write, lambda peer, value: {"write": _call(value)}),
        (options.read, lambda peer, value: {"read": _call(value)}),
    ):
        for name, value in map(_named, given):
            if name not in found:
                raise ValueError(f"there is no --peer {name}")
            found[name] = replace(found[name], **change(found[name], value))
    return list(found.values())


def _named(text: str) -> tuple[str, str]:
    name, found, value = text.partition("=")
    if not (name and found and value):
        raise ValueError(f"not of the form NAME=...: {text}")
    return name, value


def _command(text: str) -> Command:
    """Split a command as a shell would; files are named from here, not from where it will run."""
    return tuple(os.path.abspath(word) if os.path.isfile(word) else word for word in shlex.split(text))


def _call(text: str) -> Call:
    tool, _, template = text.partition(":")
    call = Call(tool, template)
    call.parameters(1)  # raises ValueError
    return call


# --- What is measured ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """All that was found: the rows of the table, and what the plots show."""

    names: list[str]
    rows: list[Figure]
    starts: dict[str, Figure]
    calls: measures.Calls


def measure(named: Sequence[Contender], options: argparse.Namespace) -> Measured:
    """Run all measurements of these servers; raises Failed."""
    sizes = measures.QUICK if options.quick else measures.Sizes()
    levels = sorted({int(level) for level in options.levels.split(",")})
    tools = {contender.name: measures.tool_list(contender) for contender in named}
    contenders = [_judged(contender, tools[contender.name]) for contender in named]
    calling = [contender for contender in contenders if contender.has_calls]
    say("starting")
    starts = measures.starts(contenders, sizes.start_rounds)
    say(f"calls with {options.levels} tasks stored")
    calls, bare = measures.calls(calling, levels, sizes)
    say("several at once")
    rows = [
        *start_rows(starts),
        *tool_rows(tools, options.tokens),
        *call_rows(calls, bare, levels),
        *measures.http_calls([contender for contender in calling if contender.http], sizes),
        *measures.writers(calling, sizes),
        measures.idle_streams([contender for contender in contenders if contender.sse], sizes),
    ]
    return Measured([contender.name for contender in contenders], rows, starts, calls)


def say(what: str) -> None:
    """Tell whoever waits what is going on."""
    print(f"measuring: {what}", file=sys.stderr, flush=True)


def _judged(contender: Contender, tools: list[JsonObject]) -> Contender:
    """Return the contender as what it can be measured in; raises Failed if it lacks what was named for it."""
    missing = {contender.write.tool, contender.read.tool} - {tool["name"] for tool in tools}
    if missing and (contender.write, contender.read) != (WRITE, READ):
        raise Failed(f"{contender.name} has no tool {', '.join(sorted(missing))}")
    return replace(contender, has_calls=not missing)


def start_rows(starts: dict[str, Figure]) -> list[Figure]:
    """Return the rows on starting: Python alone is their measure, and has none."""
    what = "the same, in runs of a bare `python -c pass`"
    in_bare_runs = relative(what, starts["listed"].rounds, starts["bare"].rounds)
    return [
        starts["listed"],
        in_bare_runs,
        *(starts[name] for name in starts if name not in ("bare", "listed")),
    ]


def tool_rows(tools: dict[str, list[JsonObject]], counting: str | None) -> list[Figure]:
    """Return the rows on the size of the tool lists, in tokens as the command `counting` finds them."""
    texts = [json.dumps(listed, ensure_ascii=False, separators=(",", ":")) for listed in tools.values()]
    sizes = {"bytes": [len(text.encode()) for text in texts]}
    if counting:
        counted = subprocess.run(
            shlex.split(counting), input=json.dumps(texts).encode(), stdout=subprocess.PIPE, check=False
        )
        if counted.returncode:
            raise Failed(f"{counting}: exit status {counted.returncode}")
        sizes["tokens"] = json.loads(counted.stdout)
    return [
        Figure("tool list", unit, rounds={name: [size] for name, size in zip(tools, found, strict=True)})
        for unit, found in sizes.items()
    ]


def call_rows(calls: measures.Calls, bare: Figure, levels: Sequence[int]) -> list[Figure]:
    """Return the rows on calls: each level after the first is compared with that one."""
    least = levels[0]
    rows = [
        calls["read", least],
        calls["write", least],
        relative("the same, in bare commits", calls["write", least].rounds, bare.rounds),
    ]
    for level in levels[1:]:
        for kind in ("read", "write"):
            what = f"the same, as a share of the speed with {least:,}"
            rows.append(calls[kind, level])
            rows.append(relative(what, calls[kind, least].rounds, calls[kind, level].rounds))
    return rows


# --- What is shown ------------------------------------------------------------------------------------


def publish(measured: Measured, options: argparse.Namespace) -> None:
    """Print the table, and write what is wanted."""
    text = report.section(report.table(measured.rows, measured.names), tempfile.gettempdir())
    print(text)
    if options.out:
        os.makedirs(options.out, exist_ok=True)
        _write(os.path.join(options.out, "latency.svg"), plot.latency(measured.calls, measured.names))
        _write(os.path.join(options.out, "start.svg"), plot.start(measured.starts, measured.names))
    if options.readme:
        with open(options.readme, encoding="utf-8") as readme:
            replaced = report.replaced(readme.read(), text)
        _write(options.readme, replaced)


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
