# SPDX-License-Identifier: MIT
"""The engine's callbacks in Python, for where native/accel.c could not be compiled.

They do what those in C do, two hundred times slower, with three differences in how:

- C code leaves a callback through the engine's own exit path. From Python that would jump over the
  interpreter's frames. So a block that must not run is kept from running by a stop, and what it
  means is told to the exit handler when the engine has returned; run() then goes on by itself.
  IN, OUT and SYSCALL run to their end and trap at once: on an I/O breakpoint that matches, or on
  RFLAGS.TF. Then all that they have changed is put back.
- C code finds the translator's record of a block by its own return address. Here the engine's
  table of blocks by address has it, unless another block took its place: the engine is then
  started again, for which it looks the block up.
- C code is called at instructions with breakpoints. Here a block with a breakpoint inside is
  translated anew, with as many instructions as there are before it.
- C code executes CMPXCHG8B and CMPXCHG16B in the engine's place, which needs RFLAGS in its state to
  do so. It has them there at the start of a block: such an instruction is treated as a breakpoint.

All exits go to the exit handler, and all mappings stay marked for the engine's slow path of stores:
neither costs anything beside these callbacks.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from unicorn import unicorn_const as ucc
from unicorn import x86_const as x86

from svsmd.snp.breakpoint import Breakpoint
from svsmd.snp.engine_callbacks import (
    NEVER,
    Engine,
    EngineCallbacks,
    EngineExit,
    Stop,
    Trap,
)
from svsmd.snp.engine_layout import (
    HF_CS32,
    HF_CS64,
    JUMP_CACHE_SLOTS,
    NEXT_FLAGS,
    jump_cache_slot,
)
from svsmd.snp.engine_regions import ram_regions
from svsmd.snp.secure_tsc import TSC_SCALE_ONE
from svsmd.snp.types import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE

_BLOCK_HOOK = ctypes.CFUNCTYPE(
    None, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint32, ctypes.c_void_p
)
_EXIT_HOOK = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p)
_EDGE_HOOK = ctypes.CFUNCTYPE(
    None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p
)
_IN_HOOK = ctypes.CFUNCTYPE(
    ctypes.c_uint32, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_void_p
)
_OUT_HOOK = ctypes.CFUNCTYPE(
    None, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint32, ctypes.c_void_p
)
_SYSCALL_HOOK = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)

_RCX, _R11, _CS, _SS = 1, 11, 1, 2
_GPRS: Final = 16
_EFER_SCE: Final = 1 << 0
_TF, _IF, _DF = 1 << 8, 1 << 9, 1 << 10
_IOPL, _RF, _VM, _AC = 3 << 12, 1 << 16, 1 << 17, 1 << 18
_BLOCK_FLAGS: Final = _IOPL | _TF | _RF | _VM | _AC
"""Of RFLAGS, the bits that a block is translated for, beside the mode flags."""
_ARITHMETIC: Final = 0x8D5
_CC_OP_EFLAGS: Final = 1
_HF_CPL: Final = 3
_HF_INHIBIT_IRQ, _HF_SS32, _HF_ADDSEG = 1 << 3, 1 << 5, 1 << 6
_HF_LMA: Final = 1 << 14
_HF_IOBPT: Final = 1 << 24
_VC_IOIO: Final = 0x7B
_DR6, _DR7 = 6, 7
_DR7_FIXED: Final = 1 << 10
_DR7_DR0_IS_PORT: Final = _DR7_FIXED | 2 << 16 | 1 << 0
"""24593, 13.1.1.4: breakpoint 0 is local, one byte long, and on accesses to a port."""
_NO_PAGE: Final = (1 << 64) - 1
_EXCHANGE: Final = b"\x0f\xc7"
_PREFIXES: Final = frozenset(
    b"\x26\x2e\x36\x3e\x64\x65\x66\x67\xf0\xf2\xf3" + bytes(range(0x40, 0x50))
)
"""Legacy ones and, in 64-bit code, REX; in other code those are instructions of one byte."""
_RECORD: Final = struct.Struct("<QQIHHIIQQQQQQQ")


class _Block(NamedTuple):
    """The translator's record of a block; struct block of native/accel.c."""

    pc: int
    cs_base: int
    flags: int
    size: int
    icount: int
    cflags: int
    dstate: int
    code: int
    code_size: int
    original: int
    page_next_0: int
    page_next_1: int
    page_0: int
    page_1: int

    def addresses(self) -> Iterator[int]:
        """Linear address of each instruction, and of what follows the last one.

        Behind the host code, each instruction has three numbers, signed LEB128: how far the
        linear address, the state of the flags and the host code are behind the last one's.
        """
        at, pc = self.code + self.code_size, self.pc
        for _ in range(self.icount):
            delta, at = _sleb128(at)
            pc += delta
            yield pc
            _, at = _sleb128(at)
            _, at = _sleb128(at)
        yield self.pc + self.size

    def locate(self, address: int) -> tuple[int, int]:
        """(Instructions before the one at `address`, its length); (icount, 0) if there is none."""
        addresses = list(self.addresses())
        try:
            index = addresses.index(address, 0, self.icount)
        except ValueError:
            return self.icount, 0
        return index, addresses[index + 1] - address


