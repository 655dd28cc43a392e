# SPDX-License-Identifier: MIT
"""The kernel's own unwind tables, ORC: how each instruction finds its caller's stack.

Two sections: .orc_unwind_ip has addresses in ascending order, each relative to its own place, and
.orc_unwind has for each of them what holds from there to the next one. Versions differ in how they
number registers and kinds; since 6.4 a third section holds a hash of their definition.

Spec: Linux arch/x86/include/asm/orc_types.h, arch/x86/kernel/unwind_orc.c (`unwind_next_frame`),
scripts/orc_hash.sh.
Deviations: a row with a base register other than SP and BP has its offset added, as objtool means
it; the kernel leaves it out.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise
from typing import Final

from svsmd.symbols.image import Section, SymbolsError

PT_REGS_IP: Final = 128
"""Offset of the return frame of an exception (IP, CS, FLAGS, SP, SS) in struct pt_regs."""


class Kind(Enum):
    """What lies at the stack address that a row computes."""

    UNKNOWN = "nobody knows how to go on from here"
    END = "nothing called this code"
    CALL = "behind a return address"
    REGS = "struct pt_regs"
    IRET = "the frame that an exception or interrupt pushes"


class Base(Enum):
    """What the offsets of a row are relative to."""

    NONE = "nothing: the register has kept its value"
    AX = "rax"
    DX = "rdx"
    DI = "rdi"
    SP = "rsp"
    BP = "rbp"
    R10 = "r10"
    R13 = "r13"
    PREVIOUS_SP = "the stack address that the row has computed"
    SP_INDIRECT = "the stack address that RSP points to; the offset is added to that"
    BP_INDIRECT = "the stack address that is at RBP plus offset"


@dataclass(frozen=True, slots=True)
class Row:
    """What holds for some instructions."""

    kind: Kind
    sp_base: Base = Base.NONE
    sp_offset: int = 0
    bp_base: Base = Base.NONE
    """Where the caller's RBP is: NONE, PREVIOUS_SP or BP."""
    bp_offset: int = 0


UNKNOWN_ROW: Final = Row(Kind.UNKNOWN)


@dataclass(frozen=True, slots=True)
class _Format:
    kinds: Mapping[int, Kind]
    bases: Mapping[int, Base]
    kind_mask: int
    end_bit: int = 0


_KINDS: Final = dict(enumerate((Kind.UNKNOWN, Kind.END, Kind.CALL, Kind.REGS, Kind.IRET)))
_OLD_BASES: Final = {
    0: Base.NONE, 1: Base.PREVIOUS_SP, 2: Base.DX, 3: Base.DI, 4: Base.BP, 5: Base.SP,
    6: Base.R10, 7: Base.R13, 8: Base.BP_INDIRECT, 9: Base.SP_INDIRECT,
}  # fmt: skip
_NEW_BASES: Final = {
    0: Base.NONE, 1: Base.AX, 2: Base.DX, 3: Base.SP, 4: Base.BP, 5: Base.DI,
    6: Base.R10, 7: Base.R13, 8: Base.PREVIOUS_SP, 9: Base.SP_INDIRECT, 10: Base.BP_INDIRECT,
}  # fmt: skip
_UNTIL_6_2: Final = _Format(
    {0: Kind.CALL, 1: Kind.REGS, 2: Kind.IRET}, _OLD_BASES, kind_mask=3, end_bit=1 << 10
)
_BY_HASH: Final = {
    "fe5d32bf581bd63b2ca9a5c65ba5a625eab3fe24": _Format(_KINDS, _OLD_BASES, kind_mask=7),
    "edfa4d15552fdd2e1d56679728416379f2fe4534": _Format(
        _KINDS, {**_OLD_BASES, 10: Base.AX}, kind_mask=7
    ),
    "137c36ad7627c4dd55932176bb0ecdbd5041fc82": _Format(_KINDS, _NEW_BASES, kind_mask=7),
}
_CALLER_BP: Final = frozenset({Base.NONE, Base.PREVIOUS_SP, Base.BP})
_ENTRY: Final = struct.Struct("<hhH")


def read_orc(sections: Mapping[str, Section], text: range) -> list[tuple[int, Row]]:
    """Addresses in ascending order, and the row that holds from each of them to the next.

    Rows that are equal are mostly one object.

    Args:
        sections: of the kernel.
        text: the addresses of its code.

    Raises:
        SymbolsError: there are no tables, they are damaged, or their format is not known.
    """
    ips, entries = sections.get(".orc_unwind_ip"), sections.get(".orc_unwind")
    if ips is None or entries is None:
        raise SymbolsError("the kernel has no unwind tables (CONFIG_UNWINDER_ORC)")
    count = len(ips.data) // 4
    if not count or len(ips.data) % 4 or len(entries.data) != count * _ENTRY.size:
        raise SymbolsError("the kernel's two unwind tables are not of one length")
    form = _format(sections.get(".orc_header"))
    offsets = struct.unpack(f"<{count}i", ips.data)
    addresses = [ips.address + 4 * place + offset for place, offset in enumerate(offsets)]
    if addresses[0] < text.start or addresses[-1] > text.stop:
        raise SymbolsError("the kernel's unwind tables are not about its code")
    if any(left > right for left, right in pairwise(addresses)):
        raise SymbolsError("the kernel's unwind tables are not sorted")
    raw = [entry for (entry,) in struct.iter_unpack("6s", entries.data)]
    rows = {entry: _row(form, entry) for entry in set(raw)}
    # Of several rows for one address the last one holds, as in the kernel's own search.
    return list(
        {address: rows[entry] for address, entry in zip(addresses, raw, strict=True)}.items()
    )


def _format(header: Section | None) -> _Format:
    if header is None:
        return _UNTIL_6_2
    found = _BY_HASH.get(header.data.hex())
    if found is None:
        raise SymbolsError(
            f"the kernel's unwind tables have an unknown format ({header.data.hex()[:40]})"
        )
    return found


def _row(form: _Format, entry: bytes) -> Row:
    sp_offset, bp_offset, flags = _ENTRY.unpack(entry)
    sp_base = form.bases.get(flags & 15)
    bp_base = form.bases.get(flags >> 4 & 15)
    kind = form.kinds.get(flags >> 8 & form.kind_mask)
    if form.end_bit and sp_base is Base.NONE:
        kind = Kind.END if flags & form.end_bit else Kind.UNKNOWN
    if kind is Kind.END:
        return Row(Kind.END)
    if kind in (None, Kind.UNKNOWN) or sp_base in (None, Base.NONE, Base.PREVIOUS_SP):
        return UNKNOWN_ROW
    # What an interrupt has entered has the caller's RBP with all its other registers.
    known = _CALLER_BP if kind is Kind.CALL else {Base.NONE}
    if bp_base is None or bp_base not in known:
        return UNKNOWN_ROW
    return Row(kind, sp_base, sp_offset, bp_base, bp_offset)
