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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from typing import Any, Final

import unicorn
from unicorn import unicorn_const as ucc
from unicorn import x86_const as x86

from svsmd.snp.breakpoint import Breakpoint
from svsmd.snp.engine_callbacks import (
    NEVER,
    Engine,
    EngineCallbacks,
    EngineExit,
    Fast,
    Stop,
    address_of,
)
from svsmd.snp.engine_layout import (
    NEXT_FLAGS,
    NO_FLAGS,
    EngineLayout,
    EngineMismatch,
    LayoutProbe,
    VmrunMarks,
)
from svsmd.snp.engine_regions import HostMemory
from svsmd.snp.memory import GuestMemory
from svsmd.snp.native_callbacks import NativeCallbacks, native_library
from svsmd.snp.nested_paging import NestedTables
from svsmd.snp.python_callbacks import PythonCallbacks
from svsmd.snp.types import PAGE_SIZE

log = logging.getLogger(__name__)

ENGINE_VERSION: Final = "2.1.4"

HOST_BASE: Final = 1 << 38
"""Engine-physical address of host-private memory; no nested table maps it."""
_HOST_SIZE: Final = 64 << 20
_VMCB, _HSAVE, _MSRPM = HOST_BASE, HOST_BASE + 0x1000, HOST_BASE + 0x4000
_HOST_TABLES, _HOST_CODE, _GUEST_PROBE = HOST_BASE + 0x8000, HOST_BASE + 0xA000, HOST_BASE + 0xB000
_NESTED_POOL: Final = 0x10_0000

# Offsets in the VMCB (24593, appendix B).
_VMCB_EXIT_INFO_2: Final = 0x80
_VMCB_MSRPM: Final = 0x48


_INTERCEPTS: Final = (
    EngineExit.VINTR, EngineExit.RDTSC, EngineExit.RDPMC, EngineExit.CPUID,
    EngineExit.HLT, EngineExit.INVLPGA, EngineExit.MSR, EngineExit.SHUTDOWN, EngineExit.VMRUN,
    EngineExit.VMMCALL, EngineExit.VMLOAD, EngineExit.VMSAVE, EngineExit.STGI, EngineExit.CLGI,
    EngineExit.SKINIT, EngineExit.WBINVD, EngineExit.MONITOR, EngineExit.MWAIT,
)  # fmt: skip
_INTERCEPT_BASE: Final = 0x160
_VMRUN_MARK: Final = sum(1 << (e - _INTERCEPT_BASE) for e in _INTERCEPTS)

# MSRs that the guest reads and writes without an exit; every other access exits.
_NATIVE_MSRS: Final = (
    0xC000_0081, 0xC000_0082, 0xC000_0083, 0xC000_0084,  # STAR, LSTAR, CSTAR, SFMASK
    0xC000_0100, 0xC000_0101, 0xC000_0102, 0xC000_0103,  # FS, GS, kernel GS base, TSC_AUX
    0x174, 0x175, 0x176, 0x277,                          # SYSENTER, PAT
)  # fmt: skip


RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI = range(8)
ES, CS, SS, DS, FS, GS = range(6)

_CR0_PG: Final = 1 << 31
_CR4_PAE: Final = 1 << 5
_RDRAND: Final = 1 << 30
_RDSEED: Final = 1 << 18
_HF_INHIBIT_IRQ: Final = 1 << 3
_HF_TF: Final = 1 << 8
_HF_GUEST: Final = 1 << 21
_EFER_SVME: Final = 1 << 12
_CC_OP_EFLAGS: Final = 1
_ARITHMETIC: Final = 0x8D5
_DF: Final = 1 << 10
_RF: Final = 1 << 16
_INTERRUPT_VIRQ: Final = 0x100


def _nobody_waits() -> bool:
    return False


class Callbacks(StrEnum):
    """Which callbacks the engine gets."""

    AUTO = "auto"
    """The native ones, or those in Python with a warning where the native ones are not built."""
    NATIVE = "native"
    PYTHON = "python"


