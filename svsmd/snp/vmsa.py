# SPDX-License-Identifier: MIT
"""The VM save area: the registers of one vCPU at one VMPL, in a page of guest memory.

`Vmsa` is a live view: VMRUN loads the machine from it, an exit saves the machine to it, and the
SVSM reads and writes the registers of its guest in it.

Spec: AMD64 APM volume 2 (24593), appendix B, table B-4 "VMSA layout, state save area for SEV-ES";
reset values: 24593, table 14-1; exit codes: 24593, appendix C.
"""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag
from typing import ClassVar, Final, NamedTuple, Self, overload

from svsmd.snp.bits import Bit, Bits, Register16, Register64
from svsmd.snp.page_view import U8, U16, U32, U64, PageField, PageView, Raw, WritableBuffer
from svsmd.snp.types import PAGE_SIZE, Vmpl

SEV_STATUS_MSR: Final = 0xC001_0131
"""Which SEV features are active, for the guest to read (24593, 15.34.10)."""
SEV_STATUS_FEATURES_SHIFT: Final = 2
"""SEV_FEATURES of the VMSA start at this bit; SEV and SEV-ES are below them."""

XMM_COUNT: Final = 16
XMM_SIZE: Final = 16


class SevFeatures(IntFlag):
    """SEV_FEATURES, offset 3B0h (24593, table B-4)."""

    SNP_ACTIVE = 1 << 0
    VTOM = 1 << 1
    REFLECT_VC = 1 << 2
    RESTRICTED_INJECTION = 1 << 3
    ALTERNATE_INJECTION = 1 << 4
    DEBUG_VIRTUALIZATION = 1 << 5
    PREVENT_HOST_IBS = 1 << 6
    SNP_BTB_ISOLATION = 1 << 7
    VMPL_SSS = 1 << 8
    SECURE_TSC = 1 << 9
    VMGEXIT_PARAMETER = 1 << 10
    IBS_VIRTUALIZATION = 1 << 12
    VMSA_REG_PROT = 1 << 14
    SMT_PROTECTION = 1 << 15
    SECURE_AVIC = 1 << 16
    IBPB_ON_ENTRY = 1 << 21


class Efer(IntFlag):
    """Extended feature enable register, MSR C000_0080 (24593, 3.1.7)."""

    SCE = 1 << 0
    LME = 1 << 8
    LMA = 1 << 10
    NXE = 1 << 11
    SVME = 1 << 12
    LMSLE = 1 << 13
    FFXSR = 1 << 14


class Cr0(IntFlag):
    """Control register 0 (24593, 3.1.1)."""

    PE = 1 << 0
    MP = 1 << 1
    EM = 1 << 2
    TS = 1 << 3
    ET = 1 << 4
    NE = 1 << 5
    WP = 1 << 16
    AM = 1 << 18
    NW = 1 << 29
    CD = 1 << 30
    PG = 1 << 31


class Cr4(IntFlag):
    """Control register 4 (24593, 3.1.3)."""

    VME = 1 << 0
    PVI = 1 << 1
    TSD = 1 << 2
    DE = 1 << 3
    PSE = 1 << 4
    PAE = 1 << 5
    MCE = 1 << 6
    PGE = 1 << 7
    PCE = 1 << 8
    OSFXSR = 1 << 9
    OSXMMEXCPT = 1 << 10
    UMIP = 1 << 11
    LA57 = 1 << 12
    FSGSBASE = 1 << 16
    PCIDE = 1 << 17
    OSXSAVE = 1 << 18
    SMEP = 1 << 20
    SMAP = 1 << 21
    PKE = 1 << 22
    CET = 1 << 23


class VmexitCode(IntEnum):
    """#VMEXIT codes that an SNP guest can end with (24593, appendix C)."""

    EXCP_BASE = 0x40
    INTR = 0x60
    NMI = 0x61
    INIT = 0x63
    VINTR = 0x64
    HLT = 0x78
    SHUTDOWN = 0x7F
    NPF = 0x400
    VMGEXIT = 0x403
    PAGE_NOT_VALIDATED = 0x404
    INVALID = 0xFFFF_FFFF_FFFF_FFFF
    BUSY = 0xFFFF_FFFF_FFFF_FFFE


class EventType(IntEnum):
    """EVENTINJ[10:8] (24593, 15.20)."""

    INTR = 0
    NMI = 2
    EXCEPTION = 3
    SOFTWARE = 4


class EventInj(Register64):
    """EVENTINJ, offset 3E0h, and the same form in SW_EXITINFO2 (24593, 15.20)."""

    VECTOR = Bits(7, 0)
    TYPE = Bits(10, 8)
    EV = Bit(11)
    V = Bit(31)
    ERRORCODE = Bits(63, 32)


