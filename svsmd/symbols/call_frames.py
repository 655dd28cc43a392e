# SPDX-License-Identifier: MIT
"""ORC rows as DWARF call frame information, with which debuggers walk a stack.

A row of kind CALL has a direct counterpart. Code that an interrupt, an exception or a system call
has entered is harder: a debugger looks for a caller's frame one byte before its return address,
unless the frame that was left is a signal handler's, but it does not name functions that are. So
such code gets two frames. Its own keeps its name and returns, with all registers as they are, to a
place where there is no code: below the kernel. The frame information of that place is that of a
signal handler whose caller has its registers in struct pt_regs, or in the frame that the processor
has pushed. Debuggers print "<signal handler called>" for it, and then the code that was entered
from, looked up at its exact address.

ORC tells nothing of registers other than RSP and RBP. A caller's others are given as undefined, so
that no debugger shows a wrong value; with an interrupted caller all are known.

Spec: DWARF 5, 6.4 (call frame information); Linux arch/x86/include/asm/ptrace.h (struct pt_regs).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from svsmd.symbols.dwarf import Cfa, Op, Reg, block, breg, plus, sleb, uleb
from svsmd.symbols.orc import PT_REGS_IP, Base, Kind, Row

MAX_ROWS: Final = 64
"""Rows of one entry (FDE): debuggers execute them from its beginning."""
LANDING_SIZE: Final = 16
"""Bytes of each place below the kernel that interrupted code is entered from."""
DATA_ALIGNMENT: Final = -8

_WORD: Final = 8
_CIE_ID: Final = 0xFFFF_FFFF
_VERSION: Final = 3
_REGISTERS: Final = {
    Base.AX: Reg.RAX, Base.DX: Reg.RDX, Base.DI: Reg.RDI, Base.SP: Reg.RSP, Base.BP: Reg.RBP,
    Base.R10: Reg.R10, Base.R13: Reg.R13,
}  # fmt: skip
_PT_REGS: Final = (
    Reg.R15, Reg.R14, Reg.R13, Reg.R12, Reg.RBP, Reg.RBX, Reg.R11, Reg.R10, Reg.R9, Reg.R8,
    Reg.RAX, Reg.RCX, Reg.RDX, Reg.RSI, Reg.RDI,
)  # fmt: skip
"""struct pt_regs from its beginning on; the frame that the processor pushed is at PT_REGS_IP."""
_IRET_FRAME: Final = (Reg.RIP, Reg.CS, Reg.RFLAGS, Reg.RSP, Reg.SS)
_NO_DATA: Final = uleb(0)
"""Size of the data that belongs to an augmentation "z..."; S, a signal handler, has none."""
_LOST: Final = tuple(sorted(set(_PT_REGS) - {Reg.RBP}))
"""What is not known of a caller."""


@dataclass(frozen=True, slots=True)
class Landings:
    """The places that code returns to which an interrupt or the like has entered."""

    regs: int
    """RSP is the address of struct pt_regs there."""
    iret: int
    """RSP is the address of the frame that the processor has pushed."""

    @classmethod
    def below(cls, kernel: int) -> Landings:
        """Two places below the lowest address of a kernel, which maps nothing there."""
        return cls(kernel - LANDING_SIZE, kernel - 2 * LANDING_SIZE)


class _Rules(NamedTuple):
    """Instructions that say all that a row says, for what changes together."""

    cfa: bytes
    rbp: bytes
    rip: bytes
    others: bytes


_CALLED: Final = _Rules(
    cfa=bytes([Cfa.DEF_CFA, Reg.RSP, _WORD]),
    rbp=bytes([Cfa.SAME_VALUE, Reg.RBP]),
    rip=bytes([Cfa.OFFSET | Reg.RIP, 1]),
    others=b"".join(bytes([Cfa.UNDEFINED, register]) for register in _LOST),
)
"""What holds at the first instruction of every function; an entry (FDE) begins with that."""
_ALL_KEPT: Final = b"".join(bytes([Cfa.SAME_VALUE, register]) for register in _LOST)
_NO_CALLER: Final = bytes([Cfa.UNDEFINED, Reg.RIP])


def debug_frame(rows: Sequence[tuple[int, Row]], end: int, landings: Landings) -> bytes:
    """The contents of a section .debug_frame.

    Code of which nothing is known is left out, so that debuggers try what they can by themselves.

    Args:
        rows: addresses in ascending order, and what holds from each to the next.
        end: where the last row ends.
        landings: for code that an interrupt or the like has entered.
    """
    # By identity: rows are many but objects few, and hashing them takes its time.
    objects = {id(row): row for _, row in rows}
    rules = {key: _rules(row, landings) for key, row in objects.items()}
    changes: dict[tuple[_Rules, _Rules], bytes] = {}
    addresses = [*(address for address, _ in rows), end]
    out = bytearray(_cie("", b"".join(_CALLED)))
    place = 0
    while place < len(rows):
        first = place
        program = bytearray()
        before = _CALLED
        last = min(first + MAX_ROWS, len(rows))
        while place < last and rows[place][1].kind is not Kind.UNKNOWN:
            now = rules[id(rows[place][1])]
            change = changes.get((before, now))
            if change is None:
                change = changes[before, now] = _change(before, now)
            if place > first:
                program += _advance(addresses[place] - addresses[place - 1])
            program += change
            before = now
            place += 1
        if place > first:
            out += _fde(0, addresses[first], addresses[place], program)
        else:
            place += 1
    interrupted = len(out)
    out += _cie("zS", _NO_DATA + bytes([Cfa.DEF_CFA, Reg.RSP, 0]))
    for landing, registers, ip in ((landings.regs, _PT_REGS, PT_REGS_IP), (landings.iret, (), 0)):
        saved = [(register, _WORD * n) for n, register in enumerate(registers)]
        saved += [(register, ip + _WORD * n) for n, register in enumerate(_IRET_FRAME)]
        program = bytearray(_NO_DATA + b"".join(_saved(*where) for where in saved))
        # From one byte before it: there debuggers look while they do not yet know its kind.
        out += _fde(interrupted, landing - 1, landing + 1, program)
    return bytes(out)


def _rules(row: Row, landings: Landings) -> _Rules:
    match row.kind:
        case Kind.UNKNOWN | Kind.END:
            return _CALLED._replace(rip=_NO_CALLER)
        case Kind.CALL:
            return _CALLED._replace(cfa=_cfa(row), rbp=_rbp(row))
        case Kind.REGS | Kind.IRET:
            landing = landings.regs if row.kind is Kind.REGS else landings.iret
            there = bytes([Op.ADDR]) + struct.pack("<Q", landing)
            rip = bytes([Cfa.VAL_EXPRESSION, Reg.RIP]) + block(there)
            return _CALLED._replace(cfa=_cfa(row), rip=rip, others=_ALL_KEPT)


def _cfa(row: Row) -> bytes:
    offset = row.sp_offset
    match row.sp_base:
        case Base.SP_INDIRECT:
            address = breg(Reg.RSP, 0) + bytes([Op.DEREF]) + plus(offset)
        case Base.BP_INDIRECT:
            address = breg(Reg.RBP, offset) + bytes([Op.DEREF])
        case base if offset >= 0:
            return bytes([Cfa.DEF_CFA, _REGISTERS[base]]) + uleb(offset)
        case base:
            address = breg(_REGISTERS[base], offset)
    return bytes([Cfa.DEF_CFA_EXPRESSION]) + block(address)


def _rbp(row: Row) -> bytes:
    match row.bp_base:
        case Base.PREVIOUS_SP if row.bp_offset % _WORD == 0:
            return _saved(Reg.RBP, row.bp_offset)
        case Base.PREVIOUS_SP:
            # The CFA is on the stack of the expression already.
            return bytes([Cfa.EXPRESSION, Reg.RBP]) + block(plus(row.bp_offset))
        case Base.BP:
            return bytes([Cfa.EXPRESSION, Reg.RBP]) + block(breg(Reg.RBP, row.bp_offset))
        case _:
            return _CALLED.rbp


def _saved(register: Reg, offset: int) -> bytes:
    """A register that is stored at the CFA plus an offset, which is a multiple of a word."""
    return bytes([Cfa.OFFSET_EXTENDED_SF, register]) + sleb(offset // DATA_ALIGNMENT)


def _change(before: _Rules, now: _Rules) -> bytes:
    return b"".join(new for old, new in zip(before, now, strict=True) if new != old)


def _advance(delta: int) -> bytes:
    if delta < 1 << 6:
        return bytes([Cfa.ADVANCE_LOC | delta])
    if delta < 1 << 8:
        return bytes([Cfa.ADVANCE_LOC1, delta])
    if delta < 1 << 16:
        return struct.pack("<BH", Cfa.ADVANCE_LOC2, delta)
    return struct.pack("<BI", Cfa.ADVANCE_LOC4, delta)


def _cie(augmentation: str, program: bytes) -> bytes:
    return _entry(
        struct.pack("<IB", _CIE_ID, _VERSION)
        + augmentation.encode() + b"\0"
        + uleb(1) + sleb(DATA_ALIGNMENT) + uleb(Reg.RIP)
        + program
    )  # fmt: skip


def _fde(cie: int, start: int, end: int, program: bytearray) -> bytes:
    return _entry(struct.pack("<IQQ", cie, start, end - start) + program)


def _entry(body: bytes) -> bytes:
    # DW_CFA_nop is 0; the length does not count itself.
    size = -(-(len(body) + 4) // _WORD) * _WORD - 4
    return struct.pack("<I", size) + body.ljust(size, b"\0")
