# SPDX-License-Identifier: MIT
"""The CPU engine: Unicorn 2 in SVM guest mode.

The engine enters SVM guest mode with nested paging once, by a VMRUN, and never leaves it: where
the hardware would do a #VMEXIT, the engine calls an interrupt hook with 0x100 plus the exit code,
the instruction not executed and the guest state live. What an exit means is decided by the
silicon above (svsmd/snp/processor.py); this module owns the mechanism: registers, nested tables,
the instruction count, stops, steps and breakpoints. docs/engine.md tells the whole story.

This is the one module that imports unicorn.
"""

from __future__ import annotations

import ctypes
import logging
import mmap
import struct
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path
from typing import Any, Final

import unicorn
from unicorn import unicorn_const as ucc
from unicorn import x86_const as x86

from svsmd.snp.engine_layout import EngineLayout, EngineMismatch, LayoutProbe, VmrunMarks
from svsmd.snp.memory import GuestMemory
from svsmd.snp.nested_paging import NestedTables
from svsmd.snp.types import PAGE_SIZE

log = logging.getLogger(__name__)

ENGINE_VERSION: Final = "2.1.4"

HOST_BASE: Final = 1 << 38
"""Engine-physical address of host-private memory; no nested table maps it."""
_HOST_SIZE: Final = 64 << 20
_VMCB, _HSAVE, _MSRPM = HOST_BASE, HOST_BASE + 0x1000, HOST_BASE + 0x4000
_HOST_TABLES, _HOST_CODE, _GUEST_PROBE = HOST_BASE + 0x8000, HOST_BASE + 0xA000, HOST_BASE + 0xB000
_NESTED_POOL: Final = 0x10_0000

_NEVER: Final = (1 << 64) - 1

# Offsets in the VMCB (24593, appendix B).
_VMCB_EXIT_INFO_2: Final = 0x80
_VMCB_MSRPM: Final = 0x48


class EngineExit(IntEnum):
    """Exit codes that the interrupt hook sees: 0x100 + SVM exit code (24593, appendix C)."""

    WRITE_CR0 = 0x110
    READ_DR0 = 0x120
    WRITE_DR0 = 0x130
    EXCEPTION = 0x140
    DB = 0x141
    UD = 0x146
    PF = 0x14E
    VC = 0x15D
    VINTR = 0x164
    RDTSC = 0x16E
    RDPMC = 0x16F
    CPUID = 0x172
    INVD = 0x176
    HLT = 0x178
    MSR = 0x17C
    SHUTDOWN = 0x17F
    VMRUN = 0x180
    VMMCALL = 0x181
    WBINVD = 0x189
    MONITOR = 0x18A
    MWAIT = 0x18B
    NPF = 0x500


_INTERCEPTS: Final = (
    EngineExit.VINTR, EngineExit.RDTSC, EngineExit.RDPMC, EngineExit.CPUID, EngineExit.INVD,
    EngineExit.HLT, EngineExit.MSR, EngineExit.SHUTDOWN, EngineExit.VMRUN, EngineExit.VMMCALL,
    EngineExit.WBINVD, EngineExit.MONITOR, EngineExit.MWAIT,
)  # fmt: skip
_INTERCEPT_BASE: Final = 0x160
_VMRUN_MARK: Final = sum(1 << (e - _INTERCEPT_BASE) for e in _INTERCEPTS)

# MSRs that the guest reads and writes without an exit; every other access exits.
_NATIVE_MSRS: Final = (
    0xC000_0081, 0xC000_0082, 0xC000_0083, 0xC000_0084,  # STAR, LSTAR, CSTAR, SFMASK
    0xC000_0100, 0xC000_0101, 0xC000_0102, 0xC000_0103,  # FS, GS, kernel GS base, TSC_AUX
    0x174, 0x175, 0x176, 0x277,                          # SYSENTER, PAT
)  # fmt: skip


class Stop(IntEnum):
    """Why run() came back; enum stop_reason of native/accel.c."""

    NONE = 0
    DEADLINE = 1
    REQUESTED = 2
    EXIT = 3
    BROKEN = 4
    VMGEXIT = 5


class Trap(IntEnum):
    """Why an exit DB is the engine's own; enum trap of native/accel.c."""

    NONE = 0
    BREAKPOINT = 1
    SHARED_FETCH = 2