class VintrCtrl(Register64):
    """VINTR_CTRL, offset 3B8h, used with alternate injection (24593, 15.36.17)."""

    V_TPR = Bits(7, 0)
    V_IRQ = Bit(8)
    VGIF = Bit(9)
    INT_SHADOW = Bit(10)
    V_NMI = Bit(11)
    V_NMI_MASK = Bit(12)
    V_INTR_PRIO = Bits(19, 16)
    V_IGN_TPR = Bit(20)
    V_NMI_ENABLE = Bit(26)
    V_INTR_VECTOR = Bits(39, 32)
    BUSY = Bit(63)


class SegmentAttrib(Register16):
    """Segment attributes: bits 55:52 and 47:40 of the descriptor, packed (24593, table B-2)."""

    TYPE = Bits(3, 0)
    S = Bit(4)
    DPL = Bits(6, 5)
    P = Bit(7)
    AVL = Bit(8)
    L = Bit(9)
    DB = Bit(10)
    G = Bit(11)


class Segment(NamedTuple):
    """A segment register with its hidden part."""

    selector: int
    attrib: int
    """Twelve bits, see `SegmentAttrib`."""
    limit: int
    """Offset of the last byte, in bytes (the granularity bit has been applied)."""
    base: int

    @property
    def attributes(self) -> SegmentAttrib:
        """The attributes with names."""
        return SegmentAttrib(self.attrib)


class SegmentField(PageField):
    """Sixteen bytes: selector, attributes, limit, base (24593, table B-2)."""

    __slots__ = ()

    _LAYOUT: ClassVar = struct.Struct("<HHIQ")

    def __init__(self, offset: int) -> None:
        super().__init__(offset, self._LAYOUT.size)

    @overload
    def __get__(self, page: None, owner: type) -> Self: ...
    @overload
    def __get__(self, page: PageView, owner: type) -> Segment: ...
    def __get__(self, page: PageView | None, owner: type) -> Self | Segment:
        if page is None:
            return self
        return Segment._make(self._LAYOUT.unpack_from(page.memory, self.offset))

    def __set__(self, page: PageView, value: Segment) -> None:
        self._LAYOUT.pack_into(page.memory, self.offset, *value)


# Attributes after reset (24593, table 14-1) and of the flat segments that a boot protocol wants.
_REAL_MODE_CODE: Final = SegmentAttrib(0x9B)
_REAL_MODE_DATA: Final = SegmentAttrib(0x93)
_LDT: Final = SegmentAttrib(0x82)
_BUSY_TSS: Final = SegmentAttrib(0x8B)
_CODE_64: Final = SegmentAttrib(0xA9B)
_CODE_32: Final = SegmentAttrib(0xC9B)
_DATA_32: Final = SegmentAttrib(0xC93)

_LIMIT_64K: Final = 0xFFFF
_LIMIT_4G: Final = 0xFFFF_FFFF
_RESET_SELECTOR: Final = 0xF000

DR6_RESET: Final = 0xFFFF_0FF0
DR7_RESET: Final = 0x400
RFLAGS_RESET: Final = 0x2
"""Bit 1 always reads as one."""
PAT_RESET: Final = 0x0007_0406_0007_0406
XCR0_RESET: Final = 0x1
MXCSR_RESET: Final = 0x1F80
X87_FCW_RESET: Final = 0x40
X87_FTW_RESET: Final = 0x5555
RESET_VECTOR: Final = 0xFFFF_FFF0
"""Linear address of the first instruction after reset."""


