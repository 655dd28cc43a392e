# SPDX-License-Identifier: MIT
"""A chip with 32 MiB and hand-written guest code, without host and core.

Linear addresses are guest-physical addresses, all private (C=1) unless map() says otherwise. Every
exception handler is a HLT, so that an exception ends the run and its frame can be looked at. Only
the pages that setup needs are the guest's; own() gives it more.
"""

from __future__ import annotations

import functools
import struct
import subprocess
import tempfile
from pathlib import Path
from typing import Final, NamedTuple

from svsmd.snp.entropy import EntropySource
from svsmd.snp.exits import Exit, Hlt
from svsmd.snp.rmp import GUEST_ASID, RmpReturn, RmpUpdate
from svsmd.snp.silicon import Silicon
from svsmd.snp.types import C_BIT, PAGE_SIZE, Gpa, PageSize, Spa, Vmpl
from svsmd.snp.vmcb import Vmcb
from svsmd.snp.vmsa import Segment, SegmentAttrib, Vmsa

MEMORY: Final = 32 << 20
VMSA: Final = 0x08_0000
TABLES: Final = 0x10_0000
PML4: Final = TABLES
PAGE_TABLES: Final = TABLES + 3 * PAGE_SIZE
IDT: Final = 0x20_0000
GDT: Final = 0x20_1000
TSS: Final = 0x20_2000
HANDLERS: Final = 0x20_4000
RSP0: Final = 0x21_0000
IST1: Final = 0x22_0000
STACK: Final = 0x23_0000
CODE: Final = 0x30_0000
DATA: Final = 0x40_0000
SPARE: Final = 0x50_0000
"""Pages from here on are nobody's yet."""

KERNEL_CS, KERNEL_SS = 0x10, 0x18
USER_CS32, USER_SS, USER_CS = 0x23, 0x2B, 0x33
TSS_SELECTOR: Final = 0x40
CODE32: Final = 0x50

P, W, U, A, D, PS = 1, 2, 4, 0x20, 0x40, 0x80
NX: Final = 1 << 63
ALL: Final = (15, 15, 15, 15)
READ, WRITE, EXECUTE_USER, EXECUTE_SUPERVISOR = 1, 2, 4, 8
IF, TF, RF = 1 << 9, 1 << 8, 1 << 16

HLT: Final = b"\xf4"
_WITH_ERROR_CODE: Final = frozenset((8, 10, 11, 12, 13, 14, 17, 21, 29, 30))
_HANDLER_STRIDE: Final = 16
_CODE_64_USER: Final = SegmentAttrib(0xAFB)
_DATA_USER: Final = SegmentAttrib(0xCF3)
_BUSY_TSS: Final = SegmentAttrib(0x08B)


@functools.cache
def assemble(source: str, bits: int = 64, origin: int = CODE) -> bytes:
    """Machine code of Intel-syntax source."""
    with tempfile.TemporaryDirectory() as directory:
        output = Path(directory) / "code"
        mode = {16: ".code16", 32: ".code32", 64: ".code64"}[bits]
        text = f".intel_syntax noprefix\n{mode}\n{source}\n"
        subprocess.run(["as", "--64", "-o", f"{output}.o"], input=text, text=True, check=True)
        subprocess.run(
            ["ld", "-e", "0", f"-Ttext={origin:#x}", "--oformat", "binary", "-o", output,
             f"{output}.o"],
            check=True,
        )  # fmt: skip
        return output.read_bytes()


class Trap(NamedTuple):
    """The frame of the exception whose handler has stopped the machine."""

    vector: int
    error_code: int | None
    rip: int
    cs: int
    rflags: int
    rsp: int
    ss: int


def gate(target: int, *, ist: int = 0, dpl: int = 0, trap: bool = False) -> bytes:
    """A 64-bit IDT entry."""
    kind = 0x8F if trap else 0x8E
    low = target & 0xFFFF | KERNEL_CS << 16 | ist << 32 | (kind | dpl << 5) << 40
    return struct.pack("<QQ", low | (target >> 16 & 0xFFFF) << 48, target >> 32)