_EXIT_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_uint32)


_OFFSETS: Final = (
    "regs", "eflags", "cc_src", "cc_op", "df", "hflags", "segs", "efer",
    "star", "lstar", "cstar", "fmask", "cr", "gdt", "idt", "tr",
)  # fmt: skip
"""Fields of the layout that native code uses."""


class _Shared(ctypes.Structure):
    """struct shared of native/accel.c."""

    _fields_ = (
        ("ticks", ctypes.c_uint64), ("deadline", ctypes.c_uint64), ("slice_end", ctypes.c_uint64),
        ("previous_end", ctypes.c_uint64), ("previous_page", ctypes.c_uint64),
        ("block", ctypes.c_void_p), ("env", ctypes.c_void_p), ("header", ctypes.c_uint64),
        ("stop", ctypes.c_uint32), ("stopped", ctypes.c_uint32), ("first", ctypes.c_uint32),
        ("stepping", ctypes.c_uint32), ("eip", ctypes.c_uint32), ("cs_base", ctypes.c_uint32),
        ("error_code", ctypes.c_uint32), ("exception_is_int", ctypes.c_uint32),
        ("io_port", ctypes.c_uint32), ("io_size", ctypes.c_uint32), ("io_is_in", ctypes.c_uint32),
        ("io_value", ctypes.c_uint32), ("trap", ctypes.c_uint32),
        ("padding", ctypes.c_uint32), ("skip_breakpoint", ctypes.c_uint64),
        ("exits", ctypes.c_uint64),
        ("assigned", ctypes.c_void_p),
        *((name, ctypes.c_uint32) for name in _OFFSETS),
        ("fast", ctypes.c_uint32), ("rdtsc_exits", ctypes.c_uint32), ("v_irq", ctypes.c_int32),
        ("insn_length", ctypes.c_uint32), ("ghcb_msr", ctypes.c_uint64),
        ("delivering", ctypes.c_uint32), ("event_code", ctypes.c_uint32),
        ("event_error", ctypes.c_uint32), ("tsc_aux", ctypes.c_uint32),
        ("event_address", ctypes.c_uint64), ("generated", ctypes.c_uint32),
        ("padding_2", ctypes.c_uint32),
        ("first_pc", ctypes.c_uint64), ("first_rcx", ctypes.c_uint64),
        ("first_shadow", ctypes.c_uint32), ("padding_3", ctypes.c_uint32),
        ("next_check", ctypes.c_uint64), ("next_sweep", ctypes.c_uint64),
        ("tlb", ctypes.c_void_p), ("ram_size", ctypes.c_uint64), ("ram", ctypes.c_void_p),
        ("has_code", ctypes.c_void_p), ("code_map", ctypes.c_void_p), ("cpu", ctypes.c_void_p),
        ("reset_dirty", ctypes.c_void_p), ("exit_info_2", ctypes.c_void_p),
        ("interrupt_request", ctypes.c_void_p), ("load64", ctypes.c_void_p),
        ("load8", ctypes.c_void_p), ("store64", ctypes.c_void_p),
        ("emu_stop", ctypes.c_void_p), ("read_eflags", ctypes.c_void_p),
        ("raise_", ctypes.c_void_p), ("exit_handler", ctypes.c_void_p),
    )  # fmt: skip


_BLOCK_HEADER: Final = 192
"""Bytes of a block record, rounded up to the translator's 64-byte alignment."""

RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI = range(8)
ES, CS, SS, DS, FS, GS = range(6)

_TLB_BEFORE_STATE: Final = 64
_CR0_PG: Final = 1 << 31
_RDRAND: Final = 1 << 30
_RDSEED: Final = 1 << 18
_HF_INHIBIT_IRQ: Final = 1 << 3
_HF_TF: Final = 1 << 8
_HF_GUEST: Final = 1 << 21
_EFER_SVME: Final = 1 << 12
_CC_OP_EFLAGS: Final = 1
_ARITHMETIC: Final = 0x8D5
_DF: Final = 1 << 10
_INTERRUPT_VIRQ: Final = 0x100


def native_library() -> Path:
    """Where the compiled callbacks are looked for."""
    return Path(__file__).with_name("native") / "accel.so"


