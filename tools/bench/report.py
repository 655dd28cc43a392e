# SPDX-License-Identifier: MIT
"""Results as text, as JSON, and in docs/performance.md between its two markers."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tools.bench.registry import BENCHMARKS, Result

PAGE: Final = Path(__file__).resolve().parent.parent.parent / "docs" / "performance.md"
BEGIN: Final = "<!-- bench:begin -->"
END: Final = "<!-- bench:end -->"


def figure(value: float) -> str:
    """A figure with three digits that count."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:#.3g}"


def _with_spread(values: Sequence[float]) -> str:
    """Median, and the range that it lies in."""
    if not values:
        return ""
    middle = figure(statistics.median(values))
    if len(values) == 1:
        return middle
    return f"{middle} ({figure(min(values))} to {figure(max(values))})"


def table(results: Sequence[Result]) -> str:
    """Results as a Markdown table, ratios first."""
    rows = ["| | ratio | bound | svsmd | peer |", "|---|---|---|---|---|"]
    for result in results:
        bound = "" if result.bound is None else f"{result.bound}"
        if result.kept is not None:
            bound += " kept" if result.kept else " **missed**"
        own = _with_spread(result.figures)
        own = f"{own} {result.unit}" if own else result.note
        beside = _with_spread(result.peer_figures)
        peer = f"{beside} {result.unit}, {result.peer}" if beside else result.peer
        if result.peer and not beside:
            peer = f"{result.peer}: {result.note}"
        rows.append(f"| {result.name} | {_with_spread(result.ratios)} | {bound} | {own} | {peer} |")
    return "\n".join(rows)


def title(name: str) -> str:
    """What the benchmark says that it measures."""
    return (BENCHMARKS[name].__doc__ or name).partition("\n")[0].rstrip(".")


def computer() -> str:
    """What all of it was measured on."""
    model = platform.machine()
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return f"Python {platform.python_version()}, {model}, {os.cpu_count()} CPUs"


def figures(sections: Mapping[str, Sequence[Result]]) -> str:
    """The part of the page that is measured."""
    parts = [f"Measured with {computer()}. Median (lowest to highest) of the rounds."]
    parts += [f"### {title(name)}\n\n{table(results)}" for name, results in sections.items()]
    return "\n\n".join(parts)


def write_page(sections: Mapping[str, Sequence[Result]], page: Path = PAGE) -> None:
    """Put the figures between the markers; what stands around them stays.

    Raises:
        ValueError: the page does not have the two markers, in their order.
    """
    text = page.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page} has no {BEGIN} ... {END}")
    page.write_text(f"{before}{begin}\n\n{figures(sections)}\n\n{end}{after}", encoding="utf-8")


def as_json(sections: Mapping[str, Sequence[Result]]) -> dict[str, Any]:
    """All that was measured, round by round."""
    return {
        "computer": computer(),
        "benchmarks": {
            name: [
                {
                    "name": result.name,
                    "unit": result.unit,
                    "figures": list(result.figures),
                    "peer": result.peer,
                    "peer-figures": list(result.peer_figures),
                    "ratio": statistics.median(result.ratios) if result.ratios else None,
                    "bound": None if result.bound is None else str(result.bound),
                    "kept": result.kept,
                    "note": result.note,
                }
                for result in results
            ]
            for name, results in sections.items()
        },
    }