class BareMachine:
    """One vCPU at one VMPL, ready to run code at CODE.

    Args:
        vmpl: privilege level of the vCPU.
        user: starts at CPL 3, on pages with U set.
    """

    def __init__(self, vmpl: int = 2, *, user: bool = False) -> None:
        self.silicon = Silicon(MEMORY, EntropySource(b"bare machine"))
        self.rmp = self.silicon.rmp
        self.vmcb = Vmcb(VMSA)
        for start, count in (
            (VMSA, 1), (TABLES, 19), (IDT, 6), (RSP0 - PAGE_SIZE, 1), (IST1 - PAGE_SIZE, 1),
            (STACK - 2 * PAGE_SIZE, 2), (CODE, 2), (DATA, 2),
        ):  # fmt: skip
            self.own(start, count)
        self._build_tables(U if user else 0)
        self._build_descriptors()
        self.make_vmsa(vmpl, user=user)
        self.write(CODE, HLT)

    # -- memory -----------------------------------------------------------------------------

    def own(
        self, gpa: int, pages: int = 1, *, validated: bool = True,
        permissions: tuple[int, int, int, int] = ALL, vmsa: bool = False,
    ) -> None:  # fmt: skip
        """Makes pages the guest's."""
        for page in range(gpa, gpa + pages * PAGE_SIZE, PAGE_SIZE):
            update = RmpUpdate(assigned=True, gpa=Gpa(page), asid=GUEST_ASID)
            assert self.rmp.rmpupdate(Spa(page), update) is RmpReturn.SUCCESS
            self.rmp.firmware_update(
                Spa(page), validated=validated, permissions=permissions, vmsa=vmsa
            )

    def own_huge(self, gpa: int, permissions: tuple[int, int, int, int] = ALL) -> None:
        """Makes 2 MiB the guest's, as one page."""
        update = RmpUpdate(assigned=True, gpa=Gpa(gpa), asid=GUEST_ASID, page_size=PageSize.SIZE_2M)
        assert self.rmp.rmpupdate(Spa(gpa), update) is RmpReturn.SUCCESS
        self.rmp.firmware_update(Spa(gpa), validated=True, permissions=permissions)

    def write(self, address: int, data: bytes) -> None:
        """Puts plaintext into RAM."""
        self.silicon.debug_write(address, data)

    def read(self, address: int, n: int) -> bytes:
        """Plaintext of RAM."""
        return self.silicon.memory.read(address, n)

    def read_u64(self, address: int) -> int:
        """A quadword of RAM."""
        return int.from_bytes(self.read(address, 8), "little")

    def write_u64(self, address: int, value: int) -> None:
        """Writes what read_u64() reads."""
        self.write(address, value.to_bytes(8, "little"))

    @staticmethod
    def entry_of(gva: int) -> int:
        """Where the page table entry of a linear address below 32 MiB lies."""
        return PAGE_TABLES + (gva >> 12) * 8

    def map(self, gva: int, gpa: int, flags: int = P | W, *, private: bool = True) -> None:
        """Changes the mapping of a linear page below 32 MiB."""
        self.write_u64(self.entry_of(gva), gpa | flags | (C_BIT if private else 0))
        self.silicon.cpu.flush_tlb()

    def _build_tables(self, user: int) -> None:
        table = P | W | U | C_BIT
        self.write_u64(PML4, PML4 + PAGE_SIZE | table)
        self.write_u64(PML4 + PAGE_SIZE, PML4 + 2 * PAGE_SIZE | table)
        entries = [PAGE_TABLES + i * PAGE_SIZE | table for i in range(16)]
        self.write(PML4 + 2 * PAGE_SIZE, struct.pack("<16Q", *entries))
        pages = [page << 12 | P | W | user | C_BIT for page in range(MEMORY >> 12)]
        self.write(PAGE_TABLES, struct.pack(f"<{len(pages)}Q", *pages))

    def _build_descriptors(self) -> None:
        for vector in range(256):
            target = HANDLERS + vector * _HANDLER_STRIDE
            self.write(IDT + 16 * vector, gate(target))
            self.write(target, HLT)
        tss_low = 0x67 | (TSS & 0xFF_FFFF) << 16 | 0x89 << 40 | TSS >> 24 << 56
        descriptors = (
            0, 0, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF,
            0x00CF_FB00_0000_FFFF, 0x00CF_F300_0000_FFFF, 0x00AF_FB00_0000_FFFF, 0,
            tss_low, 0, 0x00CF_9B00_0000_FFFF, 0,
        )  # fmt: skip
        self.write(GDT, struct.pack(f"<{len(descriptors)}Q", *descriptors))
        tss = bytearray(0x68)
        struct.pack_into("<Q", tss, 4, RSP0)
        struct.pack_into("<Q", tss, 0x24, IST1)
        struct.pack_into("<H", tss, 0x66, 0x68)
        self.write(TSS, bytes(tss))

    def set_gate(self, vector: int, entry: bytes) -> None:
        """Replaces an IDT entry."""
        self.write(IDT + 16 * vector, entry)

    def set_handler(self, vector: int, source: str) -> None:
        """Replaces a handler; it has 16 bytes unless its neighbours do not matter."""
        address = HANDLERS + vector * _HANDLER_STRIDE
        self.write(address, assemble(source, origin=address))

    # -- the vCPU ---------------------------------------------------------------------------

    def make_vmsa(
        self, vmpl: int, *, user: bool = False, at: int = VMSA, code: int = CODE, stack: int = STACK
    ) -> None:
        """Writes a VMSA of 64-bit code, and marks its page."""
        vmsa = Vmsa.long_mode_start(
            code, stack, PML4 | C_BIT, page=self.silicon.memory.page(at), vmpl=Vmpl(vmpl),
            gdt_base=GDT, gdt_limit=0x5F,
        )  # fmt: skip
        vmsa.idtr = Segment(0, 0, 0xFFF, IDT)
        vmsa.tr = Segment(TSS_SELECTOR, _BUSY_TSS, 0x67, TSS)
        if user:
            vmsa.cpl = 3
            vmsa.cs = Segment(USER_CS, _CODE_64_USER, 0xFFFF_FFFF, 0)
            vmsa.ss = vmsa.ds = vmsa.es = Segment(USER_SS, _DATA_USER, 0xFFFF_FFFF, 0)
        vmsa.efer |= 1 << 11
        self.rmp.firmware_update(Spa(at), vmsa=True)

    @property
    def vmsa(self) -> Vmsa:
        """The vCPU's registers; what is written counts from the next run() on."""
        self.silicon.save_loaded()
        return Vmsa(self.silicon.memory.page(VMSA))

    def load(self, source: str | bytes, at: int = CODE) -> None:
        """Puts code into RAM."""
        code = assemble(source, origin=at) if isinstance(source, str) else source
        self.write(at, code)

    def run(self, source: str | bytes | None = None, *, ticks: int = 100_000) -> Exit:
        """Runs from where the vCPU is, for `ticks` at most."""
        if source is not None:
            self.load(source)
        return self.silicon.vmrun(self.vmcb, self.silicon.clock.now + ticks)

    def gpr(self, name: str) -> int:
        """A general register."""
        return int(getattr(self.vmsa, name))

    @property
    def trap(self) -> Trap:
        """The frame of the handler that halted."""
        vmsa = self.vmsa
        vector, offset = divmod(vmsa.rip - 1 - HANDLERS, _HANDLER_STRIDE)
        assert offset == 0, f"stopped at {vmsa.rip:#x}, not in a handler"
        assert 0 <= vector < 256, f"stopped at {vmsa.rip:#x}, not in a handler"
        stack = vmsa.rsp
        error_code = None
        if vector in _WITH_ERROR_CODE:
            error_code = self.read_u64(stack)
            stack += 8
        return Trap(vector, error_code, *struct.unpack("<5Q", self.read(stack, 40)))

    def trapped(self, source: str | bytes | None = None, *, ticks: int = 100_000) -> Trap:
        """Runs until an exception's handler stops the machine."""
        assert self.run(source, ticks=ticks) == Hlt()
        return self.trap
