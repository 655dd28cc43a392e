# SPDX-License-Identifier: MIT
"""The list of benchmarks, and what one of them reports.

A figure alone says little: the computer, its load and the day are in it. So a figure stands beside
that of a peer which was measured in the same run, turn and turn about, and what counts is the ratio
of each round.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

ROUNDS: Final = 5
"""Times that each side of a comparison gets its turn, unless it takes seconds."""
SLOW_ROUNDS: Final = 3


@dataclass(frozen=True, slots=True)
class Bound:
    """What a figure or a ratio must not pass."""

    value: float
    at_most: bool = False

    def holds(self, value: float) -> bool:
        """Whether `value` keeps to the bound."""
        return value <= self.value if self.at_most else value >= self.value

    def __str__(self) -> str:
        return f"{'≤' if self.at_most else '≥'} {self.value:g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One line of the report.

    Attributes:
        name: what was measured.
        unit: of the figures, such as "MiB/s".
        figures: one for each round; empty if there are none, and `note` says why.
        peer: what it is measured beside; empty if the figure stands alone.
        peer_figures: of the same rounds and in the same unit; empty if the peer is missing.
        bound: for the ratio; for the figure, if there is no peer.
        note: what the reader must know to understand the line.
    """

    name: str
    unit: str
    figures: Sequence[float] = ()
    peer: str = ""
    peer_figures: Sequence[float] = ()
    bound: Bound | None = None
    note: str = ""

    @property
    def ratios(self) -> list[float]:
        """Figure / peer's figure, by round; empty without a peer."""
        if not self.peer_figures:
            return []
        return [a / b for a, b in zip(self.figures, self.peer_figures, strict=True)]

    @property
    def kept(self) -> bool | None:
        """Whether the bound holds for the median; None if there is nothing to say."""
        values = self.ratios or ([] if self.peer else self.figures)
        if self.bound is None or not values:
            return None
        return self.bound.holds(statistics.median(values))


Benchmark: TypeAlias = Callable[[], list[Result]]

BENCHMARKS: Final[dict[str, Benchmark]] = {}


def register(name: str) -> Callable[[Benchmark], Benchmark]:
    """Enter a benchmark into the list; the first line of its docstring is its title."""

    def enter(function: Benchmark) -> Benchmark:
        BENCHMARKS[name] = function
        return function

    return enter


def in_turns(
    *sides: Callable[[], float], rounds: int = ROUNDS, warm_up: bool = True
) -> list[tuple[float, ...]]:
    """What each side measured in each round, a tuple a side.

    Args:
        warm_up: a round before, which does not count.
    """
    if warm_up:
        for side in sides:
            side()
    measured: list[list[float]] = [[] for _ in sides]
    for round_ in range(rounds):
        # Who goes first alternates: the second one finds the computer warmer.
        order = list(zip(measured, sides, strict=True))
        for values, side in order if round_ % 2 == 0 else reversed(order):
            values.append(side())
    return [tuple(values) for values in measured]
