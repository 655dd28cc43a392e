# SPDX-License-Identifier: MIT
"""Two ways to a function's caller: the kernel's by its unwind tables, and a debugger's by DWARF.

`kernel_step` is what Linux does in `unwind_next_frame`; `debugger_step` interprets the call frame
information that pyelftools decodes. Memory is any: each word is a function of its address.

Spec: Linux arch/x86/kernel/unwind_orc.c; DWARF 5, 6.4.
"""

import hashlib
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any, Final

from elftools.dwarf.dwarf_expr import DWARFExprParser

from svsmd.symbols.call_frames import Landings
from svsmd.symbols.dwarf import Reg
from tests.kernel_image import Orc

U64 = (1 << 64) - 1
BASES: Final = {
    "sp": Reg.RSP,
    "bp": Reg.RBP,
    "r10": Reg.R10,
    "r13": Reg.R13,
    "di": Reg.RDI,
    "dx": Reg.RDX,
}
PT_REGS: Final[tuple[Reg | None, ...]] = (
    Reg.R15, Reg.R14, Reg.R13, Reg.R12, Reg.RBP, Reg.RBX, Reg.R11, Reg.R10, Reg.R9, Reg.R8,
    Reg.RAX, Reg.RCX, Reg.RDX, Reg.RSI, Reg.RDI, None, Reg.RIP, Reg.CS, Reg.RFLAGS, Reg.RSP, Reg.SS,
)  # fmt: skip

Registers = Mapping[Reg, int]


def word(address: int) -> int:
    """What memory holds there."""
    digest = hashlib.blake2b((address & U64).to_bytes(8), digest_size=8).digest()
    return int.from_bytes(digest)


def kernel_step(row: Orc, registers: Registers) -> dict[Reg, int] | None:
    """The caller's registers as far as the tables tell them; None if there is no caller."""
    if row.kind in ("unknown", "end"):
        return None
    match row.sp:
        case "sp indirect":
            sp = word(registers[Reg.RSP]) + row.sp_offset
        case "bp indirect":
            sp = word(registers[Reg.RBP] + row.sp_offset)
        case base:
            sp = registers[BASES[base]] + row.sp_offset
    sp &= U64
    match row.kind:
        case "call":
            caller = {reg: registers[reg] for reg in (Reg.RBP, Reg.CS, Reg.SS, Reg.RFLAGS)}
            caller |= {Reg.RIP: word(sp - 8), Reg.RSP: sp}
            match row.bp:
                case "previous sp":
                    caller[Reg.RBP] = word(sp + row.bp_offset)
                case "bp":
                    caller[Reg.RBP] = word(registers[Reg.RBP] + row.bp_offset)
            return caller
        case "regs":
            frame = PT_REGS
        case _:
            frame = PT_REGS[16:]
    saved = {reg: word(sp + 8 * place) for place, reg in enumerate(frame) if reg is not None}
    return {**registers, **saved}


def evaluate(expression: Sequence[int], registers: Registers, start: int, dwarf: Any) -> int:
    """The result of an expression."""
    stack = [start]
    for op in DWARFExprParser(dwarf.structs).parse_expr(list(expression)):
        match op.op_name:
            case "DW_OP_addr" | "DW_OP_consts":
                stack.append(op.args[0])
            case "DW_OP_deref":
                stack.append(word(stack.pop()))
            case "DW_OP_plus":
                stack.append(stack.pop() + stack.pop())
            case "DW_OP_plus_uconst":
                stack.append(stack.pop() + op.args[0])
            case name:
                assert name.startswith("DW_OP_breg"), name
                stack.append(registers[Reg(int(name.removeprefix("DW_OP_breg")))] + op.args[0])
    return stack.pop() & U64


def debugger_step(
    entries: Sequence[Any], registers: Registers, dwarf: Any
) -> dict[Reg, int] | None:
    """The caller's registers; None if nothing is known, or that there is no caller."""
    pc = registers[Reg.RIP]
    covering = [
        entry for entry in entries if 0 <= pc - entry["initial_location"] < entry["address_range"]
    ]
    if not covering:
        return None
    (entry,) = covering
    table = entry.get_decoded().table
    row = table[bisect_right([line["pc"] for line in table], pc) - 1]
    rule = row["cfa"]
    if rule.expr is not None:
        cfa = evaluate(rule.expr, registers, 0, dwarf)
    else:
        cfa = (registers[Reg(rule.reg)] + rule.offset) & U64
    caller = {**registers, Reg.RSP: cfa}
    for number, how in row.items():
        if number in ("pc", "cfa"):
            continue
        register = Reg(number)
        match how.type:
            case "UNDEFINED":
                caller.pop(register, None)
            case "SAME_VALUE":
                pass
            case "OFFSET":
                caller[register] = word(cfa + how.arg)
            case "EXPRESSION":
                caller[register] = word(evaluate(how.arg, registers, cfa, dwarf))
            case "VAL_EXPRESSION":
                caller[register] = evaluate(how.arg, registers, cfa, dwarf)
            case other:
                raise AssertionError(other)
    return caller if Reg.RIP in caller else None


def assert_same_caller(
    row: Orc, registers: Registers, entries: Sequence[Any], dwarf: Any, landings: Landings
) -> None:
    """Both ways lead to the same caller."""
    found = debugger_step(entries, registers, dwarf)
    if row.kind in ("regs", "iret"):
        # By way of a place that is taken for a signal handler.
        assert found is not None
        assert found[Reg.RIP] == (landings.regs if row.kind == "regs" else landings.iret)
        found = debugger_step(entries, found, dwarf)
    assert found == kernel_step(row, registers)
