# SPDX-License-Identifier: MIT
"""`monitor walk` and `monitor why`: where an address is, and why an access to it is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from svsmd.gdbstub.machine_view import MachineView, number
from svsmd.gdbstub.target import MonitorCommand, TargetError
from svsmd.gdbstub.why import debugger_refusal, entry_text, explain, explain_npf
from svsmd.snp.types import C_BIT


def commands(view: MachineView) -> Mapping[str, MonitorCommand]:
    """See the package."""

    def walk(arguments: Sequence[str]) -> str:
        if len(arguments) != 1:
            raise TargetError("usage: walk GVA")
        gva = number(arguments[0])
        processor = view.processor()
        trace = processor.trace(gva, debug=True)
        lines = [entry_text(entry) for entry in trace.entries]
        translation = trace.translation
        if translation is None or not processor.memory.contains(translation.gpa & ~C_BIT):
            lines.append(debugger_refusal(processor, gva))
            raise TargetError("\n".join(lines))
        c_bit = "set" if translation.gpa & C_BIT else "clear"
        lines.append(f"{gva:#x} -> {translation.gpa & ~C_BIT:#x}, C-bit {c_bit}")
        return "\n".join(lines) + "\n"

    def gva2gpa(arguments: Sequence[str]) -> str:
        if len(arguments) != 1:
            raise TargetError("usage: gva2gpa GVA")
        translation = view.processor().trace(number(arguments[0]), debug=True).translation
        return "Unmapped\n" if translation is None else f"gpa: {translation.gpa & ~C_BIT:#x}\n"

    def why(arguments: Sequence[str]) -> str:
        if len(arguments) > 1:
            raise TargetError("usage: why [GVA]")
        processor = view.processor()
        title = view.title()
        if arguments:
            return "\n".join(explain(processor, number(arguments[0]), title)) + "\n"
        lines: list[str] = []
        npf = processor.vmcb.last_npf
        if npf is not None:
            lines += explain_npf(processor, npf, title)
        address = processor.cpu.cr[2]
        if address:
            lines.append(f"CR2, the last #PF or #VC 0x404 of {title}:")
            lines += explain(processor, address, title)
        return "\n".join(lines or [f"{title} has had no fault"]) + "\n"

    return {
        "walk": MonitorCommand("GVA", "each level of the page tables of an address", walk),
        "gva2gpa": MonitorCommand("GVA", "the physical address, as QEMU says it", gva2gpa),
        "why": MonitorCommand(
            "[GVA]", "what may be done at an address and why not; of the last fault", why
        ),
    }