def _sleb128(at: int) -> tuple[int, int]:
    """The number at a host address, and where it ends."""
    value = shift = 0
    while True:
        byte = ctypes.c_uint8.from_address(at).value
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            return value - (1 << shift if byte & 0x40 else 0), at


def _is_exchange(instruction: bytes) -> bool:
    """Whether it is CMPXCHG8B or CMPXCHG16B: 0F C7 /1 with an operand in memory (24594)."""
    opcode = next((i for i, byte in enumerate(instruction) if byte not in _PREFIXES), 0)
    rest = instruction[opcode:]
    return rest[:2] == _EXCHANGE and rest[2:3] < b"\xc0" and rest[2] >> 3 & 7 == 1


@dataclass(slots=True)
class _State:
    """EngineState."""

    ticks: int = 0
    deadline: int = NEVER
    slice_end: int = NEVER
    previous_end: int = 0
    previous_page: int = 0
    stop: int = 0
    stopped: int = Stop.NONE
    first: int = 0
    next_check: int = 0
    stepping: int = 0
    plain_steps: int = 0
    range_start: int = 0
    range_size: int = 0
    range_cpl: int = 0
    range_cr3: int = 0
    range_left: int = 0
    range_steps: int = 0
    trap: int = Trap.NONE
    skip_breakpoint: int = NEVER
    passed_breakpoint: int = NEVER
    passed_block: int = NEVER
    vmsa_page: int = 0
    vmpl: int = 0
    watch_off: int = 0
    watched_access: int = 0
    watched_length: int = 0
    watched_kind: int = 0
    exits: int = 0
    io_port: int = 0
    io_size: int = 0
    fast: int = 0
    rdtsc_exits: int = 0
    tsc_scale: int = TSC_SCALE_ONE
    tsc_offset: int = 0
    v_irq: int = -1
    insn_length: int = 0
    ghcb_msr: int = 0
    answered: int = 0
    first_pc: int = 0
    first_rcx: int = 0
    first_shadow: int = 0


class _Trapped(NamedTuple):
    """An instruction that runs to its end and then exits DB: what is really to happen then.

    Attributes:
        completed: it stays executed; else RIP and the general registers are put back.
    """

    code: int
    error_code: int
    completed: bool
    rip: int
    regs: list[int]
    dr0: int
    dr6: int
    dr7: int
    guests_tf: int


