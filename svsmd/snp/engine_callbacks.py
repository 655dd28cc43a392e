# SPDX-License-Identifier: MIT
"""What the CPU engine calls while it runs, and what these callbacks tell everyone else.

The engine calls back before each translation block, at each exit, at IN, OUT and SYSCALL, and
after each translation. The callbacks count instructions, stop at deadlines, keep fetches off
shared pages, and turn the engine's events into exits; they know nothing about SEV-SNP's policy.
There are two sets of them that behave the same: svsmd/snp/native_callbacks.py and
svsmd/snp/python_callbacks.py, which is for where no compiler was at hand.

Exit codes: 24593, appendix C.
"""

from __future__ import annotations

import ctypes
import mmap
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Any, Final, Protocol

from svsmd.snp.breakpoint import Breakpoint
from svsmd.snp.engine_layout import EngineLayout, EngineMismatch
from svsmd.snp.engine_regions import HostMemory
from svsmd.snp.memory import GuestMemory
from svsmd.snp.types import PAGE_SIZE

NEVER: Final = (1 << 64) - 1
"""A tick that does not come; an address of nothing."""

_STATE_BYTES: Final = 0x1800


class EngineExit(IntEnum):
    """Exit codes that the interrupt hook sees: 0x100 + SVM exit code (24593, appendix C)."""

    READ_CR8 = 0x108
    WRITE_CR0 = 0x110
    WRITE_CR4 = 0x114
    WRITE_CR8 = 0x118
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
    HLT = 0x178
    INVLPGA = 0x17A
    MSR = 0x17C
    SHUTDOWN = 0x17F
    VMRUN = 0x180
    VMMCALL = 0x181
    VMLOAD = 0x182
    VMSAVE = 0x183
    STGI = 0x184
    CLGI = 0x185
    SKINIT = 0x186
    WBINVD = 0x189
    MONITOR = 0x18A
    MWAIT = 0x18B
    NPF = 0x500


class Stop(IntEnum):
    """Why run() came back; enum stop_reason of native/accel.h."""

    NONE = 0
    DEADLINE = 1
    REQUESTED = 2
    EXIT = 3
    BROKEN = 4
    VMGEXIT = 5
    STEP = 6


class Trap(IntEnum):
    """Why an exit DB is the engine's own; enum trap of native/accel.h."""

    NONE = 0
    BREAKPOINT = 1
    SHARED_FETCH = 2
    CODE_PAGE = 3
    WATCH = 4


class Fast(IntEnum):
    """What the native callbacks serve by themselves; enum fast of native/accel.c."""

    NOTHING = 0
    ALL = 1
    BUT_VC = 2


class EngineState(Protocol):
    """What the callbacks share with the rest of the silicon.

    Attributes:
        ticks: guest instructions retired, plus what others charged.
        deadline: tick at which run() ends, before an instruction that does not follow its
            predecessor in memory or lies on another page.
        slice_end: tick after which run() ends at the next block.
        previous_end: between runs, linear address behind the last instruction.
        previous_page: between runs, page number of the last block.
        stop: set by anyone, from any thread: run() ends at the next block.
        stopped: a Stop.
        first: no block has run since the start: there must be progress.
        next_check: tick at which the callbacks look at the fields above; 0 for the next block.
        stepping: the engine's single-step flag is on.
        plain_steps: with `stepping`, each instruction may end run() with Stop.STEP in place of an
            exit DB. Only native callbacks do that.
        range_start, range_size, range_cpl, range_cr3: a step goes on where the next instruction
            is in this range, at this CPL, with this CR3,
        range_left: and so many more times; `range_steps`, times that it went on.
        trap: a Trap, with an exit DB.
        skip_breakpoint: linear address whose breakpoint is passed once.
        passed_breakpoint: linear address of the last breakpoint whose instruction was let through.
        passed_block: linear address of a block that is never a Trap.CODE_PAGE.
        vmsa_page: number of the page that the registers belong to.
        vmpl: of the loaded context.
        watch_off: the next instruction may access watched bytes.
        watched_access, watched_length, watched_kind: with Trap.WATCH, guest-physical address and
            length of the access, and 1 for a load or 2 for a store.
        exits: statistics.
        io_port, io_size: of the IN or OUT that is an exit VC.
        fast: a Fast: which events may be served without the exit handler.
        rdtsc_exits: RDTSC is a #VC.
        tsc_scale, tsc_offset: what RDTSC makes of `ticks` (svsmd/snp/secure_tsc.py).
        v_irq: vector that waits for the interrupt window, or -1.
        insn_length: bytes of the instruction that the last exit names.
        ghcb_msr: C001_0130.
        answered: a VMGEXIT was answered within run(), if not 0.
        first_pc, first_rcx, first_shadow: of the first block since the start: linear address, RCX
            before it, and whether it lay in an interrupt shadow.
    """

    ticks: int
    deadline: int
    slice_end: int
    previous_end: int
    previous_page: int
    stop: int
    stopped: int
    first: int
    next_check: int
    stepping: int
    plain_steps: int
    range_start: int
    range_size: int
    range_cpl: int
    range_cr3: int
    range_left: int
    range_steps: int
    trap: int
    skip_breakpoint: int
    passed_breakpoint: int
    passed_block: int
    vmsa_page: int
    vmpl: int
    watch_off: int
    watched_access: int
    watched_length: int
    watched_kind: int
    exits: int
    io_port: int
    io_size: int
    fast: int
    rdtsc_exits: int
    tsc_scale: int
    tsc_offset: int
    v_irq: int
    insn_length: int
    ghcb_msr: int
    answered: int
    first_pc: int
    first_rcx: int
    first_shadow: int


