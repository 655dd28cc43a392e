# SPDX-License-Identifier: MIT
"""The engine's callbacks in native code: native/accel.c, compiled to native/accel.so.

Beside what svsmd/snp/engine_callbacks.py asks for, they serve the events that come by the ten
thousand without Python.
"""

from __future__ import annotations

import ctypes
import struct
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, cast

from unicorn import unicorn_const as ucc
from unicorn import x86_const as x86

from svsmd.snp.breakpoint import Breakpoint
from svsmd.snp.engine_callbacks import (
    NEVER,
    Engine,
    EngineCallbacks,
    EngineState,
    Fast,
    address_of,
    sparse,
)
from svsmd.snp.engine_layout import BLOCK_HEADER, EngineMismatch
from svsmd.snp.engine_regions import ram_regions, replace_search
from svsmd.snp.native_breakpoints import Site
from svsmd.snp.secure_tsc import TSC_SCALE_ONE
from svsmd.snp.types import PAGE_SIZE

_EXIT_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_uint32)
_CS: Final = 1
_TLB_BEFORE_STATE: Final = 64

_OFFSETS: Final = (
    "regs", "eflags", "cc_src", "cc_op", "df", "hflags", "segs", "efer",
    "star", "lstar", "cstar", "fmask", "cr", "gdt", "idt", "tr",
)  # fmt: skip
"""Fields of the layout that native code uses."""

_FUNCTIONS: Final = (
    ("read_eflags", "helper_read_eflags"), ("raise_", "raise_exception_err_ra"),
    ("load64", "cpu_ldq_mmuidx_ra"), ("load8", "cpu_ldub_mmuidx_ra"),
    ("store64", "cpu_stq_mmuidx_ra"), ("reset_dirty", "tlb_reset_dirty"),
    ("flush_tlb", "tlb_flush"), ("invalidate", "tb_invalidate_phys_range"),
)  # fmt: skip
"""Functions of the engine that native code calls."""


_REPLACED: Final = (
    ("find_memory_mapping", "svsmd_find_region"),
    ("x86_ldq_phys", "svsmd_load_physical"),
    ("tlb_reset_dirty_by_vaddr", "svsmd_mark"),
    ("cpu_watchpoint_address_matches", "svsmd_is_watched"),
    ("cpu_check_watchpoint", "svsmd_check_watch"),
)
"""Functions of the engine, and those of native code that take their place."""

_KEPT: Final = 3
"""Of these, the engine's own serve other engines. The last two do nothing there: Unicorn has left
watchpoints out."""

_CODE_PAGE_BYTES: Final = 16
"""struct code_page of native/accel.c."""


class _Shared(ctypes.Structure):
    """struct shared of native/accel.h."""

    _fields_ = (
        ("ticks", ctypes.c_uint64), ("deadline", ctypes.c_uint64), ("slice_end", ctypes.c_uint64),
        ("previous_end", ctypes.c_uint64), ("previous_page", ctypes.c_uint64),
        ("block_call", ctypes.c_void_p), ("env", ctypes.c_void_p), ("header", ctypes.c_uint64),
        ("stop", ctypes.c_uint32), ("stopped", ctypes.c_uint32), ("first", ctypes.c_uint32),
        ("stepping", ctypes.c_uint32), ("eip", ctypes.c_uint32), ("cs_base", ctypes.c_uint32),
        ("error_code", ctypes.c_uint32), ("exception_is_int", ctypes.c_uint32),
        ("io_port", ctypes.c_uint32), ("io_size", ctypes.c_uint32), ("io_is_in", ctypes.c_uint32),
        ("io_value", ctypes.c_uint32), ("trap", ctypes.c_uint32),
        ("breakpoints", ctypes.c_uint32), ("skip_breakpoint", ctypes.c_uint64),
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
        ("first_shadow", ctypes.c_uint32), ("shortened", ctypes.c_uint32),
        ("next_check", ctypes.c_uint64), ("next_sweep", ctypes.c_uint64),
        ("tlb", ctypes.c_void_p), ("ram_size", ctypes.c_uint64), ("ram", ctypes.c_void_p),
        ("has_code", ctypes.c_void_p), ("code_pages", ctypes.c_void_p),
        ("cpu", ctypes.c_void_p), ("reset_dirty", ctypes.c_void_p),
        ("flush_tlb", ctypes.c_void_p), ("invalidate", ctypes.c_void_p),
        ("drop", ctypes.c_uint64), ("exit_info_2", ctypes.c_void_p),
        ("interrupt_request", ctypes.c_void_p), ("load64", ctypes.c_void_p),
        ("load8", ctypes.c_void_p), ("store64", ctypes.c_void_p),
        ("emu_stop", ctypes.c_void_p), ("read_eflags", ctypes.c_void_p),
        ("raise_", ctypes.c_void_p), ("exit_handler", ctypes.c_void_p),
        ("answer", ctypes.c_void_p), ("answer_argument", ctypes.c_void_p),
        ("answered", ctypes.c_uint32), ("translated", ctypes.c_uint32),
        ("tsc_scale", ctypes.c_uint64), ("tsc_offset", ctypes.c_uint64),
        ("passed_breakpoint", ctypes.c_uint64), ("vmsa_page", ctypes.c_uint64),
        ("trapped", ctypes.c_void_p), ("passed_block", ctypes.c_uint64),
        ("vmpl", ctypes.c_uint32), ("nested_cr3", ctypes.c_uint32),
        ("watches", ctypes.c_void_p), ("watch_count", ctypes.c_uint32),
        ("watch_off", ctypes.c_uint32), ("last_leaf", ctypes.c_uint64),
        ("watched_access", ctypes.c_uint64), ("watched_length", ctypes.c_uint32),
        ("watched_kind", ctypes.c_uint32),
        ("plain_steps", ctypes.c_uint32), ("dr", ctypes.c_uint32),
        ("range_start", ctypes.c_uint64), ("range_size", ctypes.c_uint64),
        ("range_cr3", ctypes.c_uint64), ("range_cpl", ctypes.c_uint32),
        ("range_left", ctypes.c_uint32), ("range_steps", ctypes.c_uint64),
    )  # fmt: skip


