# SPDX-License-Identifier: MIT
"""Runs a machine slice by slice, and lets debuggers and consoles at it between the slices.

Theory of operation. One task, `Runner.run`, owns the machine. It runs a slice in a worker thread,
and only when that has returned does it look at what was asked meanwhile; so everything else in
the trio thread may touch the machine whenever no slice runs, and nothing needs a lock. Whoever
wants something changes a field and calls `_wake`; who cannot wait for the end of the slice also
calls `Machine.request_stop`, which ends it within a basic block.

Debuggers that look at a machine that runs end a slice for each question (`visit`). They have
credit, and when it is used up the guest has three quarters of the time: so a question or a hundred
are answered at once, and nobody who asks without end keeps the guest from running.

Spec: docs/architecture.md; `svsmd.gdbstub.target.Runner` for the debugger's side.
"""

import logging
import math
from collections import deque
from collections.abc import Callable
from enum import Enum
from typing import Final, Protocol, TypeVar

import trio

from svsmd.gdbstub import target
from svsmd.gdbstub.catchpoints import event_stop
from svsmd.slice_end import DebugEvent, Ended, Idle, SliceEnd
from svsmd.snp.events import SnpEvent
from svsmd.snp.exits import DebugReason

log = logging.getLogger(__name__)

TICKS_PER_SECOND: Final = 1_000_000_000
SLICE_SECONDS: Final = 0.02
"""A slice that takes longer is asked to end, so that output and input need not wait. Slices are
bounded in ticks, and the ticks of a guest that does nothing but exit take a thousand times as long
as those of one that computes."""
SPRINT_TICKS: Final = 20_000
SPRINT_SECONDS: Final = 0.001
"""A sprint keeps everything else waiting, so it ends sooner: most stops that a debugger counts come
within this many ticks. To hand a slice over to a thread and back takes 100 us by itself. Nobody can
end it from outside, and of code that modifies itself so many ticks take up to `SLICE_SECONDS`."""
VISITING_SECONDS: Final = 0.005
"""So long visits go on, one after the other, before the guest runs again."""
GUESTS_PART: Final = 3
"""So much longer than visits have held it the guest runs before others do."""
CREDIT_SECONDS: Final = 0.1
"""Until the guest has that much to get, visits go first."""
SWITCH_SECONDS: Final = 0.0003
"""What it costs the guest, besides a visit itself, that a slice ends for it."""
INPUT_SIZE: Final = 4096
"""Bytes typed that may wait in the machine, and as many again here; who types more waits."""

T = TypeVar("T")

_STOP_REASONS: Final = {
    # The machine patches no memory, so it need not tell the two kinds of breakpoints apart, and
    # gdb looks up the kind by the address.
    DebugReason.BREAKPOINT: target.StopReason.SWBREAK,
    DebugReason.WRITE_WATCHPOINT: target.StopReason.WATCH,
    DebugReason.READ_WATCHPOINT: target.StopReason.RWATCH,
    DebugReason.ACCESS_WATCHPOINT: target.StopReason.AWATCH,
    DebugReason.STEP: target.StopReason.SIGNAL,
    DebugReason.PANIC: target.StopReason.SIGNAL,
}


def stop_signal(kind: DebugReason) -> target.Signal:
    """What gdb is told that the vCPU has received: SIGABRT for a panic, which no breakpoint is."""
    return target.Signal.SIGABRT if kind is DebugReason.PANIC else target.Signal.SIGTRAP


class Clock(Enum):
    """What happens to the time of a machine whose vCPUs are all halted."""

    REAL = "real"
    """It goes on with the wall clock: 1 tick is 1 ns."""
    VIRTUAL = "virtual"
    """It jumps to the next timer, and stands still if there is none."""


