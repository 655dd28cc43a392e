# SPDX-License-Identifier: MIT
"""The functions of a kernel: symbols of its code, with what else is known of them.

Spec: Linux scripts/Makefile.lib and arch/x86/include/asm/{linkage,ibt}.h (ENDBR64, the call to
__fentry__), arch/x86/include/asm/irq_stack.h (calls on another stack).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, pairwise
from typing import Final, NamedTuple

from svsmd.symbols.btf import VOID, Kind, Type
from svsmd.symbols.image import Section
from svsmd.symbols.kallsyms import ABSOLUTE, Symbol
from svsmd.symbols.orc import Base, Row

_ENDBR: Final = bytes.fromhex("f30f1efa")
_FENTRY: Final = (bytes.fromhex("0f1f440000"), b"\xe8")
"""The call to __fentry__ as it is at run time, a NOP, and as the compiler has written it."""
_CALL_SIZE: Final = 5
_HARMLESS: Final = (
    *(bytes([0x50 + n]) for n in range(8)),
    *(bytes([0x41, 0x50 + n]) for n in range(8)),
    bytes.fromhex("4889e5"),
)
"""push of a register, and mov rbp, rsp."""
_MAX_PROLOGUE: Final = 32


class Function(NamedTuple):
    """A function of the kernel."""

    name: str
    start: int
    """Address of its first instruction."""
    size: int
    """Bytes."""
    signature: int
    """Number of its FUNC_PROTO, or VOID if it is not known."""
    prologue: int
    """So many bytes from its start on leave its arguments where its caller has put them."""
    switched: Sequence[tuple[int, int]]
    """Where it runs on another stack: from the first address to the second."""


def functions(
    code: Iterable[Section],
    symbols: Sequence[Symbol],
    types: Sequence[Type],
    rows: Sequence[tuple[int, Row]],
) -> Iterator[Function]:
    """Each function whose signature is known, or that runs on another stack in between.

    Args:
        code: the sections that have functions.
        symbols: in ascending order of address.
        types: of the kernel.
        rows: of the kernel, in ascending order of address.
    """
    signatures = _signatures(types)
    switches = [
        (start, end) for (start, row), (end, _) in pairwise(rows) if row.sp_base is Base.SP_INDIRECT
    ]
    starts = [start for start, _ in switches]
    for section in code:
        for start, end, names in _named(section, symbols):
            known = [name for name in names if signatures.get(name)]
            switched = switches[bisect_left(starts, start) : bisect_left(starts, end)]
            if not known and not switched:
                continue
            name = known[0] if known else names[0]
            at = start - section.address
            prologue = prologue_size(section.data[at : at + min(end - start, _MAX_PROLOGUE)])
            yield Function(name, start, end - start, signatures.get(name, VOID), prologue, switched)


def _signatures(types: Sequence[Type]) -> dict[str, int]:
    """The signature of each function, by name; VOID if there are several of one name."""
    found: dict[str, int] = {}
    for type_ in types:
        if type_.kind is Kind.FUNC and found.setdefault(type_.name, type_.type) != type_.type:
            found[type_.name] = VOID
    return found


def _named(section: Section, symbols: Sequence[Symbol]) -> Iterator[tuple[int, int, list[str]]]:
    """Where each symbol of a section begins and where the next one does, and its names."""
    inside = [
        symbol
        for symbol in symbols
        if section.address <= symbol.address < section.end and symbol.type != ABSOLUTE
    ]
    groups = [
        (address, [symbol.name for symbol in same])
        for address, same in groupby(inside, key=lambda symbol: symbol.address)
    ]
    ends = [*(address for address, _ in groups[1:]), section.end]
    for (start, names), end in zip(groups, ends, strict=True):
        yield start, end, names


def prologue_size(code: bytes) -> int:
    """So many bytes at the beginning of a function leave all registers but RSP and RBP alone.

    The first byte of the instruction behind them counts as well: a debugger may stop there.
    """
    at = len(_ENDBR) if code.startswith(_ENDBR) else 0
    if code[at:].startswith(_FENTRY):
        at += _CALL_SIZE
    while (found := next((op for op in _HARMLESS if code.startswith(op, at)), None)) is not None:
        at += len(found)
    return min(at + 1, len(code))
