# SPDX-License-Identifier: MIT
"""The GHCB page: what a guest tells its hypervisor about an exit, and the answer.

`Ghcb` is a live view over the shared page. Its contents are hostile to whoever reads them: a field
counts only if its bit in the valid bitmap is set, and whatever is wrong with a request ends in a
`GhcbInputError` that carries the reason code for the answer.

Spec: GHCB specification (56421), 2.3 (layout, table 3), 2.6 and 4.1 (events, table 6 and 7).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from typing import ClassVar, Final, Self, overload

from svsmd.snp.bits import Bit, Bits, Register64
from svsmd.snp.page_view import U16, U32, PageField, PageView, Raw
from svsmd.snp.types import PAGE_SHIFT, PAGE_SIZE, PAGES_PER_HUGE_PAGE, PageSize
from svsmd.snp.vmsa import EventInj, EventType

GHCB_VERSION_MIN: Final = 1
GHCB_VERSION_MAX: Final = 2
"""Versions of the protocol; SEV-SNP needs 2 (56421, 2.3.1)."""
GHCB_USAGE_STANDARD: Final = 0
"""The page has the layout of this module (56421, 2.3)."""

SHARED_BUFFER_OFFSET: Final = 0x800
SHARED_BUFFER_SIZE: Final = 0x7F0


class GhcbExit(IntEnum):
    """SW_EXITCODE: the non-automatic exit events (56421, table 6)."""

    SVM_EXIT_READ_DR7 = 0x27
    SVM_EXIT_WRITE_DR7 = 0x37
    SVM_EXIT_RDTSC = 0x6E
    SVM_EXIT_RDPMC = 0x6F
    SVM_EXIT_CPUID = 0x72
    SVM_EXIT_INVD = 0x76
    SVM_EXIT_IOIO = 0x7B
    SVM_EXIT_MSR = 0x7C
    SVM_EXIT_VMMCALL = 0x81
    SVM_EXIT_RDTSCP = 0x87
    SVM_EXIT_WBINVD = 0x89
    SVM_EXIT_MONITOR = 0x8A
    SVM_EXIT_MWAIT = 0x8B
    MMIO_READ = 0x8000_0001
    MMIO_WRITE = 0x8000_0002
    NMI_COMPLETE = 0x8000_0003
    AP_RESET_HOLD = 0x8000_0004
    AP_JUMP_TABLE = 0x8000_0005
    SNP_PSC = 0x8000_0010
    SNP_GUEST_REQUEST = 0x8000_0011
    SNP_EXT_GUEST_REQUEST = 0x8000_0012
    SNP_AP_CREATION = 0x8000_0013
    HV_DOORBELL_PAGE = 0x8000_0014
    HV_IPI = 0x8000_0015
    HV_TIMER = 0x8000_0016
    APIC_ID_LIST = 0x8000_0017
    SNP_RUN_VMPL = 0x8000_0018
    SECURE_AVIC = 0x8000_001A
    CONFIGURE_INTERRUPT_INJECTION = 0x8000_001B
    DISABLE_ALTERNATE_INJECTION = 0x8000_001C
    SPECIFIC_EOI = 0x8000_001D
    HV_FEATURES = 0x8000_FFFD
    TERMINATE = 0x8000_FFFE
    UNSUPPORTED = 0x8000_FFFF


class GhcbResponse(IntEnum):
    """SW_EXITINFO1[31:0] of the answer (56421, table 7)."""

    NO_ACTION = 0
    ISSUE_EXCEPTION = 1
    """The guest is to raise the exception that SW_EXITINFO2 describes as EVENTINJ does."""
    MALFORMED_INPUT = 2
    """SW_EXITINFO2 has a `GhcbError`."""


class GhcbError(IntEnum):
    """SW_EXITINFO2 of a MALFORMED_INPUT answer (56421, table 7)."""

    NOT_REGISTERED = 1
    INVALID_USAGE = 2
    INVALID_SCRATCH_AREA = 3
    MISSING_INPUT = 4
    INVALID_INPUT = 5
    INVALID_EVENT = 6


class GhcbInputError(Exception):
    """What the guest put into its GHCB is malformed; the answer is `Ghcb.set_malformed(reason)`."""

    def __init__(self, reason: GhcbError, message: str) -> None:
        super().__init__(message)
        self.reason: Final = reason


class GhcbMissingInput(GhcbInputError):
    """An event needs a field that the guest did not mark valid."""

    def __init__(self, field: str) -> None:
        super().__init__(GhcbError.MISSING_INPUT, f"GHCB field {field} is not marked valid")


class GhcbField(PageField):
    """A save area field with its bit in the valid bitmap: byte offset / 8 (56421, 2.3).

    Reading raises `GhcbMissingInput` if the bit is clear; writing sets it.
    """

    __slots__ = ("_code", "_valid_byte", "_valid_mask")

    VALID_BITMAP_OFFSET: ClassVar = 0x3F0

    def __init__(self, offset: int, layout: str = "<Q") -> None:
        self._code = struct.Struct(layout)
        super().__init__(offset, self._code.size)
        bit = offset >> 3
        self._valid_byte = self.VALID_BITMAP_OFFSET + (bit >> 3)
        self._valid_mask = 1 << (bit & 7)

    @overload
    def __get__(self, page: None, owner: type) -> Self: ...
    @overload
    def __get__(self, page: PageView, owner: type) -> int: ...
    def __get__(self, page: PageView | None, owner: type) -> Self | int:
        if page is None:
            return self
        if not page.memory[self._valid_byte] & self._valid_mask:
            raise GhcbMissingInput(self.name)
        value: int = self._code.unpack_from(page.memory, self.offset)[0]
        return value

    def __set__(self, page: PageView, value: int) -> None:
        self._code.pack_into(page.memory, self.offset, value)
        page.memory[self._valid_byte] |= self._valid_mask

    def is_valid(self, page: PageView) -> bool:
        """Whether the field is marked valid in `page`."""
        return bool(page.memory[self._valid_byte] & self._valid_mask)


class Ghcb(PageView):
    """One GHCB page."""

    __slots__ = ()

    SIZE = PAGE_SIZE

    cpl = GhcbField(0x0CB, "<B")
    xss = GhcbField(0x140)
    dr7 = GhcbField(0x160)
    rip = GhcbField(0x178)
    rsp = GhcbField(0x1D8)
    rax = GhcbField(0x1F8)
    rcx = GhcbField(0x308)
    rdx = GhcbField(0x310)
    rbx = GhcbField(0x318)
    rbp = GhcbField(0x328)
    rsi = GhcbField(0x330)
    rdi = GhcbField(0x338)
    r8 = GhcbField(0x340)
    r9 = GhcbField(0x348)
    r10 = GhcbField(0x350)
    r11 = GhcbField(0x358)
    r12 = GhcbField(0x360)
    r13 = GhcbField(0x368)
    r14 = GhcbField(0x370)
    r15 = GhcbField(0x378)
    sw_exit_code = GhcbField(0x390)
    sw_exit_info_1 = GhcbField(0x398)
    sw_exit_info_2 = GhcbField(0x3A0)
    sw_scratch = GhcbField(0x3A8)
    xcr0 = GhcbField(0x3E8)
    valid_bitmap = Raw(GhcbField.VALID_BITMAP_OFFSET, 16)
    # Lies behind the 128 quadwords that the bitmap covers: a plain field.
    x87_state_gpa = Raw(0x400, 8)
    shared_buffer = Raw(SHARED_BUFFER_OFFSET, SHARED_BUFFER_SIZE)
    protocol_version = U16(0xFFA)
    ghcb_usage = U32(0xFFC)

    def get(self, field: GhcbField) -> int | None:
        """Return a field (`Ghcb.xcr0`), or None if the guest did not mark it valid."""
        return field.__get__(self, Ghcb) if field.is_valid(self) else None

    def clear_valid(self) -> None:
        """Mark every field invalid.

        Both sides do so before they fill the page, so that nothing stale counts as input or as
        result.
        """
        self.valid_bitmap = bytes(16)

    def check_header(self) -> None:
        """Raise `GhcbInputError` unless usage and version are ones that this machine speaks.

        A page without a version passes: with such a one Linux' decompressor asks to be terminated,
        and real hypervisors do not look at the version.
        """
        if self.ghcb_usage != GHCB_USAGE_STANDARD:
            raise GhcbInputError(GhcbError.INVALID_USAGE, f"GHCB usage {self.ghcb_usage:#x}")
        version = self.protocol_version
        if version > GHCB_VERSION_MAX:
            raise GhcbInputError(GhcbError.INVALID_INPUT, f"GHCB protocol version {version}")

    def set_request(self, code: int, info_1: int = 0, info_2: int = 0) -> None:
        """Fill in an event as its guest does; the inputs of the event are set beside this."""
        self.protocol_version = GHCB_VERSION_MAX
        self.ghcb_usage = GHCB_USAGE_STANDARD
        self.sw_exit_code = code
        self.sw_exit_info_1 = info_1
        self.sw_exit_info_2 = info_2

    def set_answer(self, info_2: int = 0) -> None:
        """Answer that the event was handled; some events have a result in SW_EXITINFO2."""
        self.sw_exit_info_1 = GhcbResponse.NO_ACTION
        self.sw_exit_info_2 = info_2

    def set_malformed(self, reason: GhcbError) -> None:
        """Answer that the request was malformed."""
        self.sw_exit_info_1 = GhcbResponse.MALFORMED_INPUT
        self.sw_exit_info_2 = reason

    def set_exception(self, vector: int, error_code: int | None = None) -> None:
        """Answer that the guest is to raise exception `vector` on itself."""
        event = EventInj.of(V=1, TYPE=EventType.EXCEPTION, VECTOR=vector)
        if error_code is not None:
            event = event.replace(EV=1, ERRORCODE=error_code)
        self.sw_exit_info_1 = GhcbResponse.ISSUE_EXCEPTION
        self.sw_exit_info_2 = event

    def scratch(self, ghcb_gpa: int, nbytes: int) -> memoryview:
        """Return the live `nbytes` at SW_SCRATCH, which must lie in this page's shared buffer.

        `ghcb_gpa` is where this page is. A scratch area elsewhere, which 56421 leaves to the
        hypervisor for version 1, is answered with INVALID_SCRATCH_AREA.
        """
        start = self.sw_scratch - ghcb_gpa
        end = SHARED_BUFFER_OFFSET + SHARED_BUFFER_SIZE
        if nbytes < 0 or start < SHARED_BUFFER_OFFSET or start + nbytes > end:
            raise GhcbInputError(
                GhcbError.INVALID_SCRATCH_AREA,
                f"{nbytes} bytes at {self.sw_scratch:#x} are not in the shared buffer",
            )
        return memoryview(self.memory)[start : start + nbytes]


class IoioInfo1(Register64):
    """SW_EXITINFO1 of SVM_EXIT_IOIO (24593, 15.10.2, figure 15-2)."""

    TYPE_IN = Bit(0)
    STR = Bit(2)
    REP = Bit(3)
    SZ8 = Bit(4)
    SZ16 = Bit(5)
    SZ32 = Bit(6)
    A16 = Bit(7)
    A32 = Bit(8)
    A64 = Bit(9)
    SEG = Bits(12, 10)
    PORT = Bits(31, 16)


@dataclass(frozen=True, slots=True)
class IoioInfo:
    """A decoded port access."""

    port: int
    is_in: bool
    string: bool
    rep: bool
    size: int
    """Bytes of one access: 1, 2 or 4."""
    address_size: int
    """Bytes of the address that a string access uses: 2, 4 or 8; 0 if none is given."""
    segment: int
    """Number of the segment register of a string access: 0 ES, 1 CS, 2 SS, 3 DS, 4 FS, 5 GS."""

    @classmethod
    @lru_cache(maxsize=256)  # A guest has few kinds of port accesses, and does each very often.
    def decode(cls, info_1: int) -> Self:
        """Decode SW_EXITINFO1; `GhcbInputError` unless exactly one operand size is set."""
        info = IoioInfo1(info_1)
        sizes = [n for n, bit in ((1, info.SZ8), (2, info.SZ16), (4, info.SZ32)) if bit]
        address_sizes = [n for n, bit in ((2, info.A16), (4, info.A32), (8, info.A64)) if bit]
        if len(sizes) != 1 or len(address_sizes) > 1 or (info.STR and not address_sizes):
            raise GhcbInputError(GhcbError.INVALID_INPUT, f"IOIO {info}: not one size")
        return cls(
            port=info.PORT,
            is_in=info.TYPE_IN,
            string=info.STR,
            rep=info.REP,
            size=sizes[0],
            address_size=address_sizes[0] if address_sizes else 0,
            segment=info.SEG,
        )

    def encode(self) -> int:
        """Build SW_EXITINFO1, the inverse of `decode`."""
        return IoioInfo1.of(
            TYPE_IN=self.is_in,
            STR=self.string,
            REP=self.rep,
            SZ8=self.size == 1,
            SZ16=self.size == 2,
            SZ32=self.size == 4,
            A16=self.address_size == 2,
            A32=self.address_size == 4,
            A64=self.address_size == 8,
            SEG=self.segment,
            PORT=self.port,
        )


PSC_HEADER: Final = struct.Struct("<HHI")
PSC_ENTRY: Final = struct.Struct("<Q")
PSC_MAX_ENTRIES: Final = 253
"""As many as the shared buffer holds (56421, 4.1.6)."""


class PscOperation(IntEnum):
    """Operation of a page state change (56421, 4.1.6, table 9)."""

    PRIVATE = 1
    SHARED = 2
    PSMASH = 3
    UNSMASH = 4


class PscError(IntEnum):
    """SW_EXITINFO2 of an SNP_PSC answer; 0 is success (56421, 4.1.6)."""

    INVALID_HEADER = 1 << 32 | 1
    INVALID_ENTRY = 1 << 32 | 2
    GENERIC = 0x100 << 32


class PscInputError(Exception):
    """A page state change list is malformed; `error` goes into SW_EXITINFO2."""

    def __init__(self, error: PscError, message: str) -> None:
        super().__init__(message)
        self.error: Final = error


class PscEntryBits(Register64):
    """One entry of the list, as it is in memory (56421, 4.1.6, table 9)."""

    CUR_PAGE = Bits(11, 0)
    GFN = Bits(51, 12)
    OPERATION = Bits(55, 52)
    PAGESIZE = Bit(56)


# By the bits in place: a list has up to 253 entries, and this is what each of them costs.
_PSC_OPERATIONS: Final = {op << PscEntryBits.OPERATION.low: op for op in PscOperation}
_HUGE_PAGE_OPERATIONS: Final = frozenset((PscOperation.PSMASH, PscOperation.UNSMASH))


@dataclass(frozen=True, slots=True)
class PscEntry:
    """A checked entry: its page is aligned, its operation known."""

    gpa: int
    operation: PscOperation
    page_size: PageSize
    cur_page: int = 0
    """How many 4 KiB pages of a 2 MiB entry are done already, 0 to 512."""

    @classmethod
    def decode(cls, raw: int) -> Self:
        """Check and decode one entry; `PscInputError` with INVALID_ENTRY if it is malformed."""
        page_size = PageSize.SIZE_2M if raw & PscEntryBits.PAGESIZE.mask else PageSize.SIZE_4K
        # The page number lies where the address has it.
        gpa = raw & PscEntryBits.GFN.mask
        cur_page = raw & PscEntryBits.CUR_PAGE.mask
        operation = _PSC_OPERATIONS.get(raw & PscEntryBits.OPERATION.mask)
        if operation is None:
            raise PscInputError(PscError.INVALID_ENTRY, f"{PscEntryBits(raw)}: no such operation")
        if cur_page > page_size.npages or gpa % page_size.nbytes:
            raise PscInputError(
                PscError.INVALID_ENTRY, f"{PscEntryBits(raw)}: not aligned or not in the page"
            )
        if operation in _HUGE_PAGE_OPERATIONS and not page_size:
            raise PscInputError(PscError.INVALID_ENTRY, f"{PscEntryBits(raw)}: needs a 2 MiB page")
        return cls(gpa, operation, page_size, cur_page)

    def encode(self) -> int:
        """Build the entry, the inverse of `decode`."""
        return PscEntryBits.of(
            CUR_PAGE=self.cur_page,
            GFN=self.gpa >> PAGE_SHIFT,
            OPERATION=self.operation,
            PAGESIZE=self.page_size,
        )


class PscDescriptor:
    """A page state change list: a live view over the shared buffer from SW_SCRATCH on."""

    def __init__(self, memory: memoryview | bytearray) -> None:
        """View `memory`; `PscInputError` if the header is malformed.

        `memory` reaches to the end of the shared buffer; an end entry beyond what it holds, or
        one before the current entry, is INVALID_HEADER.
        """
        self.memory: Final = memory
        if len(memory) < PSC_HEADER.size:
            raise PscInputError(PscError.INVALID_HEADER, "no room for the header")
        self.end_entry: Final[int] = PSC_HEADER.unpack_from(memory)[1]
        room = (len(memory) - PSC_HEADER.size) // PSC_ENTRY.size
        if self.end_entry >= min(room, PSC_MAX_ENTRIES) or self.cur_entry > self.end_entry:
            raise PscInputError(
                PscError.INVALID_HEADER, f"entries {self.cur_entry} to {self.end_entry} of {room}"
            )

    @property
    def cur_entry(self) -> int:
        """The entry that is worked on; past `end_entry` when all are done."""
        index: int = PSC_HEADER.unpack_from(self.memory)[0]
        return index

    @cur_entry.setter
    def cur_entry(self, index: int) -> None:
        struct.pack_into("<H", self.memory, 0, index)

    def entry(self, index: int) -> PscEntry:
        """Check and decode entry `index`, which is at most `end_entry`."""
        offset = PSC_HEADER.size + index * PSC_ENTRY.size
        return PscEntry.decode(PSC_ENTRY.unpack_from(self.memory, offset)[0])

    def set_cur_page(self, index: int, cur_page: int) -> None:
        """Record how far entry `index` has come, in 4 KiB pages."""
        offset = PSC_HEADER.size + index * PSC_ENTRY.size
        raw = PSC_ENTRY.unpack_from(self.memory, offset)[0]
        PSC_ENTRY.pack_into(self.memory, offset, PscEntryBits.CUR_PAGE.insert(raw, cur_page))

    def pending(self) -> Iterator[PscEntry]:
        """Yield the entries that are left, one at a time.

        `cur_entry` moves on when the next entry is asked for, and the entry's pages then count as
        done: after an error it names the entry that failed, as 56421, 4.1.6 demands.
        """
        index = self.cur_entry
        while index <= self.end_entry:
            entry = self.entry(index)
            yield entry
            self.set_cur_page(index, PAGES_PER_HUGE_PAGE if entry.page_size else 1)
            index += 1
            self.cur_entry = index

    @staticmethod
    def build(entries: list[PscEntry]) -> bytes:
        """Build a list as a guest does; ValueError unless it has 1 to 253 entries."""
        if not 0 < len(entries) <= PSC_MAX_ENTRIES:
            raise ValueError(f"{len(entries)} entries, a list has 1 to {PSC_MAX_ENTRIES}")
        header = PSC_HEADER.pack(0, len(entries) - 1, 0)
        return header + b"".join(PSC_ENTRY.pack(entry.encode()) for entry in entries)