class _Exchange(ctypes.Structure):
    """struct exchange of native/accel.c."""

    _fields_ = (
        ("header", ctypes.c_uint64),
        ("regs", ctypes.c_uint32), ("cc_src", ctypes.c_uint32), ("cc_op", ctypes.c_uint32),
        ("padding", ctypes.c_uint32),
        ("load", ctypes.c_void_p), ("store", ctypes.c_void_p), ("flags", ctypes.c_void_p),
        ("raise_", ctypes.c_void_p),
    )  # fmt: skip


def native_library() -> Path:
    """Where the compiled callbacks are looked for."""
    return Path(__file__).with_name("native") / "accel.so"


def host_address(function: Any) -> int:
    """Where a foreign function is."""
    return ctypes.cast(function, ctypes.c_void_p).value or 0


class NativeCallbacks(EngineCallbacks):
    """The callbacks of native/accel.c."""

    def __init__(self, engine: Engine, on_exit: Callable[[int], None]) -> None:
        super().__init__(engine, on_exit)
        self._library = ctypes.CDLL(str(native_library()))
        self._shared = shared = _Shared()
        self.state = cast("EngineState", shared)
        self._user = ctypes.byref(shared)
        self._sites: dict[int, Site] = {}
        self._hooks: dict[int, ctypes.c_size_t] = {}
        self._fill(shared)
        library = self._library
        for kind, function, extra in (
            (ucc.UC_HOOK_BLOCK, library.svsmd_on_block, ()),
            (ucc.UC_HOOK_EDGE_GENERATED, library.svsmd_on_translation, ()),
            (ucc.UC_HOOK_INTR, library.svsmd_on_exit, ()),
            (ucc.UC_HOOK_INSN, library.svsmd_on_in, (ctypes.c_int(x86.UC_X86_INS_IN),)),
            (ucc.UC_HOOK_INSN, library.svsmd_on_out, (ctypes.c_int(x86.UC_X86_INS_OUT),)),
            (ucc.UC_HOOK_INSN, library.svsmd_on_syscall, (ctypes.c_int(x86.UC_X86_INS_SYSCALL),)),
        ):
            engine.hook(kind, function, self._user, *extra)
        self._replace_functions()
        self._replace_exchanges()

    def _fill(self, shared: _Shared) -> None:
        engine, layout = self._engine, self._engine.layout
        shared.env, shared.cpu = layout.env, layout.cpu
        shared.header = BLOCK_HEADER
        shared.eip = layout.eip
        shared.cs_base = layout.segment(_CS) + 8
        shared.error_code = layout.error_code
        shared.exception_is_int = layout.exception_is_int
        shared.tsc_aux = layout.tsc_aux
        for name in _OFFSETS:
            setattr(shared, name, getattr(layout, name))
        for field, symbol in _FUNCTIONS:
            function = engine.internal(symbol)
            setattr(shared, field, host_address(function))
        shared.emu_stop = host_address(engine.lib.uc_emu_stop)
        self._exit_handler = _EXIT_HANDLER(self._on_exit)
        shared.exit_handler = host_address(self._exit_handler)
        shared.slice_end = shared.deadline = shared.skip_breakpoint = NEVER
        shared.v_irq = -1
        shared.tsc_scale = TSC_SCALE_ONE
        shared.fast = Fast.ALL
        shared.passed_breakpoint = shared.passed_block = NEVER
        shared.nested_cr3 = layout.nested_cr3
        shared.dr = layout.dr
        shared.assigned = address_of(self.assigned)
        shared.trapped = address_of(self.trapped)
        shared.has_code = address_of(self._has_code)
        self._code_pages = sparse(engine.memory.size // PAGE_SIZE * _CODE_PAGE_BYTES)
        shared.code_pages = address_of(self._code_pages)
        shared.ram, shared.ram_size = engine.memory.address, engine.memory.size
        shared.tlb = self._tlb()
        shared.exit_info_2 = engine.exit_info_2
        shared.interrupt_request = layout.cpu + layout.interrupt_request

    def _replace_functions(self) -> None:
        """Has the engine call some functions of native/accel.c instead of its own."""
        engine, library = self._engine, self._library
        regions = ram_regions(engine)
        self._with_code = [region.never_dirty() for region in regions]
        rows = [
            value
            for region, copy in zip(regions, self._with_code, strict=True)
            for value in (
                region.start, region.size, region.host, region.address, ctypes.addressof(copy),
            )
        ]  # fmt: skip
        private = engine.host_memory
        rows += [private.start, private.size, private.host, 0, 0]
        table = (ctypes.c_uint64 * len(rows))(*rows)
        own = (ctypes.c_void_p * _KEPT)(
            *(host_address(engine.internal(name)) for name, _ in _REPLACED[:_KEPT])
        )
        handle = ctypes.c_void_p(engine.address)
        count = len(regions) + 1
        if not library.svsmd_add_engine(handle, self._user, own, table, count):
            raise EngineMismatch(f"memory has {count} regions")
        weakref.finalize(self, library.svsmd_forget_engine, handle)
        (_, find_region), *others = _REPLACED
        replace_search(engine, getattr(library, find_region))
        for name, replacement in others:
            function = getattr(library, replacement)
            if not library.svsmd_interpose(engine.internal(name), engine.symbol(name), function):
                raise EngineMismatch(f"the engine does not call {name} through its linkage table")

    def _replace_exchanges(self) -> None:
        """Lets native code execute CMPXCHG8B and CMPXCHG16B."""
        layout, internal = self._engine.layout, self._engine.internal
        needs = _Exchange(
            header=BLOCK_HEADER, regs=layout.regs, cc_src=layout.cc_src, cc_op=layout.cc_op,
            load=host_address(internal("cpu_ldq_data_ra")),
            store=host_address(internal("cpu_stq_data_ra")),
            flags=host_address(internal("cpu_cc_compute_all")),
            raise_=host_address(internal("raise_exception_err_ra")),
        )  # fmt: skip
        engines_8b = internal("helper_cmpxchg8b_unlocked")
        engines_16b = internal("helper_cmpxchg16b_unlocked")
        if not self._library.svsmd_replace_exchanges(ctypes.byref(needs), engines_8b, engines_16b):
            raise EngineMismatch("the engine's code cannot be written to")

    def _tlb(self) -> int:
        """Host address of the engine's TLB: three pairs of (mask, table) in front of the state."""
        address = self._engine.layout.env - _TLB_BEFORE_STATE
        for mask, table in struct.iter_unpack("<QQ", ctypes.string_at(address, 3 * 16)):
            entries = (mask >> 6) + 1
            if mask & 63 or entries & (entries - 1) or not table:
                raise EngineMismatch("the engine's TLB is not where it must be")
        return address

    def run(self) -> int:
        error = self._engine.start()
        if self._shared.block_call:
            self._library.svsmd_settle(self._user, 1)
        return error

    def stop(self) -> None:
        self._engine.stop()

    def power_on(self) -> None:
        super().power_on()
        self._shared.next_sweep = 0

    def answer_vmgexits(self, function: int, argument: int) -> bool:
        self._shared.answer, self._shared.answer_argument = function, argument
        return True

    def arm_breakpoint(self, address: int, points: Sequence[Breakpoint] = ()) -> None:
        site = self._sites.get(address)
        if site is None:
            site = self._sites[address] = Site(self._shared)
            hook = self._engine.hook(
                ucc.UC_HOOK_CODE, self._library.svsmd_on_breakpoint, site.user,
                begin=address, end=address,
            )  # fmt: skip
            self._hooks[address] = hook
            self._shared.breakpoints = len(self._sites)
            self._engine.flush_code()
        site.set_points(points, self._engine.layout)

    def disarm_breakpoint(self, address: int) -> None:
        site = self._sites.pop(address, None)
        if site is not None:
            site.count_evaluations()
            self._engine.unhook(self._hooks.pop(address))
            self._shared.breakpoints = len(self._sites)
            self._engine.flush_code()
            self._shared.passed_breakpoint = NEVER

    watches_accesses = True

    def watch(self, ranges: Sequence[tuple[int, int, int]]) -> None:
        words = [word for row in ranges for word in row]
        self._watches = (ctypes.c_uint64 * len(words))(*words)
        self._shared.watches = ctypes.addressof(self._watches)
        self._shared.watch_count = len(ranges)

    def count_evaluations(self) -> None:
        for site in self._sites.values():
            site.count_evaluations()

    @property
    def armed_breakpoints(self) -> frozenset[int]:
        return frozenset(self._sites)
