# SPDX-License-Identifier: MIT
"""`monitor info`: the machine, and what QEMU's monitor tells of a CPU, in QEMU's formats.

pwndbg and gef read `info mem` and `info registers`. Formats: QEMU, target/i386/monitor.c and
cpu-dump.c; compared with a real one in tests/e2e/test_gdb_qemu_formats.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Final

from svsmd.gdbstub.machine_view import MachineView, number
from svsmd.gdbstub.monitor.registers import register_dump
from svsmd.gdbstub.page_tables import Leaf, P, PageTables, U, W, canonical
from svsmd.gdbstub.target import MonitorCommand, TargetError

MAX_LINES: Final = 20_000
"""Lines of one answer."""
_MORE: Final = "...: there is more"

_NX: Final = 1 << 63
_FLAGS: Final = ((8, "G"), (7, "P"), (6, "D"), (5, "A"), (4, "C"), (3, "T"), (2, "U"), (1, "W"))
_PS: Final = 1 << 7
_FRAMES: Final = 0x3_FFFF_FFFF_F000
"""Bits of an address that QEMU prints of an entry; the C-bit is one of them."""


def commands(view: MachineView) -> Mapping[str, MonitorCommand]:
    """See the package."""

    def machine() -> str:
        lines = [f"{view.machine.config.name}: {view.machine.clock_now} ticks"]
        lines += [f"  {thread.name}: {thread.info}" for thread in view.threads()]
        return "\n".join(lines) + "\n"

    def tables() -> PageTables | None:
        processor = view.processor()
        found = PageTables(processor.memory, processor.paging_state())
        return found if found.paging else None

    def mem() -> str:
        found = tables()
        return "PG disabled\n" if found is None else _text(mem_lines(found), found)

    def tlb() -> str:
        found = tables()
        return "PG disabled\n" if found is None else _text(tlb_lines(found), found)

    def registers() -> str:
        view.processor()
        vcpu, world = view.selected()
        assert world is not None, "the processor has loaded it"
        silicon = view.machine.silicon
        halted = not world.can_run()
        return register_dump(silicon.registers, vcpu.index, dr7=world.dr7, halted=halted)

    def cpus() -> str:
        chosen = view.selected()[0]
        return "".join(
            f"{'*' if vcpu is chosen else ' '} CPU #{vcpu.index}: VMPL{int(vcpu.vmpl)}\n"
            for vcpu in view.machine.hypervisor.vcpus
        )

    parts: Mapping[str, Callable[[], str]] = {
        "mem": mem, "tlb": tlb, "registers": registers, "cpus": cpus,
    }  # fmt: skip

    def info(arguments: Sequence[str]) -> str:
        if not arguments:
            return machine()
        part = parts.get(arguments[0])
        if part is None or len(arguments) > 1:
            raise TargetError("usage: info [mem | tlb | registers | cpus]")
        return part()

    def cpu(arguments: Sequence[str]) -> str:
        if len(arguments) > 1:
            raise TargetError("usage: cpu [VCPU | thread]")
        if arguments and arguments[0] == "thread":
            view.selection.vcpu = None
        elif arguments:
            index = number(arguments[0])
            if index >= len(view.machine.hypervisor.vcpus):
                raise TargetError(f"there is no vCPU {index}")
            view.selection.vcpu = index
        why = "the selected thread's" if view.selection.vcpu is None else "chosen here"
        return f"{view.title()}, {why}\n"

    text = "ticks, vCPUs and what each runs; mappings and registers as QEMU shows them"
    return {
        "info": MonitorCommand("[mem | tlb | registers | cpus]", text, info),
        "cpu": MonitorCommand(
            "[VCPU | thread]", "whose memory and registers these commands show", cpu
        ),
    }


def _text(lines: Iterator[str], tables: PageTables) -> str:
    shown = list(islice(lines, MAX_LINES))
    if tables.truncated or next(lines, None) is not None:
        shown.append(_MORE)
    return "".join(line + "\n" for line in shown)


def mem_lines(tables: PageTables) -> Iterator[str]:
    """`info mem`: ranges that are mapped with the same rights of user, read and write."""
    for start, end, attributes in tables.runs(P | W | U):
        user = "u" if attributes & U else "-"
        write = "w" if attributes & W else "-"
        size = canonical(end - start)
        yield f"{canonical(start):016x}-{canonical(end):016x} {size:016x} {user}r{write}"


def tlb_lines(tables: PageTables) -> Iterator[str]:
    """`info tlb`: every mapped page with the physical address and the flags of its entry."""
    for leaf in tables.leaves():
        yield _tlb_line(leaf)


def _tlb_line(leaf: Leaf) -> str:
    gva, size, entry = leaf
    if size == 1 << 12:
        entry &= ~_PS  # it is PAT there
    flags = "X" if entry & _NX else "-"
    flags += "".join(name if entry >> bit & 1 else "-" for bit, name in _FLAGS)
    return f"{canonical(gva):016x}: {entry & _FRAMES & -size:016x} {flags}"