class UnicornCpu:
    """One CPU; contexts of several vCPUs and VMPLs are loaded into it in turn.

    Args:
        memory: guest memory, mapped at its own physical addresses.
        callbacks: one of Callbacks.

    Raises:
        OSError: the native callbacks are asked for and cannot be loaded.
        EngineMismatch: the engine is not the one that svsmd was made for.
    """

    engine_class: type[Engine] = Engine

    def __init__(self, memory: GuestMemory, callbacks: str = Callbacks.AUTO) -> None:
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
            self._host_view[_NESTED_POOL:].cast("Q"), HOST_BASE + _NESTED_POOL, self.flush_tlb
        )
        self.layout = self._enter_guest_mode()
        self._views()
        exit_info_2 = address_of(self._exit_info_2)
        self._engine = self.engine_class(
            uc, self._lib, memory, HostMemory(HOST_BASE, _HOST_SIZE, host_address), self.layout,
            exit_info_2,
        )  # fmt: skip
        self._callbacks = self._install(Callbacks(callbacks))
        self.shared = self._callbacks.state
        self.assigned = self._callbacks.assigned
        self.hflags |= 0  # with what the callbacks need
        self._uc_ctl = self._lib.uc_ctl
        self._tlb_flush_control = ctypes.c_int((ucc.UC_CTL_IO_WRITE << 30) | ucc.UC_CTL_TLB_FLUSH)
        self._pending_error: BaseException | None = None
        self._stop_wanted: Callable[[], bool] = _nobody_waits
        self._fast = Fast.ALL
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
        if ctypes.c_uint32.from_address(probe.cpu + NEXT_FLAGS).value != NO_FLAGS:
            raise EngineMismatch("the engine's interrupt request is not where it must be")
        layout = probe.finish(
            marks, _GUEST_PROBE, interrupt_request=NEXT_FLAGS + 4, no_exit_request=base + 0x7F2
        )
        # Exit checks within instructions would execute read-modify-write instructions twice.
        ctypes.c_uint8.from_address(layout.no_exit_request).value = 1
        uc.ctl_flush_tb()
        self._hide_instructions(probe.env)
        return layout

    @staticmethod
    def _hide_instructions(env: int) -> None:
        """RDRAND and RDSEED become undefined: they would be the computer's own entropy."""
        state = ctypes.string_at(env, 0x3000)
        # Behind the state there may be remains of another engine: the first one is ours.
        vendor = state.find(b"AuthenticAMD")
        if vendor < 0:
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

        put(0x00, "H", 1 << 8)  # CR8 reads
        put(0x02, "H", 1 << 0 | 1 << 4 | 1 << 8)  # CR0, CR4 and CR8 writes
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
        self.state = memoryview((ctypes.c_uint8 * (words * 8)).from_address(lay.env)).cast("B")
        self.words = self.state.cast("Q")
        self.regs = (ctypes.c_uint64 * 16).from_address(lay.env + lay.regs)
        self.cr = (ctypes.c_uint64 * 5).from_address(lay.env + lay.cr)
        self.dr = (ctypes.c_uint64 * 8).from_address(lay.env + lay.dr)
        self._rip = lay.eip // 8
        self._eflags = lay.eflags // 8
        self._hflags = lay.hflags // 4
        self._cs_base = (lay.segment(CS) + 8) // 8
        self._error = lay.error_code // 4
        self._nested_cr3 = lay.nested_cr3 // 8
        self._irq = ctypes.c_uint32.from_address(lay.cpu + lay.interrupt_request)
        self._exit_info_2 = self._host_view[_VMCB_EXIT_INFO_2 : _VMCB_EXIT_INFO_2 + 8].cast("Q")

    def _install(self, callbacks: Callbacks) -> EngineCallbacks:
        if callbacks is Callbacks.AUTO:
            callbacks = Callbacks.NATIVE
            if not native_library().exists():
                callbacks = Callbacks.PYTHON
                log.warning("%s is not built: the engine runs slowly", native_library())
        kind = NativeCallbacks if callbacks is Callbacks.NATIVE else PythonCallbacks
        return kind(self._engine, self._on_exit)

    # -- running ----------------------------------------------------------------------------

    def _on_exit(self, code: int) -> None:
        """Called by the callbacks; an exception must not cross them, so it waits for run()."""
        self._ask_for_stop()
        try:
            self.exit_handler(code)
        except BaseException as error:
            self._pending_error = error
            self.leave()

    def _ask_for_stop(self) -> None:
        if self._stop_wanted():
            self.request_stop()

    def leave(self) -> None:
        """From within the exit handler: give control back to the caller of run()."""
        self.shared.stopped = Stop.EXIT
        self._callbacks.stop()

    def power_on(self) -> None:
        """Forgets what a self-test has left: time, translated code, cached translations."""
        self._callbacks.power_on()
        self.exit_handler = lambda code: None
        self.flush_tlb()

    def stop_engine(self) -> None:
        """A stop as it would come from outside; who calls it has set `shared.stopped`."""
        self._callbacks.stop()

    @contextmanager
    def calling_at_stores(self, address: int, callback: Callable[[], None]) -> Iterator[None]:
        """Calls back from within every store to a linear address; slow, for the self-test."""
        hook = self._uc.hook_add(
            ucc.UC_HOOK_MEM_WRITE, lambda *_: callback(), begin=address, end=address
        )
        self.flush_code()
        try:
            yield
        finally:
            self._uc.hook_del(hook)
            self.flush_code()
            self.flush_tlb()

    def run(self) -> Stop:
        """Runs until the exit handler leaves, the deadline, or a request to stop."""
        self._ask_for_stop()
        shared = self.shared
        shared.stopped = Stop.NONE
        shared.first = 1
        shared.next_check = 0
        error = self._callbacks.run()
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

    def stop_when(self, wanted: Callable[[], bool] = _nobody_waits) -> None:
        """Asks `wanted` at each run and each event that Python serves whether to request a stop."""
        self._stop_wanted = wanted

    @property
    def stop_requested(self) -> bool:
        """Whether a request to stop is pending."""
        return bool(self.shared.stop)

    def flush_tlb(self) -> None:
        """Drops all cached translations of addresses."""
        self._uc_ctl(self._handle, self._tlb_flush_control)

    def flush_code(self) -> None:
        """Drops all translated code."""
        self._engine.flush_code()

    def forget_code(self, offset: int, nbytes: int) -> None:
        """Drops translated code of a range of RAM whose content changed behind the engine."""
        self._callbacks.forget_code(offset, nbytes)

    def select_nested_tables(self, vmpl: int) -> None:
        """Makes memory what `vmpl` may see of it, in the paging mode of CR0 and CR4.

        Without paging and with 32-bit page tables, which have no C-bit, all of it is private.
        """
        self.vmpl = self.shared.vmpl = vmpl
        has_c_bit = self.cr[0] & _CR0_PG and self.cr[4] & _CR4_PAE
        roots = self.nested.roots if has_c_bit else self.nested.unpaged_roots
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
        self._choose_server()

    def show_vcs(self, on: bool) -> None:
        """While on, each event that is a #VC comes to the exit handler."""
        self._fast = Fast.BUT_VC if on else Fast.ALL
        self._choose_server()

    def _choose_server(self) -> None:
        self.shared.fast = Fast.NOTHING if self.shared.stepping else self._fast

    def answer_vmgexits(self, function: int, argument: int) -> bool:
        """See Silicon.answer_vmgexits()."""
        return self._callbacks.answer_vmgexits(function, argument)

    def arm_breakpoint(self, address: int, points: Sequence[Breakpoint] = ()) -> None:
        """See EngineCallbacks.arm_breakpoint()."""
        self._callbacks.arm_breakpoint(address, points)

    def disarm_breakpoint(self, address: int) -> None:
        """Undoes arm_breakpoint()."""
        self._callbacks.disarm_breakpoint(address)

    @property
    def watches_accesses(self) -> bool:
        """See EngineCallbacks."""
        return self._callbacks.watches_accesses

    def watch(self, ranges: Sequence[tuple[int, int, int]]) -> None:
        """See EngineCallbacks.watch()."""
        self._callbacks.watch(ranges)

    def count_evaluations(self) -> None:
        """See EngineCallbacks.count_evaluations()."""
        self._callbacks.count_evaluations()

    def trap_code_page(self, page: int, on: bool) -> None:
        """Whether new blocks of the code of a RAM page, by its offset, are a Trap.CODE_PAGE."""
        self._callbacks.trapped[page] = int(on)

    @property
    def armed_breakpoints(self) -> frozenset[int]:
        """Linear addresses that are armed."""
        return self._callbacks.armed_breakpoints

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
        return (self._q[self._rip] + self._q[self._cs_base]) & NEVER

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
        self._d[self._hflags] = value | self._callbacks.mode_flags

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
        """RFLAGS without RF; the engine keeps the arithmetic flags apart.

        It clears RF at the end of a block only. RF has no effect here, since guests have no
        breakpoints of their own, and so nobody gets to see how code was cut into blocks.
        """
        flags: int = self._uc.reg_read(x86.UC_X86_REG_RFLAGS)
        return flags & ~_RF

    @rflags.setter
    def rflags(self, value: int) -> None:
        lay = self.layout
        self._q[lay.cc_src // 8] = value & _ARITHMETIC
        self._d[lay.cc_op // 4] = _CC_OP_EFLAGS
        self._d[lay.df // 4] = 0xFFFF_FFFF if value & _DF else 1
        # run() begins by taking the arithmetic flags and DF out of this word.
        apart = _ARITHMETIC | _DF if self._engine.running else 0
        self._q[self._eflags] = value & ~apart | 2

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

    def selector(self, index: int) -> int:
        """Of a segment register; CS, SS and so on are its index."""
        return self.half(self.layout.segment(index)) & 0xFFFF

    def segment_base(self, index: int) -> int:
        """Its base, as it is loaded: 64-bit code takes no notice of most of them."""
        return self.word(self.layout.segment(index) + 8)

    def set_segment(self, index: int, selector: int, base: int, limit: int, flags: int) -> None:
        """All of it; `flags` are where the second word of a descriptor has them."""
        offset = self.layout.segment(index)
        self.set_half(offset, selector)
        self.set_word(offset + 8, base)
        self.set_half(offset + 16, limit)
        self.set_half(offset + 20, flags)

    def bytes_at(self, offset: int, n: int) -> ctypes.Array[ctypes.c_uint8]:
        """A live view of part of the state."""
        return (ctypes.c_uint8 * n).from_address(self.layout.env + offset)

    def reg_read(self, register: int) -> Any:
        """A register through the engine's public interface (FPU, SSE control)."""
        return self._uc.reg_read(register)

    def reg_write(self, register: int, value: Any) -> None:
        """Writes what reg_read() reads."""
        self._uc.reg_write(register, value)


def _cr_offset(probe: LayoutProbe) -> int:
    return probe.marks["cr2"] - 2 * 8