class RunnableMachine(Protocol):
    """What a runner needs of a machine. One thread at a time uses it."""

    @property
    def clock_now(self) -> int:
        """Ticks since power-on."""
        ...

    def run_slice(self, max_ticks: int = ..., seconds: float = ...) -> SliceEnd:
        """Run for a bounded number of ticks, and not much longer than so many seconds."""
        ...

    def request_stop(self) -> None:
        """End the slice within one basic block; from any thread."""
        ...

    def skip_idle(self, ticks: int) -> None:
        """All vCPUs were halted for so long."""
        ...

    def console_write(self, data: bytes) -> None:
        """Type on the guest's console."""
        ...

    @property
    def console_waiting(self) -> int:
        """Bytes typed that the guest has not read."""
        ...


class Abandoned(Exception):
    """The engine did not come back, and `Runner.abandon` gave it up."""


class Runner:
    """Run control of one machine; implements `svsmd.gdbstub.target.Runner`.

    Args:
        machine: what runs.
        clock: what happens to time while the machine idles.
        paused: wait for a debugger before the first instruction.
    """

    def __init__(
        self,
        machine: RunnableMachine,
        *,
        clock: Clock = Clock.REAL,
        paused: bool = False,
    ) -> None:
        self._machine = machine
        self._clock = clock
        self._running = not paused
        self._in_slice = False
        self._slice_limit = trio.CancelScope()
        self._ended: Ended | None = None
        self._on_stop: Callable[[target.StopEvent], None] | None = None
        self.after_slice: Callable[[], None] = lambda: None
        self.on_rest: Callable[[], None] = lambda: None
        self.debuggers = 0
        self._visits: deque[Callable[[], None]] = deque()
        self._visitors_account = -math.inf
        """When the guest will have had its share of the time."""
        self._last_stop = target.Stopped(tid=1)
        self._pending_stop: target.Stopped | None = None
        self._input = bytearray()
        self._input_taken = trio.Event()
        self._outputs: list[tuple[bytearray, Callable[[bytes], None]]] = []
        self._changed = trio.Event()
        self._slice_scope: trio.CancelScope | None = None

    @property
    def running(self) -> bool:
        """The machine runs, or would if it were not idle; false while a debugger holds it."""
        return self._running

    @property
    def ended(self) -> Ended | None:
        """How the run ended or is about to end; None if it goes on."""
        return self._ended

    # Run control (svsmd.gdbstub.target.Runner)

    @property
    def last_stop(self) -> target.StopEvent:
        """See `svsmd.gdbstub.target.Runner.last_stop`."""
        return self._last_stop if self._ended is None else target.Exited(self._ended.exit_code)

    @property
    def position(self) -> int:
        """See `svsmd.gdbstub.target.Runner.position`."""
        return self._machine.clock_now

    async def visit(self, look: Callable[[], T]) -> T:
        """See `svsmd.gdbstub.target.Runner.visit`."""
        if self._running and not self._in_slice:
            # The guest idles, and must be able to go on between two visits.
            await trio.lowlevel.checkpoint()
        if not self._in_slice:
            return look()
        done = trio.Event()
        result: list[T] = []
        error: list[Exception] = []

        def visit() -> None:
            try:
                result.append(look())
            except Exception as raised:
                error.append(raised)
            done.set()

        self._visits.append(visit)
        self._end_slice_for_visits()
        try:
            await done.wait()
        finally:
            if not done.is_set():
                self._visits.remove(visit)
        if error:
            raise error[0]
        return result[0]

    def _end_slice_for_visits(self) -> None:
        if self._guests_turn_ends <= trio.current_time():
            self._machine.request_stop()
        elif self._guests_turn_ends < self._slice_limit.deadline:
            self._slice_limit.deadline = self._guests_turn_ends

    @property
    def _guests_turn_ends(self) -> float:
        return self._visitors_account - CREDIT_SECONDS

    def _receive_visits(self, *, idle: bool = False) -> None:
        """Between two slices; `idle`: there may be no next one."""
        started = now = trio.current_time()
        if not self._visits or (self._running and not idle and started < self._guests_turn_ends):
            return
        # A machine that stands still has time for all of them.
        while self._visits and (now < started + VISITING_SECONDS or idle or not self._running):
            self._visits.popleft()()
            now = trio.current_time()
        held = now - started + SWITCH_SECONDS
        self._visitors_account = max(self._visitors_account, started) + held * (1 + GUESTS_PART)

    def attach(self, on_stop: Callable[[target.StopEvent], None]) -> target.StopEvent:
        """See `svsmd.gdbstub.target.Runner.attach`."""
        assert not self._in_slice
        self._on_stop = on_stop
        self._pending_stop = None
        if self._running:
            self._running = False
            self._last_stop = target.Stopped(tid=1)
            self._wake()
        return self.last_stop

    def resume(self, *, at_once: bool = False) -> target.StopEvent | None:
        """See `svsmd.gdbstub.target.Runner.resume`."""
        self._pending_stop = None
        self._running = True
        stop = self._sprint() if at_once and self._ended is None else None
        if stop is None:
            self._wake()
        return stop

    def _sprint(self) -> target.StopEvent | None:
        self._begin_slice()
        stop = self._end_slice(self._machine.run_slice(SPRINT_TICKS, SPRINT_SECONDS))
        if stop is None:
            self.after_slice()
        else:
            self._stand_still(stop)
        return stop

    def interrupt(self) -> None:
        """See `svsmd.gdbstub.target.Runner.interrupt`."""
        if self._running:
            self._ask_to_stop(target.Stopped(tid=1, signal=target.Signal.SIGINT))

    def detach(self, resume: bool) -> None:
        """See `svsmd.gdbstub.target.Runner.detach`."""
        self._on_stop = None
        if resume:
            self.resume()

    # Consoles

    async def type_in(self, data: bytes) -> None:
        """Type on the guest's console. Waits while more than `INPUT_SIZE` bytes wait already."""
        while data:
            room = INPUT_SIZE - len(self._input)
            if room == 0:
                await self._input_taken.wait()
                continue
            if self._in_slice and not self._input:
                self._machine.request_stop()
            self._input += data[:room]
            data = data[room:]
            self._wake()

    def between_slices(self, sink: Callable[[bytes], None]) -> Callable[[bytes], None]:
        """A callback for the machine, which hands output over to `sink` when no slice runs.

        Within a slice it is called in the engine's thread, and `sink` gets the output after it.
        """
        held = bytearray()
        self._outputs.append((held, sink))

        def take(data: bytes) -> None:
            if self._in_slice:
                held.extend(data)
            else:  # a debugger steps
                sink(data)

        return take

    # The end

    def finish(self, exit_code: int, reason: str) -> None:
        """End the run, whatever the machine does; `run` returns this. The first one counts."""
        if self._ended is None:
            self._ended = Ended(exit_code, reason)
            self._machine.request_stop()
            self._wake()

    def abandon(self) -> None:
        """Do not wait any longer for a slice that does not end: `run` raises `Abandoned`.

        The thread is left to itself, and the machine must not be touched any more.
        """
        if self._slice_scope is not None:
            self._slice_scope.cancel()

    async def run(self) -> Ended:
        """Run the machine until it ends, or `finish` is called; say how it ended.

        Raises:
            Abandoned: `abandon` was called during a slice.
        """
        while self._ended is None:
            await trio.lowlevel.checkpoint_if_cancelled()
            if self._pending_stop is not None:
                self._report(self._pending_stop)
            elif not self._running:
                await self._wait(math.inf)
            else:
                await self._run_slice()
        if self._running and self._on_stop is not None:
            self._on_stop(target.Exited(self._ended.exit_code))
        self._running = False
        self._receive_visits()
        self.on_rest()
        return self._ended

    async def limit_slices(self) -> None:
        """End slices that take longer than `SLICE_SECONDS`, for ever; at rest while none does."""
        while True:
            # Each slice sets its deadline, maybe before this task has come so far.
            with trio.CancelScope(deadline=self._slice_limit.deadline) as self._slice_limit:
                await trio.sleep_forever()
            self._slice_limit.deadline = math.inf
            self._machine.request_stop()

    def _hand_over_input(self) -> None:
        """Type as much as the guest keeps up with; its own buffer has no bound."""
        room = INPUT_SIZE - self._machine.console_waiting
        if self._input and room > 0:
            self._machine.console_write(bytes(self._input[:room]))
            del self._input[:room]
            self._input_taken.set()
            self._input_taken = trio.Event()

    def _begin_slice(self) -> None:
        self._hand_over_input()
        self._in_slice = True

    async def _run_slice(self) -> None:
        self._begin_slice()
        self._slice_limit.deadline = trio.current_time() + SLICE_SECONDS
        if self._visits:
            self._end_slice_for_visits()
        # Shielded: a slice is short, and who cancels the task must not leave a thread behind that
        # still runs a machine whose parts are being closed.
        with trio.CancelScope(shield=True) as self._slice_scope:
            end = await trio.to_thread.run_sync(self._machine.run_slice, abandon_on_cancel=True)
        if self._slice_scope.cancelled_caught:
            raise Abandoned
        self._slice_scope = None
        self._slice_limit.deadline = math.inf
        stop = self._end_slice(end)
        self.after_slice()
        if stop is not None:
            self._report(stop)
        self._receive_visits(idle=isinstance(end, Idle))
        if isinstance(end, Idle) and self._running:
            await self._idle(end.deadline)

    def _end_slice(self, end: SliceEnd) -> target.Stopped | None:
        """The machine may be looked at again; returns what a debugger has to be told."""
        self._in_slice = False
        for held, sink in self._outputs:
            if held:
                sink(bytes(held))
                held.clear()
        match end:
            case DebugEvent() if self._on_stop is None:
                # A breakpoint that has just been removed, or the panic of an SVSM that nobody looks
                # at.
                return None
            case DebugEvent(event=SnpEvent() as event):
                return event_stop(event)
            case DebugEvent(vcpu, kind, address):
                return target.Stopped(vcpu + 1, stop_signal(kind), _STOP_REASONS[kind], address)
            case Ended():
                self._ended = self._ended or end
        return None

    async def _idle(self, deadline: int | None) -> None:
        """All vCPUs are halted: wait for a timer or for somebody, and tell the machine how long."""
        left = math.inf if deadline is None else max(0, deadline - self._machine.clock_now)
        if self._clock is Clock.VIRTUAL and deadline is not None:
            self._machine.skip_idle(int(left))
            return
        started = trio.current_time()
        due = await self._wait(left / TICKS_PER_SECOND)
        if self._clock is Clock.REAL:
            passed = int((trio.current_time() - started) * TICKS_PER_SECOND)
            # The wall clock is a float: a timer that is due must not be missed by a rounding.
            self._machine.skip_idle(max(passed, int(left)) if due else passed)

    async def _wait(self, seconds: float) -> bool:
        """Wait until somebody calls `_wake`, or `seconds`; say whether it was the time."""
        with trio.move_on_after(seconds):
            await self._changed.wait()
            self._changed = trio.Event()
            return False
        return True

    def _wake(self) -> None:
        self._changed.set()

    def _ask_to_stop(self, stop: target.Stopped) -> None:
        self._pending_stop = stop
        self._machine.request_stop()
        self._wake()

    def _stand_still(self, stop: target.Stopped) -> None:
        self._running = False
        self._pending_stop = None
        self._last_stop = stop

    def _report(self, stop: target.Stopped) -> None:
        """The machine stands still: remember why, and tell the debugger."""
        self._stand_still(stop)
        if self._on_stop is not None:
            self._on_stop(stop)
        self.on_rest()