class UnicornCpu:
    """One CPU; contexts of several vCPUs and VMPLs are loaded into it in turn.

    Args:
        memory: guest memory, mapped at its own physical addresses.

    Raises:
        EngineMismatch: the engine is not the one that svsmd was made for.
    """

    def __init__(self, memory: GuestMemory) -> None:
        if unicorn.__version__ != ENGINE_VERSION:
            raise EngineMismatch(
                f"unicorn {unicorn.__version__} is installed, svsmd needs {ENGINE_VERSION}"
            )
        self.memory = memory
        self.exit_handler: Callable[[int], None] = lambda code: None
        self._uc = uc = unicorn.Uc(ucc.UC_ARCH_X86, ucc.UC_MODE_64)
        uc.ctl_set_cpu_model(x86.UC_CPU_X86_EPYC_ROME)
        self._lib = unicorn.unicorn_py3.unicorn.uclib
        self._handle = uc._uch
        for span in memory.ranges:
            address = memory.address + memory.offset_of(span.start)
            uc.mem_map_ptr(span.start, len(span), ucc.UC_PROT_ALL, address)
        self._host = mmap.mmap(-1, _HOST_SIZE)
        self._host_view = memoryview(self._host)
        host_address = ctypes.addressof(ctypes.c_char.from_buffer(self._host))
        uc.mem_map_ptr(HOST_BASE, _HOST_SIZE, ucc.UC_PROT_ALL, host_address)
        self.nested = NestedTables(
            self._host_view[_NESTED_POOL:].cast("Q"), HOST_BASE + _NESTED_POOL
        )
        self.layout = self._enter_guest_mode()
        self._views()
        self.shared = _Shared()
        self._install_hooks()
        self._breakpoints: dict[int, Any] = {}
        self.vmpl = 0

    # -- start ------------------------------------------------------------------------------

    def _put(self, address: int, data: bytes) -> None:
        offset = address - HOST_BASE
        self._host[offset : offset + len(data)] = data

    def _enter_guest_mode(self) -> EngineLayout:
        """Executes one VMRUN whose VMCB intercepts everything, and finds the state it made."""
        uc = self._uc
        probe = LayoutProbe(uc)
        self._put(_HOST_TABLES, struct.pack("<Q", (_HOST_TABLES + 0x1000) | 7))
        gigabytes = b"".join(struct.pack("<Q", (i << 30) | 0x87) for i in range(512))
        self._put(_HOST_TABLES + 0x1000, gigabytes)
        self._put(_HOST_CODE, bytes.fromhex("0f01d8f4"))  # vmrun; hlt
        self._put(_GUEST_PROBE, b"\xf4")
        self._put(_MSRPM, self._msr_permission_map())
        # The probe's guest runs on nested tables that map all of host memory 1:1.
        # Vectors 22 to 27 are reserved; leaving them out makes the mask recognisable.
        marks = VmrunMarks(_VMCB, _VMRUN_MARK, 0xF03F_FFFF, _HOST_TABLES, 7)
        self._put(_VMCB, self._vmcb(marks))
        uc.reg_write(x86.UC_X86_REG_MSR, (0xC000_0080, 0x1D00))
        uc.reg_write(x86.UC_X86_REG_CR4, 0x620)
        # The public write of CR3 keeps 32 bits only: go through the found state.
        cr3 = probe.env + _cr_offset(probe) + 3 * 8
        ctypes.c_uint64.from_address(cr3).value = _HOST_TABLES
        uc.reg_write(x86.UC_X86_REG_MSR, (0xC001_0117, _HSAVE))
        uc.reg_write(x86.UC_X86_REG_RAX, _VMCB)
        seen: list[int] = []

        def first_exit(_uc: Any, code: int, _user: Any) -> None:
            seen.append(code)
            uc.emu_stop()

        hook = uc.hook_add(ucc.UC_HOOK_INTR, first_exit)
        uc.ctl_exits_enabled(True)
        uc.emu_start(_HOST_CODE, 0)
        uc.hook_del(hook)
        if seen != [EngineExit.HLT]:
            raise EngineMismatch(f"the first VMRUN ended with exits {seen}")
        base = ctypes.cast(self._handle, ctypes.c_void_p).value or 0
        flags = ctypes.string_at(base + 0x7F0, 4)
        if flags[0] or flags[2] or flags[3] != 1:
            raise EngineMismatch("the engine's exit-check flag is not where it must be")
        if ctypes.c_uint32.from_address(probe.cpu + 0x18).value != 0xFFFF_FFFF:
            raise EngineMismatch("the engine's interrupt request is not where it must be")
        layout = probe.finish(marks, interrupt_request=0x1C, no_exit_request=base + 0x7F2)
        # Exit checks within instructions would execute read-modify-write instructions twice.
        ctypes.c_uint8.from_address(layout.no_exit_request).value = 1
        uc.ctl_flush_tb()
        self._hide_instructions(probe.env)
        return layout

    @staticmethod
    def _hide_instructions(env: int) -> None:
        """RDRAND and RDSEED become undefined: they would be the computer's own entropy."""
        state = ctypes.string_at(env, 0x3000)
        vendor = state.find(b"AuthenticAMD")
        if vendor < 0 or state.find(b"AuthenticAMD", vendor + 1) >= 0:
            raise EngineMismatch("the engine's feature words were not found")
        # Behind the vendor: CPUID 1:EAX, then the words 1:EDX, 1:ECX, 7:EBX.
        words = (ctypes.c_uint64 * 3).from_address(env + vendor + 16)
        if not words[1] & _RDRAND:
            raise EngineMismatch("the engine's feature words are not where they must be")
        words[1] &= ~_RDRAND
        words[2] &= ~_RDSEED

    @staticmethod
    def _msr_permission_map() -> bytes:
        bitmap = bytearray(b"\xff" * 0x2000)
        for msr in _NATIVE_MSRS:
            bit = msr * 2 if msr < 0x2000 else 0x4000 + (msr - 0xC000_0000) * 2
            bitmap[bit // 8] &= ~(3 << (bit % 8))
        return bytes(bitmap)

    @staticmethod
    def _vmcb(marks: VmrunMarks) -> bytes:
        """A VMCB that starts 64-bit code at _GUEST_PROBE (24593, appendix B)."""
        page = bytearray(PAGE_SIZE)

        def put(offset: int, form: str, *values: int) -> None:
            struct.pack_into("<" + form, page, offset, *values)

        put(0x02, "H", 1)  # CR0 writes
        put(0x04, "H", 0xFFFF)  # all DR reads
        put(0x06, "H", 0xFFFF)  # all DR writes
        put(0x08, "I", marks.intercept_exceptions)
        put(0x0C, "Q", marks.intercept)
        put(_VMCB_MSRPM, "Q", _MSRPM)
        put(0x58, "I", 1)
        put(0x90, "Q", 1)
        put(0xB0, "Q", marks.nested_cr3)
        save = 0x400
        for segment, attributes in ((0x00, 0xC93), (0x10, 0xA9B), (0x20, 0xC93), (0x30, 0xC93)):
            put(save + segment, "HHIQ", 8, attributes, 0xFFFF_FFFF, 0)
        put(save + 0xD0, "Q", 0x1D00)
        put(save + 0x148, "Q", 0x620)
        put(save + 0x150, "Q", _HOST_TABLES)
        put(save + 0x158, "Q", 0x8005_0033)
        put(save + 0x160, "Q", 0x400)
        put(save + 0x168, "Q", 0xFFFF_0FF0)
        put(save + 0x170, "Q", 2)
        put(save + 0x178, "Q", _GUEST_PROBE)
        return bytes(page)

    def _views(self) -> None:
        """Live views of the engine's state."""
        lay = self.layout
        words = 0x1800 // 8
        self._q = (ctypes.c_uint64 * words).from_address(lay.env)
        self._d = (ctypes.c_uint32 * (words * 2)).from_address(lay.env)
        self.regs = (ctypes.c_uint64 * 16).from_address(lay.env + lay.regs)
        self.cr = (ctypes.c_uint64 * 9).from_address(lay.env + lay.cr)
        self.dr = (ctypes.c_uint64 * 8).from_address(lay.env + lay.dr)
        self._rip = lay.eip // 8
        self._eflags = lay.eflags // 8
        self._hflags = lay.hflags // 4
        self._cs_base = (lay.segs + CS * 24 + 8) // 8
        self._error = lay.error_code // 4
        self._nested_cr3 = lay.nested_cr3 // 8
        self._irq = ctypes.c_uint32.from_address(lay.cpu + lay.interrupt_request)
        self._exit_info_2 = self._host_view[_VMCB_EXIT_INFO_2 : _VMCB_EXIT_INFO_2 + 8].cast("Q")

    def _install_hooks(self) -> None:
        lib, shared = self._lib, self.shared
        accel = ctypes.CDLL(str(native_library()))
        self._accel = accel
        shared.env = self.layout.env
        shared.header = _BLOCK_HEADER
        shared.eip = self.layout.eip
        shared.cs_base = self.layout.segs + CS * 24 + 8
        shared.error_code = self.layout.error_code
        shared.exception_is_int = self.layout.exception_is_int
        shared.slice_end = shared.deadline = shared.skip_breakpoint = _NEVER
        self.assigned = _sparse(self.memory.size // PAGE_SIZE)
        shared.assigned = _address(self.assigned)
        shared.emu_stop = ctypes.cast(lib.uc_emu_stop, ctypes.c_void_p).value
        internals = ctypes.CDLL(lib._name)
        for name in _OFFSETS:
            setattr(shared, name, getattr(self.layout, name))
        shared.tsc_aux = self.layout.tsc_aux
        shared.tlb = self._tlb()
        shared.ram = self.memory.address
        shared.ram_size = self.memory.size
        self._has_code = _sparse(self.memory.size // PAGE_SIZE)
        self._code_map = _sparse(self.memory.size // 8)
        shared.has_code = _address(self._has_code)
        shared.code_map = _address(self._code_map)
        shared.cpu = self.layout.cpu
        shared.v_irq = -1
        shared.fast = 1
        shared.exit_info_2 = ctypes.addressof(ctypes.c_char.from_buffer(self._exit_info_2))
        shared.interrupt_request = ctypes.addressof(self._irq)
        for field, symbol in (
            ("read_eflags", "helper_read_eflags"), ("raise_", "raise_exception_err_ra"),
            ("load64", "cpu_ldq_mmuidx_ra"), ("load8", "cpu_ldub_mmuidx_ra"),
            ("store64", "cpu_stq_mmuidx_ra"), ("reset_dirty", "tlb_reset_dirty"),
        ):  # fmt: skip
            function = getattr(internals, f"{symbol}_x86_64")
            setattr(shared, field, ctypes.cast(function, ctypes.c_void_p).value)
        self._invalidate = internals.tb_invalidate_phys_range_x86_64
        self._invalidate.argtypes = (ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint64)
        self._python_exit = _EXIT_HANDLER(self._on_exit)
        shared.exit_handler = ctypes.cast(self._python_exit, ctypes.c_void_p).value
        self._user = ctypes.byref(shared)
        everywhere = (ctypes.c_uint64(1), ctypes.c_uint64(0))
        for kind, function, extra in (
            (ucc.UC_HOOK_BLOCK, accel.svsmd_on_block, ()),
            (ucc.UC_HOOK_EDGE_GENERATED, accel.svsmd_on_translation, ()),
            (ucc.UC_HOOK_INTR, accel.svsmd_on_exit, ()),
            (ucc.UC_HOOK_INSN, accel.svsmd_on_in, (ctypes.c_int(x86.UC_X86_INS_IN),)),
            (ucc.UC_HOOK_INSN, accel.svsmd_on_out, (ctypes.c_int(x86.UC_X86_INS_OUT),)),
            (ucc.UC_HOOK_INSN, accel.svsmd_on_syscall, (ctypes.c_int(x86.UC_X86_INS_SYSCALL),)),
        ):
            self._hook(kind, function, *everywhere, *extra)
        self._emu_start = lib.uc_emu_start
        self._emu_stop = lib.uc_emu_stop
        self._uc_ctl = lib.uc_ctl
        self._tlb_flush_control = ctypes.c_int((ucc.UC_CTL_IO_WRITE << 30) | ucc.UC_CTL_TLB_FLUSH)
        self._pending_error: BaseException | None = None

    def _tlb(self) -> int:
        """Host address of the engine's TLB: three pairs of (mask, table) in front of the state."""
        address = self.layout.env - _TLB_BEFORE_STATE
        for mask, table in struct.iter_unpack("<QQ", ctypes.string_at(address, 3 * 16)):
            entries = (mask >> 6) + 1
            if mask & 63 or entries & (entries - 1) or not table:
                raise EngineMismatch("the engine's TLB is not where it must be")
        return address

    def _hook(self, kind: int, function: Any, *arguments: Any) -> ctypes.c_size_t:
        hook = ctypes.c_size_t()
        code = self._lib.uc_hook_add(
            self._handle, ctypes.byref(hook), kind, ctypes.cast(function, ctypes.c_void_p),
            self._user, *arguments,
        )  # fmt: skip
        if code:
            raise EngineMismatch(f"hook of kind {kind} refused: error {code}")
        return hook

    # -- running ----------------------------------------------------------------------------

    def _on_exit(self, code: int) -> None:
        """Called by native code; an exception must not cross it, so it waits for run()."""
        try:
            self.exit_handler(code)
        except BaseException as error:
            self._pending_error = error
            self.leave()

    def leave(self) -> None:
        """From within the exit handler: give control back to the caller of run()."""
        self.shared.stopped = Stop.EXIT
        self._emu_stop(self._handle)

    def run(self) -> Stop:
        """Runs until the exit handler leaves, the deadline, or a request to stop."""
        shared = self.shared
        shared.stopped = Stop.NONE
        shared.first = 1
        shared.next_check = 0
        error = self._emu_start(
            self._handle, ctypes.c_uint64(self._q[self._rip]), ctypes.c_uint64(0),
            ctypes.c_uint64(0), ctypes.c_size_t(0),
        )  # fmt: skip
        if shared.block:
            self._accel.svsmd_settle(self._user, 1)
        if self._pending_error is not None:
            pending, self._pending_error = self._pending_error, None
            raise pending
        if error:
            raise EngineMismatch(f"the engine stopped with error {error} at {self.rip:#x}")
        if shared.stopped in (Stop.NONE, Stop.BROKEN):
            raise EngineMismatch(f"the engine lost its block records at {self.rip:#x}")
        return Stop(shared.stopped)

    def request_stop(self) -> None:
        """Ends run() at the next block. May be called from any thread."""
        self.shared.stop = 1
        self.shared.next_check = 0

    def clear_stop(self) -> None:
        """Forgets requests to stop."""
        self.shared.stop = 0

    @property
    def stop_requested(self) -> bool:
        """Whether a request to stop is pending."""
        return bool(self.shared.stop)

    def flush_tlb(self) -> None:
        """Drops all cached translations of addresses."""
        self._uc_ctl(self._handle, self._tlb_flush_control)

    def flush_code(self) -> None:
        """Drops all translated code."""
        self._uc.ctl_flush_tb()

    def forget_code(self, offset: int, nbytes: int) -> None:
        """Drops translated code of a range of RAM whose content changed behind the engine."""
        first, last = offset // PAGE_SIZE, (offset + nbytes - 1) // PAGE_SIZE
        if self._has_code.find(b"\1", first, last + 1) >= 0:
            self._invalidate(self._handle, offset, offset + nbytes)

    def select_nested_tables(self, vmpl: int) -> None:
        """Makes memory what `vmpl` may see of it, in the paging mode of CR0."""
        self.vmpl = vmpl
        paged = self.cr[0] & _CR0_PG
        roots = self.nested.roots if paged else self.nested.unpaged_roots
        self._q[self._nested_cr3] = roots[vmpl]
        self.flush_tlb()

    # -- steps and breakpoints --------------------------------------------------------------

    def set_stepping(self, on: bool) -> None:
        """While on, each instruction ends with an exit DB that the guest cannot see."""
        if on:
            self._d[self._hflags] |= _HF_TF
        else:
            self._d[self._hflags] &= ~_HF_TF
        self.shared.stepping = int(on)
        self.shared.fast = int(not on)

    def arm_breakpoint(self, address: int) -> None:
        """Makes execution of the linear address an exit DB with Trap.BREAKPOINT."""
        if address not in self._breakpoints:
            self._breakpoints[address] = self._hook(
                ucc.UC_HOOK_CODE, self._accel.svsmd_on_breakpoint,
                ctypes.c_uint64(address), ctypes.c_uint64(address),
            )  # fmt: skip
            self.flush_code()

    def disarm_breakpoint(self, address: int) -> None:
        """Undoes arm_breakpoint()."""
        hook = self._breakpoints.pop(address, None)
        if hook is not None:
            self._lib.uc_hook_del(self._handle, hook)
            self.flush_code()

    @property
    def armed_breakpoints(self) -> frozenset[int]:
        """Linear addresses that are armed."""
        return frozenset(self._breakpoints)

    # -- state ------------------------------------------------------------------------------

    @property
    def rip(self) -> int:
        """Instruction pointer, relative to CS."""
        return self._q[self._rip]

    @rip.setter
    def rip(self, value: int) -> None:
        self._q[self._rip] = value

    @property
    def linear_rip(self) -> int:
        """Linear address of the next instruction."""
        return (self._q[self._rip] + self._q[self._cs_base]) & _NEVER

    @property
    def error_code(self) -> int:
        """Error code of the last exit, its low 32 bits."""
        return self._d[self._error]

    @property
    def exit_info_2(self) -> int:
        """Address of the last page fault or nested page fault."""
        return self._exit_info_2[0]

    @property
    def hflags(self) -> int:
        """The engine's derived mode flags."""
        return self._d[self._hflags]

    @hflags.setter
    def hflags(self, value: int) -> None:
        self._d[self._hflags] = value

    @property
    def cpl(self) -> int:
        """Current privilege level."""
        return self._d[self._hflags] & 3

    @property
    def interrupt_shadow(self) -> bool:
        """Whether the next instruction runs in the shadow of STI or MOV SS."""
        return bool(self._d[self._hflags] & _HF_INHIBIT_IRQ)

    @interrupt_shadow.setter
    def interrupt_shadow(self, on: bool) -> None:
        if on:
            self._d[self._hflags] |= _HF_INHIBIT_IRQ
        else:
            self._d[self._hflags] &= ~_HF_INHIBIT_IRQ

    @property
    def rflags(self) -> int:
        """RFLAGS; the engine keeps the arithmetic flags apart."""
        flags: int = self._uc.reg_read(x86.UC_X86_REG_RFLAGS)
        return flags

    @rflags.setter
    def rflags(self, value: int) -> None:
        lay = self.layout
        self._q[lay.cc_src // 8] = value & _ARITHMETIC
        self._d[lay.cc_op // 4] = _CC_OP_EFLAGS
        self._d[lay.df // 4] = 0xFFFF_FFFF if value & _DF else 1
        self._q[self._eflags] = (value & ~(_ARITHMETIC | _DF)) | 2

    @property
    def eflags_system(self) -> int:
        """The flags that the engine does not keep apart (IF, TF, IOPL, NT, AC ...)."""
        return self._q[self._eflags]

    @eflags_system.setter
    def eflags_system(self, value: int) -> None:
        self._q[self._eflags] = value

    def set_interrupt_window(self, on: bool) -> None:
        """Asks for an exit VINTR as soon as interrupts can be taken."""
        if on:
            self._irq.value |= _INTERRUPT_VIRQ
        else:
            self._irq.value &= ~_INTERRUPT_VIRQ

    def put_host_page(self, address: int, data: bytes) -> None:
        """Writes a page of host-private memory, such as the ciphertext that a guest is to see."""
        self._put(address, data)

    def word(self, offset: int) -> int:
        """64-bit field of the state at a byte offset of the layout."""
        return self._q[offset // 8]

    def set_word(self, offset: int, value: int) -> None:
        """Writes what word() reads."""
        self._q[offset // 8] = value

    def half(self, offset: int) -> int:
        """32-bit field of the state."""
        return self._d[offset // 4]

    def set_half(self, offset: int, value: int) -> None:
        """Writes what half() reads."""
        self._d[offset // 4] = value

    def bytes_at(self, offset: int, n: int) -> ctypes.Array[ctypes.c_uint8]:
        """A live view of part of the state."""
        return (ctypes.c_uint8 * n).from_address(self.layout.env + offset)

    def reg_read(self, register: int) -> Any:
        """A register through the engine's public interface (FPU, SSE control)."""
        return self._uc.reg_read(register)

    def reg_write(self, register: int, value: Any) -> None:
        """Writes what reg_read() reads."""
        self._uc.reg_write(register, value)


def _sparse(nbytes: int) -> mmap.mmap:
    """Zeroed memory that costs nothing where it is not touched."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    return mmap.mmap(-1, max(PAGE_SIZE, nbytes), flags=flags)


def _address(mapping: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(mapping))


def _cr_offset(probe: LayoutProbe) -> int:
    return probe.marks["cr2"] - 2 * 8