class PythonCallbacks(EngineCallbacks):
    """The callbacks, each as a method."""

    mode_flags = _HF_IOBPT

    def __init__(self, engine: Engine, on_exit: Callable[[int], None]) -> None:
        super().__init__(engine, on_exit)
        self.state: _State = _State()
        self._layout = lay = engine.layout
        self._words, self._halves = engine.words, engine.halves
        self._regs = (ctypes.c_uint64 * _GPRS).from_address(lay.env + lay.regs)
        self._dr = (ctypes.c_uint64 * 8).from_address(lay.env + lay.dr)
        self._rip, self._eflags, self._hflags = lay.eip // 8, lay.eflags // 8, lay.hflags // 4
        self._cs_base = (lay.segment(_CS) + 8) // 8
        self._records = (ctypes.c_uint64 * JUMP_CACHE_SLOTS).from_address(lay.cpu + lay.jump_cache)
        self._read_eflags = engine.internal("helper_read_eflags")
        self._read_eflags.restype = ctypes.c_uint64
        self._block: _Block | None = None
        """What is being executed; None after settle()."""
        self._looked_up = False
        """The engine was started for the next block, and so has just looked it up."""
        self._again = False
        """The engine was stopped for our own sake."""
        self._generated = False
        """The next block was translated just now."""
        self._trapped: _Trapped | None = None
        self._trap = Trap.NONE
        """Why the next block does not run, until the exit handler has heard of it."""
        self._error: BaseException | None = None
        self._breakpoints: set[int] = set()
        self._cuts: dict[tuple[int, int], int] = {}
        """Instructions before the first that must begin a block, by that block's address and size.

        One may outlive its code: wherever a block is cut, it computes the same.
        """
        self._next_flags = ctypes.c_uint32.from_address(lay.cpu + NEXT_FLAGS)
        self._install()

    def _install(self) -> None:
        self._hooks = (
            (ucc.UC_HOOK_BLOCK, _BLOCK_HOOK(self._on_block), ()),
            (ucc.UC_HOOK_EDGE_GENERATED, _EDGE_HOOK(self._on_translation), ()),
            (ucc.UC_HOOK_INTR, _EXIT_HOOK(self._on_event), ()),
            (ucc.UC_HOOK_INSN, _IN_HOOK(self._on_in), (x86.UC_X86_INS_IN,)),
            (ucc.UC_HOOK_INSN, _OUT_HOOK(self._on_out), (x86.UC_X86_INS_OUT,)),
            (ucc.UC_HOOK_INSN, _SYSCALL_HOOK(self._on_syscall), (x86.UC_X86_INS_SYSCALL,)),
        )  # fmt: skip
        for kind, function, extra in self._hooks:
            self._engine.hook(kind, function, None, *map(ctypes.c_int, extra))
        for region in ram_regions(self._engine):
            region.keep_marks()

    # -- running ----------------------------------------------------------------------------

    def run(self) -> int:
        state = self.state
        while True:
            self._again = False
            self._looked_up = True
            error = self._engine.start()
            if self._error is not None:
                pending, self._error = self._error, None
                raise pending
            if self._trap is not Trap.NONE:
                state.trap, self._trap = self._trap, Trap.NONE
                self._exit(EngineExit.DB)
                self._again = True
            if error or state.stopped or not self._again:
                break
        self._settle(completed=True)
        return error

    def stop(self) -> None:
        self._engine.stop()

    def _failed(self, error: BaseException) -> None:
        """An exception must not cross the engine: it waits for run()."""
        self._error = error
        self.stop()

    def _stop_for(self, reason: Stop) -> None:
        self.state.stopped = reason
        self.stop()

    def _start_again(self) -> None:
        self._again = True
        self.stop()

    # -- blocks -----------------------------------------------------------------------------

    def _record(self, pc: int, size: int) -> _Block | None:
        """The record of the block that is about to run."""
        address = self._records[jump_cache_slot(pc)]
        if not address:
            return None
        block = _Block._make(_RECORD.unpack(ctypes.string_at(address, _RECORD.size)))
        flags = self._halves[self._hflags] | self._words[self._eflags] & _BLOCK_FLAGS
        expected = (pc, self._words[self._cs_base], flags, size)
        return block if block[:4] == expected else None

    def _on_translation(self, _uc: int, _current: int, _previous: int, _user: int) -> None:
        self._generated = True
        self.state.next_check = 0

    def _on_block(self, _uc: int, pc: int, size: int, _user: int) -> None:
        try:
            block = self._record(pc, size)
            looked_up, self._looked_up = self._looked_up, False
            if block is None:
                if looked_up:
                    self._stop_for(Stop.BROKEN)
                else:
                    self._start_again()
                return
            state = self.state
            if self._generated:
                self._look_for_exchange(block)
            if (self._breakpoints or self._cuts) and self._cut(block):
                return
            if state.ticks >= state.next_check and self._check(block):
                return
            if pc in self._breakpoints and self._breakpoint(pc):
                return
            state.ticks += block.icount
            self._block = block
        except BaseException as error:
            self._failed(error)

    def _remember_end(self) -> None:
        """Where the last block ended, for who asks whether a boundary is canonical."""
        block, self._block = self._block, None
        if block is not None:
            self.state.previous_end = block.pc + block.size
            self.state.previous_page = block.pc >> PAGE_SHIFT

    def _check(self, block: _Block) -> bool:
        """All that is not due at every block. Returns whether the block must not run now."""
        state, pc = self.state, block.pc
        first = state.first
        if first:
            state.first = 0
            state.first_pc = pc
            state.first_rcx = self._regs[_RCX]
            state.first_shadow = self._halves[self._hflags] & _HF_INHIBIT_IRQ
        self._remember_end()
        if self._generated:
            self._generated = False
            # Fetches are private accesses, and a page that is not assigned has no private content.
            # Looking once is enough: translations are dropped when an RMP entry changes.
            pages = [
                page >> PAGE_SHIFT for page in (block.page_0, block.page_1) if page != _NO_PAGE
            ]
            if not all(self.assigned[page] for page in pages):
                self._trap = Trap.SHARED_FETCH
                self.stop()
                return True
            for page in pages:
                self._has_code[page] = 1
            if pc != state.passed_block and any(self.trapped[page] for page in pages):
                self._trap = Trap.CODE_PAGE
                self.stop()
                return True
        state.next_check = min(state.deadline, state.slice_end)
        if state.stop:
            state.next_check = 0
        # A deadline that is due goes first: were the machine given back here, its owner could not
        # tell a deadline that waits for a canonical boundary from one that was taken.
        if state.ticks >= state.deadline:
            if pc != state.previous_end or pc >> PAGE_SHIFT != state.previous_page:
                self._stop_for(Stop.DEADLINE)
                return True
        elif (state.ticks >= state.slice_end or state.stop) and not first:
            self._stop_for(Stop.REQUESTED)
            return True
        return False

    def _settle(self, *, completed: bool) -> None:
        """Takes off the instructions of the current block that have not run."""
        state, block = self.state, self._block
        state.insn_length = 0
        self._remember_end()
        if block is None or completed:
            return
        rip = self._linear_rip()
        index, state.insn_length = block.locate(rip)
        state.ticks -= block.icount - index
        state.previous_end = rip
        state.previous_page = rip >> PAGE_SHIFT

    def _linear_rip(self) -> int:
        return (self._words[self._rip] + self._words[self._cs_base]) & NEVER

    # -- exits ------------------------------------------------------------------------------

    def _on_event(self, _uc: int, code: int, _user: int) -> None:
        try:
            trapped, self._trapped = self._trapped, None
            if trapped is not None:
                self._put_back(trapped)
                self._exit(trapped.code)
            else:
                self._exit(code)
        except BaseException as error:
            self._failed(error)

    def _exit(self, code: int) -> None:
        self.state.exits += 1
        # A single-step trap comes after its instruction; everything else names one that has not
        # run.
        state = self.state
        self._settle(completed=code == EngineExit.DB and not state.trap)
        if state.insn_length and not state.trap and state.previous_end == state.passed_breakpoint:
            # Its instruction is executed again from the start, but was asked for already.
            state.skip_breakpoint = state.passed_breakpoint
        # INT n leaves this set, and the next exit would restore a stale RIP.
        self._halves[self._layout.exception_is_int // 4] = 0
        self._on_exit(code)

    # -- breakpoints ------------------------------------------------------------------------

    def arm_breakpoint(self, address: int, points: Sequence[Breakpoint] = ()) -> None:
        self._breakpoints.add(address)

    def disarm_breakpoint(self, address: int) -> None:
        self._breakpoints.discard(address)
        self.state.passed_breakpoint = NEVER

    @property
    def armed_breakpoints(self) -> frozenset[int]:
        return frozenset(self._breakpoints)

    def _cut(self, block: _Block) -> bool:
        """Has a block that has a breakpoint inside translated up to there; returns whether so."""
        count = self._cuts.get((block.pc, block.size), block.icount)
        inside = {b for b in self._breakpoints if block.pc < b < block.pc + block.size}
        if inside:
            places = (i for i, address in enumerate(block.addresses()) if address in inside)
            count = min(count, next(places, count))
        if count >= block.icount:
            return False
        self._next_flags.value = count
        self._start_again()
        return True

    def _look_for_exchange(self, block: _Block) -> None:
        """Remembers where a new block has to be cut for a CMPXCHG8B or CMPXCHG16B."""
        offset = block.page_0 & ~PAGE_MASK | block.pc & PAGE_MASK
        here = min(block.size, PAGE_SIZE - (offset & PAGE_MASK))
        host = self._engine.memory.address
        code = ctypes.string_at(host + offset, here)
        if here < block.size:
            code += ctypes.string_at(host + (block.page_1 & ~PAGE_MASK), block.size - here)
        if _EXCHANGE not in code:
            return
        addresses = list(block.addresses())
        for count in range(1, block.icount):
            instruction = code[addresses[count] - block.pc : addresses[count + 1] - block.pc]
            if _is_exchange(instruction):
                self._cuts[block.pc, block.size] = count
                return

    def _breakpoint(self, pc: int) -> bool:
        """There is one at the start of the block; returns whether it is not to be passed."""
        state = self.state
        # Who steps looks where it has arrived, unless the step has gone on from there.
        going_on = state.plain_steps and state.range_steps
        if state.skip_breakpoint == pc or (state.stepping and not going_on):
            state.skip_breakpoint = NEVER
            state.passed_breakpoint = pc
            return False
        self._block = None
        state.previous_end = pc
        state.previous_page = pc >> PAGE_SHIFT
        self._trap = Trap.BREAKPOINT
        self.stop()
        return True

    # -- instructions that trap -------------------------------------------------------------

    def _trap_after(self, code: int, error_code: int = 0, *, completed: bool = False) -> None:
        """Remembers what the exit DB at the end of this instruction stands for."""
        dr = self._dr
        self._trapped = _Trapped(
            code, error_code, completed, self._words[self._rip], self._regs[:],
            dr[0], dr[_DR6], dr[_DR7], self._words[self._eflags] & _TF,
        )  # fmt: skip

    def _put_back(self, trapped: _Trapped) -> None:
        words, dr = self._words, self._dr
        dr[0], dr[_DR6], dr[_DR7] = trapped.dr0, trapped.dr6, trapped.dr7
        words[self._eflags] = words[self._eflags] & ~_TF | trapped.guests_tf
        self._halves[self._layout.error_code // 4] = trapped.error_code
        if not trapped.completed:
            words[self._rip] = trapped.rip
            for register, value in enumerate(trapped.regs):
                self._regs[register] = value

    def _io(self, port: int, size: int) -> None:
        """IN and OUT end as a #VC 0x7B before they take effect; the engine has synchronised RIP."""
        self.state.io_port, self.state.io_size = port, size
        self._trap_after(EngineExit.VC, _VC_IOIO)
        self._dr[0], self._dr[_DR7] = port, _DR7_DR0_IS_PORT

    def _on_in(self, _uc: int, port: int, size: int, _user: int) -> int:
        self._io(port, size)
        return 0

    def _on_out(self, _uc: int, port: int, size: int, _value: int, _user: int) -> None:
        self._io(port, size)

    def _on_syscall(self, _uc: int, _user: int) -> None:
        """SYSCALL (24594). It ends its block; the engine adds its length to RIP after this.

        The engine looks for RFLAGS.TF alone behind a SYSCALL.
        """
        try:
            self._syscall()
        except BaseException as error:
            self._failed(error)

    def _syscall(self) -> None:
        lay, words, halves, regs = self._layout, self._words, self._halves, self._regs
        block = self._block
        assert block is not None
        if not words[lay.efer // 8] & _EFER_SCE:
            self._trap_after(EngineExit.UD)
            words[self._eflags] |= _TF
            return
        rip = words[self._rip]
        length = block.pc + block.size - rip - words[self._cs_base]
        star = words[lay.star // 8]
        flags = self._read_eflags(ctypes.c_void_p(lay.env)) & ~_RF
        hflags = halves[self._hflags]
        selector = star >> 32 & 0xFFFC
        self._put_segment(_SS, selector + 8, 0x00C0_9300)
        if hflags & _HF_LMA:
            regs[_RCX] = rip + length
            regs[_R11] = flags
            target = words[(lay.lstar if hflags & HF_CS64 else lay.cstar) // 8]
            self._put_rflags(flags & ~words[lay.fmask // 8])
            self._put_segment(_CS, selector, 0x00A0_9B00)
            hflags |= HF_CS64
        else:
            regs[_RCX] = (rip + length) & 0xFFFF_FFFF
            target = star & 0xFFFF_FFFF
            self._put_rflags(flags & ~(_IF | _VM))
            self._put_segment(_CS, selector, 0x00C0_9B00)
        halves[self._hflags] = hflags & ~(_HF_CPL | _HF_ADDSEG) | HF_CS32 | _HF_SS32
        words[self._rip] = target - length
        if self.state.stepping:
            self._trap_after(EngineExit.DB, completed=True)
            words[self._eflags] |= _TF

    def _put_rflags(self, flags: int) -> None:
        lay = self._layout
        self._words[lay.cc_src // 8] = flags & _ARITHMETIC
        self._halves[lay.cc_op // 4] = _CC_OP_EFLAGS
        self._halves[lay.df // 4] = 0xFFFF_FFFF if flags & _DF else 1
        self._words[self._eflags] = flags & ~(_ARITHMETIC | _DF) | 2

    def _put_segment(self, index: int, selector: int, flags: int) -> None:
        """A flat segment."""
        at = self._layout.segment(index)
        self._halves[at // 4] = selector
        self._words[(at + 8) // 8] = 0
        self._halves[(at + 16) // 4] = 0xFFFF_FFFF
        self._halves[(at + 20) // 4] = flags
