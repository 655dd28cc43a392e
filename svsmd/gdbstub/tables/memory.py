# SPDX-License-Identifier: MIT
"""`info os rmp` and `info os pagetable`: memory by who owns it, and as a world maps it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from svsmd.gdbstub.machine_view import MachineView
from svsmd.gdbstub.page_tables import ALL, NX, C, PageTables, U, W, canonical
from svsmd.gdbstub.target import Table
from svsmd.gdbstub.why import flags_text, last_change_text, permissions_text
from svsmd.snp.types import PAGE_SHIFT, PageSize

_VMPLS = ("vmpl0", "vmpl1", "vmpl2", "vmpl3")


def tables(view: MachineView) -> Mapping[str, Table]:
    """See the package."""

    def rmp() -> Iterator[Sequence[str]]:
        table = view.machine.silicon.rmp
        for first, count in table.runs():
            entry = table.lookup(first << PAGE_SHIFT)
            assert entry is not None, "runs() covers what the RMP covers"
            yield (
                f"{first << PAGE_SHIFT:#x}",
                str(count),
                "2M" if entry.page_size is PageSize.SIZE_2M else "4K",
                flags_text(entry),
                f"{entry.gpa:#x}" if entry.assigned else "",
                str(entry.asid),
                *(permissions_text(mask) for mask in entry.permissions),
                last_change_text(table, first),
            )

    def pagetable() -> Iterator[Sequence[str]]:
        processor = view.processor()
        found = PageTables(processor.memory, processor.paging_state())
        if not found.paging:
            yield ("0x0", "0x100000000", "0x100000000", "rwx", "", "private", "no paging")
            return
        for start, end, attributes in found.runs(ALL):
            write = "w" if attributes & W else "-"
            execute = "-" if attributes & NX else "x"
            yield (
                f"{canonical(start):#x}",
                f"{canonical(end - 1) + 1:#x}",
                f"{end - start:#x}",
                f"r{write}{execute}",
                "user" if attributes & U else "supervisor",
                "private" if attributes & C else "shared",
                "",
            )
        if found.truncated:
            yield ("...",) * 6 + ("the tables lead back to themselves, or are too many",)

    return {
        "rmp": Table(
            "RMP",
            "Runs of equal entries of the Reverse Map Table, with who changed the first one last",
            ("spa", "pages", "size", "state", "gpa", "asid", *_VMPLS, "last change"),
            rmp,
        ),
        "pagetable": Table(
            "Page tables",
            "What the selected vCPU maps, neighbours with the same rights as one",
            ("start", "end", "bytes", "rights", "mode", "c-bit", "remark"),
            pagetable,
        ),
    }
