"""The table: medians, the ratios beside them, and the machine they were measured on."""

from __future__ import annotations

import os
import platform
import re
import sqlite3
import time
from collections.abc import Sequence

from benchmarks.contenders import Failed
from benchmarks.figures import Compared, Figure, quartiles

BEGIN, END = "<!-- made by python -m benchmarks: begin -->", "<!-- end -->"
_LEGEND = """\
Medians of rounds in which all servers took turns. Behind a peer's own comes how this server compares with it
in the same round, with the quartiles: the share that it takes of what the peer takes, or with an `x` how many
times as fast it is."""


def table(figures: Sequence[Figure], names: Sequence[str]) -> str:
    """Return the figures as a Markdown table: the first server, and the others with what it is of them."""
    head = ["what", *names]
    lines = [head, ["---"] * len(head)]
    lines += [[figure.what, *(cell(figure, name, names[0]) for name in names)] for figure in figures]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def cell(figure: Figure, name: str, first: str) -> str:
    """Return a server's value, and for another than the first one, how the first compares with it."""
    if name not in figure.rounds:
        return ""
    if figure.compared is Compared.NOT:
        return spread(figure.rounds[name])
    shown = f"{number(figure.value(name))} {figure.unit}"
    if name == first:
        return shown
    times = "" if figure.compared is Compared.AS_SHARE else "x"
    lower, median, upper = figure.ratios(first, name)
    quartiles_shown = f" [{number(lower)} {number(upper)}]" if len(figure.rounds[name]) > 1 else ""
    return f"{shown}; **{number(median)}{times}**{quartiles_shown}"


def spread(values: Sequence[float]) -> str:
    """Return the median of some values, and their quartiles."""
    lower, median, upper = quartiles(values)
    return f"{number(median)} [{number(lower)} {number(upper)}]"


def number(value: float) -> str:
    """Return three significant digits, or all of a whole part."""
    if abs(value) < 1:
        return f"{value:.3g}"
    return f"{value:,.{max(0, 3 - len(str(int(abs(value)))))}f}"


def section(table: str, folder: str) -> str:
    """Return the table with what must be known to read it; servers kept their databases in `folder`."""
    return f"{table}\n{_LEGEND}\n\nMeasured on {machine(folder)}.\n"


def replaced(readme: str, section: str) -> str:
    """Return a README with `section` between its two marks; raises Failed if it has none."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise Failed(f"there is no {BEGIN} and {END}")
    return f"{before}{begin}\n\n{section}\n{end}{after}"


def machine(folder: str) -> str:
    """Return what the figures are of: the machine, its software, and the day."""
    return (
        f"{_processor()}, {len(os.sched_getaffinity(0))} cores; {platform.system()} {platform.release()}, "
        f"{_filesystem(folder)}; Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}; "
        f"{time.strftime('%Y-%m-%d', time.gmtime())}"
    )


def _processor() -> str:
    with open("/proc/cpuinfo", encoding="utf-8") as information:
        found = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", information.read(), re.M)
    return " ".join(found[1].split()) if found else platform.machine()


def _filesystem(folder: str) -> str:
    """Return the kind of file system that a folder is on: on one in memory nothing is durable."""
    with open("/proc/self/mounts", encoding="utf-8") as mounts:
        kinds = {place: kind for _, place, kind, *_ in map(str.split, mounts)}
    around = [place for place in kinds if os.path.commonpath([place, os.path.realpath(folder)]) == place]
    return kinds[max(around, key=len)]
