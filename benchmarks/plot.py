"""The plots, as SVG: small, legible, and on a ground of their own, dark where the reader prefers that."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import NamedTuple
from xml.sax.saxutils import escape

from benchmarks.figures import Figure, Quartiles, quartiles
from benchmarks.report import number

_WIDTH = 720
_GREY = "#8b949e"
_COLOURS = ("#2f81f7", "#db6d28", "#8957e5", "#2da44e", "#bf3989")
_STYLE = """
.ground { fill: #ffffff } .grid { stroke: #d0d7de }
text { fill: #24292f; font-family: sans-serif; font-size: 12px }
.title { font-weight: bold } polyline { fill: none; stroke-width: 2 } .read { stroke-dasharray: 6 4 }
.written { opacity: 0.5 }
@media (prefers-color-scheme: dark) {
.ground { fill: #0d1117 } .grid { stroke: #30363d } text { fill: #e6edf3 }
}"""


class Drawing:
    """The elements of an SVG, of the same width always."""

    def __init__(self, height: int, title: str) -> None:
        self.height = height
        self._elements: list[str] = []
        self.text(16, 24, title, kind="title")

    def text(self, x: float, y: float, text: str, anchor: str = "start", kind: str = "") -> None:
        """Add a line of text that starts, ends or has its middle at `x`, and stands on `y`."""
        self._elements.append(
            f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{kind}">{escape(text)}</text>'
        )

    def line(self, x1: float, y1: float, x2: float, y2: float, colour: str = "") -> None:
        """Add a straight line, without a colour one of the grid."""
        look = f'stroke="{colour}" stroke-width="2"' if colour else 'class="grid"'
        self._elements.append(f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" {look}/>')

    def path(self, points: Sequence[tuple[float, float]], colour: str, kind: str) -> None:
        """Add a line through points, and a dot on each."""
        places = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self._elements.append(f'<polyline points="{places}" class="{kind}" stroke="{colour}"/>')
        self._elements += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in points]

    def bar(self, x: float, y: float, width: float, height: float, colour: str, kind: str = "") -> None:
        """Add a filled rectangle."""
        self._elements.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" class="{kind}"'
            f' fill="{colour}"/>'
        )

    def svg(self) -> str:
        """Return the document."""
        size = f'width="{_WIDTH}" height="{self.height}" viewBox="0 0 {_WIDTH} {self.height}"'
        ground = '<rect width="100%" height="100%" class="ground"/>'
        elements = "\n".join([f"<style>{_STYLE}\n</style>", ground, *self._elements])
        return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>\n{elements}\n</svg>\n'


def ticks(top: float) -> list[float]:
    """Return round numbers from 0 to `top` or the next one above it, at most seven."""
    magnitude = 10.0 ** math.floor(math.log10(top))
    step = next(size for part in (0.2, 0.5, 1, 2) if top <= 6 * (size := part * magnitude))
    return [step * count for count in range(math.ceil(top / step) + 1)]


# --- Latency against stored tasks ---------------------------------------------------------------------


class Curve(NamedTuple):
    """The latencies of one server in one kind of call, by the number of stored tasks."""

    name: str
    kind: str
    points: list[tuple[int, Quartiles]]


class Plane(NamedTuple):
    """Where the curves are drawn, and the values at its edges; it is logarithmic across."""

    left: float
    top: float
    right: float
    bottom: float
    first: float
    last: float
    highest: float

    def x(self, level: float) -> float:
        """Return where a number of tasks is."""
        share = math.log(level / self.first) / math.log(self.last / self.first)
        return self.left + share * (self.right - self.left)

    def y(self, value: float) -> float:
        """Return where a latency is."""
        return self.bottom - value / self.highest * (self.bottom - self.top)


def latency(calls: Mapping[tuple[str, int], Figure], names: Sequence[str]) -> str:
    """Return a plot of the latency of writes and reads against the number of stored tasks."""
    drawing = Drawing(380, "Latency of a call over STDIO: median of the rounds, and their quartiles")
    found = [_curve(calls, name, kind) for name in names for kind in ("write", "read")]
    curves = [curve for curve in found if curve.points]
    levels = sorted({level for _, level in calls})
    marks = ticks(max(latencies.upper for curve in curves for _, latencies in curve.points))
    plane = Plane(72, 48, 500, 316, levels[0], max(levels[-1], 10 * levels[0]), marks[-1])
    _draw_grid(drawing, plane, marks, levels)
    for place, curve in enumerate(curves):
        colour, y = _colour(names.index(curve.name)), plane.top + 12 + 22 * place
        _draw_curve(drawing, plane, curve, colour)
        drawing.path([(520, y), (536, y), (552, y)], colour, curve.kind)
        drawing.text(560, y + 4, f"{curve.name}: {curve.kind}")
    return drawing.svg()


def _curve(calls: Mapping[tuple[str, int], Figure], name: str, kind: str) -> Curve:
    points = [
        (level, quartiles(figure.rounds[name]))
        for (other, level), figure in calls.items()
        if other == kind and name in figure.rounds
    ]
    return Curve(name, kind, points)


def _draw_grid(drawing: Drawing, plane: Plane, marks: Sequence[float], levels: Sequence[int]) -> None:
    for mark in marks:
        drawing.line(plane.left, plane.y(mark), plane.right, plane.y(mark))
        drawing.text(plane.left - 8, plane.y(mark) + 4, f"{number(mark)} ms", "end")
    for level in levels:
        drawing.line(plane.x(level), plane.top, plane.x(level), plane.bottom)
        drawing.text(plane.x(level), plane.bottom + 18, f"{level:,}", "middle")
    drawing.text((plane.left + plane.right) / 2, plane.bottom + 42, "tasks stored (logarithmic)", "middle")


def _draw_curve(drawing: Drawing, plane: Plane, curve: Curve, colour: str) -> None:
    middles = [(plane.x(level), plane.y(latencies.median)) for level, latencies in curve.points]
    drawing.path(middles, colour, curve.kind)
    for level, (lower, _, upper) in curve.points:
        drawing.line(plane.x(level), plane.y(lower), plane.x(level), plane.y(upper), colour)


def _colour(place: int) -> str:
    return _COLOURS[place % len(_COLOURS)]


# --- Starting -----------------------------------------------------------------------------------------

_NAMES, _VALUES = 160, 80  # wide, beside the bars
_BAR, _GAP, _BETWEEN = 14, 3, 14  # high
_BARS = {"listed": "tools/list answered", "written": "first durable write answered"}


def start(starts: Mapping[str, Figure], names: Sequence[str]) -> str:
    """Return a plot of how long servers, and Python alone, take to start."""
    bare = [value for values in starts["bare"].rounds.values() for value in values]
    groups = [("python -c pass", [("ends", median(bare))])]
    for name in names:
        shown = [(kind, starts[kind].value(name)) for kind in _BARS if name in starts[kind].rounds]
        groups.append((name, shown))
    longest = max(value for _, bars in groups for _, value in bars)
    height = 64 + sum((_BAR + _GAP) * len(bars) + _BETWEEN for _, bars in groups)
    drawing = Drawing(height, "From the spawn of a server on: median, in ms")
    for place, (kind, text) in enumerate(_BARS.items()):
        drawing.bar(_NAMES + 190 * place, 36, 12, 12, _COLOURS[0], kind)
        drawing.text(_NAMES + 18 + 190 * place, 46, text)
    y = 64
    for colour, (name, bars) in zip([_GREY, *map(_colour, range(len(names)))], groups, strict=True):
        drawing.text(_NAMES - 10, y + 11, name, "end")
        for kind, value in bars:
            width = value / longest * (_WIDTH - _NAMES - _VALUES)
            drawing.bar(_NAMES, y, width, _BAR, colour, kind)
            drawing.text(_NAMES + width + 6, y + 11, f"{number(value)} ms")
            y += _BAR + _GAP
        y += _BETWEEN
    return drawing.svg()