class Engine:
    """The engine's own interface, as the callbacks use it.

    Args:
        uc: the engine, in guest mode.
        lib: its library.
        host_memory: where its VMCB and the nested tables are.
        exit_info_2: host address of EXITINFO2 in its VMCB.
    """

    def __init__(
        self,
        uc: Any,
        lib: Any,
        memory: GuestMemory,
        host_memory: HostMemory,
        layout: EngineLayout,
        exit_info_2: int,
    ) -> None:
        self.memory = memory
        self.host_memory = host_memory
        self.layout = layout
        self.exit_info_2 = exit_info_2
        self.lib = lib
        self.running = False
        self._uc = uc
        self._handle = uc._uch
        self._internals = ctypes.CDLL(lib._name)
        self._emu_start = lib.uc_emu_start
        self._emu_stop = lib.uc_emu_stop
        self._invalidate = self.internal("tb_invalidate_phys_range")
        self.words = (ctypes.c_uint64 * (_STATE_BYTES // 8)).from_address(layout.env)
        self.halves = (ctypes.c_uint32 * (_STATE_BYTES // 4)).from_address(layout.env)
        self._rip = layout.eip // 8

    @property
    def address(self) -> int:
        """Host address of the engine's own structure."""
        address: int = self._handle.value
        return address

    def internal(self, name: str) -> Any:
        """A function of the engine that its public interface does not offer."""
        return getattr(self._internals, self.symbol(name).decode())

    @staticmethod
    def symbol(name: str) -> bytes:
        """What a function of the engine is called in its library."""
        return f"{name}_x86_64".encode()

    def hook(
        self, kind: int, function: Any, user: Any, *extra: Any, begin: int = 1, end: int = 0
    ) -> ctypes.c_size_t:
        """Has the engine call a function; by default, wherever it is.

        Raises:
            EngineMismatch: the engine refuses.
        """
        hook = ctypes.c_size_t()
        code = self.lib.uc_hook_add(
            self._handle, ctypes.byref(hook), kind, ctypes.cast(function, ctypes.c_void_p),
            user, ctypes.c_uint64(begin), ctypes.c_uint64(end), *extra,
        )  # fmt: skip
        if code:
            raise EngineMismatch(f"hook of kind {kind} refused: error {code}")
        return hook

    def unhook(self, hook: ctypes.c_size_t) -> None:
        """Undoes hook()."""
        self.lib.uc_hook_del(self._handle, hook)

    def start(self) -> int:
        """Runs from RIP until stop(); returns the engine's error code, 0 for none."""
        self.running = True
        error: int = self._emu_start(
            self._handle, ctypes.c_uint64(self.words[self._rip]), ctypes.c_uint64(0),
            ctypes.c_uint64(0), ctypes.c_size_t(0),
        )  # fmt: skip
        self.running = False
        return error

    def stop(self) -> None:
        """Ends start(), at the start of a block if it is called from there."""
        self._emu_stop(self._handle)

    def flush_code(self) -> None:
        """Drops all translated code."""
        self._uc.ctl_flush_tb()

    def invalidate(self, offset: int, nbytes: int) -> None:
        """Drops translated code of a range of RAM."""
        first, end = ctypes.c_uint64(offset), ctypes.c_uint64(offset + nbytes)
        self._invalidate(self._handle, first, end)


class EngineCallbacks(ABC):
    """One set of callbacks, installed.

    Attributes:
        state: what they share with the rest.
        assigned: one byte a RAM page: the RMP says that it is a guest's.
        trapped: one byte a RAM page: a new block of its code is an exit DB with Trap.CODE_PAGE.
        mode_flags: bits of the engine's mode flags that must always be set.
        watches_accesses: whether watch() works; if not, pages with watched bytes must have no leaf.
    """

    state: EngineState
    mode_flags: int = 0
    watches_accesses: bool = False

    def __init__(self, engine: Engine, on_exit: Callable[[int], None]) -> None:
        self._engine = engine
        self._on_exit = on_exit
        ram = engine.memory.size
        self.assigned = sparse(ram // PAGE_SIZE)
        self.trapped = sparse(ram // PAGE_SIZE)
        # One byte a RAM page: something of it is translated.
        self._has_code = sparse(ram // PAGE_SIZE)

    @abstractmethod
    def run(self) -> int:
        """Runs the engine until `state.stopped` says why not; returns the engine's error code."""

    @abstractmethod
    def stop(self) -> None:
        """From within a callback: ends run(); who calls it has set `state.stopped`."""

    def answer_vmgexits(self, function: int, argument: int) -> bool:
        """See Silicon.answer_vmgexits(): only native callbacks call native code."""
        return False

    @abstractmethod
    def arm_breakpoint(self, address: int, points: Sequence[Breakpoint] = ()) -> None:
        """Makes execution of the linear address an exit DB with Trap.BREAKPOINT.

        Args:
            points: if there are any, and it is certain that none of them is hit, there may be no
                exit. May be called again with others.
        """

    @abstractmethod
    def disarm_breakpoint(self, address: int) -> None:
        """Undoes arm_breakpoint()."""

    def watch(self, ranges: Sequence[tuple[int, int, int]]) -> None:  # noqa: B027
        """Makes accesses that overlap one of the ranges an exit DB with Trap.WATCH.

        Their pages need leaves that are marked as watched.

        Args: ranges: first and last guest-physical address, and 1 for loads, 2 for stores, 3 for
        both."""

    def count_evaluations(self) -> None:  # noqa: B027
        """Adds to breakpoints the evaluations of their conditions that ended without an exit."""

    @property
    @abstractmethod
    def armed_breakpoints(self) -> frozenset[int]:
        """Linear addresses that are armed."""

    def power_on(self) -> None:
        """Forgets all code, and the time that has passed."""
        state = self.state
        state.ticks = state.exits = 0
        state.previous_end = state.previous_page = 0
        state.slice_end = state.deadline = state.skip_breakpoint = NEVER
        state.passed_breakpoint = state.passed_block = NEVER
        self._has_code[:PAGE_SIZE] = bytes(PAGE_SIZE)
        self._engine.flush_code()

    def forget_code(self, offset: int, nbytes: int) -> None:
        """Drops translated code of a range of RAM whose content changed behind the engine."""
        first, last = offset // PAGE_SIZE, (offset + nbytes - 1) // PAGE_SIZE
        if self._has_code.find(b"\1", first, last + 1) >= 0:
            self._engine.invalidate(offset, nbytes)


def sparse(nbytes: int) -> mmap.mmap:
    """Zeroed memory that costs nothing where it is not touched."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    return mmap.mmap(-1, max(PAGE_SIZE, nbytes), flags=flags)


def address_of(mapping: mmap.mmap | memoryview) -> int:
    """Host address of a mapping."""
    return ctypes.addressof(ctypes.c_char.from_buffer(mapping))