class Vmsa(PageView):
    """One VMSA page; field names are the manual's in lower case."""

    __slots__ = ()

    SIZE = PAGE_SIZE

    es = SegmentField(0x000)
    cs = SegmentField(0x010)
    ss = SegmentField(0x020)
    ds = SegmentField(0x030)
    fs = SegmentField(0x040)
    gs = SegmentField(0x050)
    gdtr = SegmentField(0x060)
    ldtr = SegmentField(0x070)
    idtr = SegmentField(0x080)
    tr = SegmentField(0x090)
    pl0_ssp = U64(0x0A0)
    pl1_ssp = U64(0x0A8)
    pl2_ssp = U64(0x0B0)
    pl3_ssp = U64(0x0B8)
    u_cet = U64(0x0C0)
    vmpl = U8(0x0CA)
    cpl = U8(0x0CB)
    efer = U64(0x0D0)
    xss = U64(0x140)
    cr4 = U64(0x148)
    cr3 = U64(0x150)
    cr0 = U64(0x158)
    dr7 = U64(0x160)
    dr6 = U64(0x168)
    rflags = U64(0x170)
    rip = U64(0x178)
    dr0 = U64(0x180)
    dr1 = U64(0x188)
    dr2 = U64(0x190)
    dr3 = U64(0x198)
    dr0_addr_mask = U64(0x1A0)
    dr1_addr_mask = U64(0x1A8)
    dr2_addr_mask = U64(0x1B0)
    dr3_addr_mask = U64(0x1B8)
    rsp = U64(0x1D8)
    s_cet = U64(0x1E0)
    ssp = U64(0x1E8)
    isst_addr = U64(0x1F0)
    rax = U64(0x1F8)
    star = U64(0x200)
    lstar = U64(0x208)
    cstar = U64(0x210)
    sfmask = U64(0x218)
    kernel_gs_base = U64(0x220)
    sysenter_cs = U64(0x228)
    sysenter_esp = U64(0x230)
    sysenter_eip = U64(0x238)
    cr2 = U64(0x240)
    g_pat = U64(0x268)
    dbgctl = U64(0x270)
    br_from = U64(0x278)
    br_to = U64(0x280)
    last_excp_from = U64(0x288)
    last_excp_to = U64(0x290)
    pkru = U32(0x2E8)
    tsc_aux = U32(0x2EC)
    guest_tsc_scale = U64(0x2F0)
    guest_tsc_offset = U64(0x2F8)
    reg_prot_nonce = U64(0x300)
    rcx = U64(0x308)
    rdx = U64(0x310)
    rbx = U64(0x318)
    rbp = U64(0x328)
    rsi = U64(0x330)
    rdi = U64(0x338)
    r8 = U64(0x340)
    r9 = U64(0x348)
    r10 = U64(0x350)
    r11 = U64(0x358)
    r12 = U64(0x360)
    r13 = U64(0x368)
    r14 = U64(0x370)
    r15 = U64(0x378)
    guest_exitinfo1 = U64(0x390)
    guest_exitinfo2 = U64(0x398)
    guest_exitintinfo = U64(0x3A0)
    guest_nrip = U64(0x3A8)
    sev_features = U64(0x3B0)
    vintr_ctrl = U64(0x3B8)
    guest_exitcode = U64(0x3C0)
    virtual_tom = U64(0x3C8)
    tlb_id = U64(0x3D0)
    pcpu_id = U64(0x3D8)
    eventinj = U64(0x3E0)
    xcr0 = U64(0x3E8)
    x87_dp = U64(0x400)
    mxcsr = U32(0x408)
    x87_ftw = U16(0x40C)
    x87_fsw = U16(0x40E)
    x87_fcw = U16(0x410)
    x87_fop = U16(0x412)
    x87_ds = U16(0x414)
    x87_cs = U16(0x416)
    x87_rip = U64(0x418)
    fpreg_x87 = Raw(0x420, 80)
    fpreg_xmm = Raw(0x470, XMM_COUNT * XMM_SIZE)
    fpreg_ymm = Raw(0x570, XMM_COUNT * XMM_SIZE)
    lbr_stack = Raw(0x670, 256)
    lbr_select = U64(0x770)
    ibs_fetch_ctl = U64(0x778)
    ibs_fetch_linaddr = U64(0x780)
    ibs_op_ctl = U64(0x788)
    ibs_op_rip = U64(0x790)
    ibs_op_data = U64(0x798)
    ibs_op_data2 = U64(0x7A0)
    ibs_op_data3 = U64(0x7A8)
    ibs_dc_linaddr = U64(0x7B0)
    bp_ibstgt_rip = U64(0x7B8)
    ic_ibs_extd_ctl = U64(0x7C0)

    def xmm(self, index: int) -> bytes:
        """Return the 16 bytes of XMM`index`, lowest byte first; IndexError above 15."""
        start = self._xmm_offset(index)
        return bytes(self.memory[start : start + XMM_SIZE])

    def set_xmm(self, index: int, value: bytes) -> None:
        """Set the 16 bytes of XMM`index`; IndexError above 15, ValueError for another length."""
        start = self._xmm_offset(index)
        if len(value) != XMM_SIZE:
            raise ValueError(f"an XMM register has {XMM_SIZE} bytes, not {len(value)}")
        self.memory[start : start + XMM_SIZE] = value

    @classmethod
    def _xmm_offset(cls, index: int) -> int:
        if not 0 <= index < XMM_COUNT:
            raise IndexError(f"no XMM{index}")
        return cls.fpreg_xmm.offset + index * XMM_SIZE

    @classmethod
    def reset_state(
        cls,
        page: WritableBuffer | None = None,
        *,
        vmpl: Vmpl = Vmpl.VMPL0,
        sev_features: SevFeatures = SevFeatures.SNP_ACTIVE,
        reset_vector: int = RESET_VECTOR,
        cpuid_signature: int = 0,
    ) -> Self:
        """Fill `page` (or a new one) with the state of a processor after reset, in real mode.

        `reset_vector` is the linear address of the first instruction, below 4 GiB: CS.base gets
        its upper and RIP its lower 16 bits, as for INIT and for a start that firmware requests.
        RDX holds `cpuid_signature`, CPUID 1:EAX (24593, 14.1.3). EFER.SVME is set, without which
        VMRUN refuses the page (24593, 15.36.12).
        """
        vmsa = cls(page)
        vmsa.clear()
        data = Segment(0, _REAL_MODE_DATA, _LIMIT_64K, 0)
        for field in (cls.es, cls.ss, cls.ds, cls.fs, cls.gs):
            field.__set__(vmsa, data)
        vmsa.cs = Segment(_RESET_SELECTOR, _REAL_MODE_CODE, _LIMIT_64K, reset_vector & 0xFFFF_0000)
        vmsa.gdtr = Segment(0, 0, _LIMIT_64K, 0)
        vmsa.idtr = Segment(0, 0, _LIMIT_64K, 0)
        vmsa.ldtr = Segment(0, _LDT, _LIMIT_64K, 0)
        vmsa.tr = Segment(0, _BUSY_TSS, _LIMIT_64K, 0)
        vmsa.vmpl = vmpl
        vmsa.efer = Efer.SVME
        vmsa.cr0 = Cr0.CD | Cr0.NW | Cr0.ET
        vmsa.dr6 = DR6_RESET
        vmsa.dr7 = DR7_RESET
        vmsa.rflags = RFLAGS_RESET
        vmsa.rip = reset_vector & 0xFFFF
        vmsa.rdx = cpuid_signature
        vmsa.g_pat = PAT_RESET
        vmsa.sev_features = sev_features
        vmsa.xcr0 = XCR0_RESET
        vmsa.mxcsr = MXCSR_RESET
        vmsa.x87_fcw = X87_FCW_RESET
        vmsa.x87_ftw = X87_FTW_RESET
        return vmsa

    @classmethod
    def protected_mode_start(
        cls,
        rip: int,
        rsp: int = 0,
        page: WritableBuffer | None = None,
        *,
        vmpl: Vmpl = Vmpl.VMPL0,
        sev_features: SevFeatures = SevFeatures.SNP_ACTIVE,
        code_selector: int = 0x08,
        data_selector: int = 0x10,
    ) -> Self:
        """Start at `rip` in flat 32-bit protected mode, CPL 0, paging off.

        No descriptor table is set up: the code must load its own before it loads a segment.
        """
        vmsa = cls.reset_state(page, vmpl=vmpl, sev_features=sev_features)
        vmsa._set_flat_segments(code_selector, _CODE_32, data_selector)
        vmsa.cr0 = Cr0.PE | Cr0.ET | Cr0.NE
        vmsa.rip = rip
        vmsa.rsp = rsp
        return vmsa

    @classmethod
    def long_mode_start(
        cls,
        rip: int,
        rsp: int,
        cr3: int,
        rsi: int = 0,
        page: WritableBuffer | None = None,
        *,
        vmpl: Vmpl = Vmpl.VMPL0,
        sev_features: SevFeatures = SevFeatures.SNP_ACTIVE,
        gdt_base: int = 0,
        gdt_limit: int = 0,
        code_selector: int = 0x10,
        data_selector: int = 0x18,
    ) -> Self:
        """Start at `rip` in 64-bit mode, CPL 0, interrupts off, paging on with `cr3`.

        `cr3` is a physical address with the C-bit. The selectors are those of the Linux boot
        protocol, whose boot parameters RSI points to; `gdt_base` and `gdt_limit` name the
        descriptor table that holds them.
        """
        vmsa = cls.reset_state(page, vmpl=vmpl, sev_features=sev_features)
        vmsa._set_flat_segments(code_selector, _CODE_64, data_selector)
        vmsa.gdtr = Segment(0, 0, gdt_limit, gdt_base)
        vmsa.idtr = Segment(0, 0, 0, 0)
        vmsa.efer = Efer.SVME | Efer.LME | Efer.LMA
        vmsa.cr0 = Cr0.PG | Cr0.WP | Cr0.NE | Cr0.ET | Cr0.MP | Cr0.PE
        vmsa.cr3 = cr3
        vmsa.cr4 = Cr4.PAE
        vmsa.rip = rip
        vmsa.rsp = rsp
        vmsa.rsi = rsi
        return vmsa

    def _set_flat_segments(self, code_selector: int, code: int, data_selector: int) -> None:
        self.cs = Segment(code_selector, code, _LIMIT_4G, 0)
        data = Segment(data_selector, _DATA_32, _LIMIT_4G, 0)
        for field in (Vmsa.es, Vmsa.ss, Vmsa.ds, Vmsa.fs, Vmsa.gs):
            field.__set__(self, data)
