"""What was measured: one value for each round and server. Servers are compared within each round."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import NamedTuple, TypeVar

T = TypeVar("T")
Rounds = dict[str, list[float]]  # by server, one value for each round


class Compared(Enum):
    """What the ratio of the first server to another one tells."""

    NOT = auto()
    AS_SHARE = auto()  # what the first takes of what the other one takes
    AS_SPEED = auto()  # how many times as fast the first is, by what each takes
    AS_RATE = auto()  # how many times as fast the first is, by what each gets done


class Quartiles(NamedTuple):
    """The middle of some values, and the bounds of their middle half."""

    lower: float
    median: float
    upper: float


def quartiles(values: Sequence[float]) -> Quartiles:
    """Return the quartiles of one or more values."""
    if len(values) == 1:
        return Quartiles(values[0], values[0], values[0])
    return Quartiles(*statistics.quantiles(values, n=4, method="inclusive"))


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest of `values` that at least so many percent of them do not exceed."""
    place = -(-len(values) * percent // 100)
    return sorted(values)[max(0, int(place) - 1)]


def turns(servers: Sequence[T], rounds: int, warming: int = 1) -> Iterator[tuple[T, bool]]:
    """Yield each server in every round, which begins with another one each time, and whether it counts.

    A busy machine then slows all alike. Rounds that are `warming` caches come first, and do not count.
    """
    for number in range(warming + rounds):
        first = number % max(1, len(servers))
        for server in (*servers[first:], *servers[:first]):
            yield server, number >= warming


@dataclass(eq=False)
class Figure:
    """A line of the table: what was measured, in which unit, and the values of each server by its name."""

    what: str
    unit: str = ""
    compared: Compared = Compared.AS_SHARE
    summary: Callable[[Sequence[float]], float] = statistics.median
    rounds: Rounds = field(default_factory=dict)

    def add(self, name: str, value: float) -> None:
        """Note the value of the next round."""
        self.rounds.setdefault(name, []).append(value)

    def value(self, name: str) -> float:
        """Return what is shown for a server."""
        return self.summary(self.rounds[name])

    def ratios(self, first: str, other: str) -> Quartiles:
        """Return how the first server compares with another one in the same round."""
        pairs = zip(self.rounds[first], self.rounds[other], strict=True)
        if self.compared is Compared.AS_SPEED:
            return quartiles([theirs / ours for ours, theirs in pairs])
        return quartiles([ours / theirs for ours, theirs in pairs])


def relative(what: str, values: Rounds, references: Rounds) -> Figure:
    """Return a figure of what each server's values are of its reference in the same round."""
    made = Figure(what, "", Compared.NOT)
    for name in values.keys() & references.keys():
        pairs = zip(values[name], references[name], strict=True)
        made.rounds[name] = [value / reference for value, reference in pairs]
    return made
