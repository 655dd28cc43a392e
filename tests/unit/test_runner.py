# SPDX-License-Identifier: MIT
"""Run control: slices, idling, input, debuggers, the end."""

import math
import threading
import time
from functools import partial

import pytest
import trio
import trio.testing

from svsmd.gdbstub import target
from svsmd.runner import CREDIT_SECONDS, INPUT_SIZE, SLICE_SECONDS, Abandoned, Clock, Runner
from svsmd.slice_end import DebugEvent, Ended, Idle, Stopped
from svsmd.snp.exits import DebugReason
from tests.fake_machine import SLICE_TICKS, FakeMachine

OFF = Ended(0, "off")


class Stops:
    """What a debugger is told; `wait` gives the next one."""

    def __init__(self) -> None:
        self._sender, self._receiver = trio.open_memory_channel[target.StopEvent](10)

    def __call__(self, stop: target.StopEvent) -> None:
        self._sender.send_nowait(stop)

    async def wait(self) -> target.StopEvent:
        with trio.fail_after(5):
            return await self._receiver.receive()

    def __len__(self) -> int:
        return self._receiver.statistics().current_buffer_used


async def until(condition) -> None:
    """Wait for something that a machine in its thread does."""
    with trio.fail_after(5):
        while not condition():  # noqa: ASYNC110 - a fake machine in its thread sets no trio.Event
            await trio.sleep(0.001)


def make(*script, **options) -> tuple[FakeMachine, Runner]:
    machine = FakeMachine()
    machine.script.extend(
        step if callable(step) else partial(lambda end: end, step) for step in script
    )
    return machine, Runner(machine, **options)


async def test_runs_slice_after_slice_until_the_machine_ends():
    machine, runner = make(Stopped(), Stopped(), OFF)
    assert await runner.run() == OFF
    assert machine.slices == 3
    assert not runner.running


async def test_a_slice_runs_in_another_thread():
    threads = []

    def note():
        threads.append(threading.current_thread())
        return OFF

    _, runner = make(note)
    await runner.run()
    assert threads != [threading.current_thread()]


async def test_output_of_a_slice_arrives_when_it_is_over_and_in_the_trio_thread():
    seen = []
    machine, runner = make()
    take = runner.between_slices(lambda data: seen.append((data, threading.current_thread())))

    def print_twice():
        take(b"one ")
        take(b"two")
        assert not seen
        return OFF

    machine.script.append(print_twice)
    await runner.run()
    take(b"stepped")
    here = threading.current_thread()
    assert seen == [(b"one two", here), (b"stepped", here)]


async def test_a_long_slice_is_asked_to_end(nursery):
    machine, runner = make()
    machine.script.extend([machine.spin, machine.spin, lambda: OFF])
    nursery.start_soon(runner.limit_slices)
    with trio.fail_after(5):
        assert await runner.run() == OFF
    assert machine.slices == 3
    nursery.cancel_scope.cancel()


async def test_a_machine_that_idles_wakes_nobody(nursery):
    machine, runner = make()
    nursery.start_soon(runner.run)
    nursery.start_soon(runner.limit_slices)
    await until(lambda: machine.slices == 1)
    await trio.sleep(5 * SLICE_SECONDS)
    await trio.testing.wait_all_tasks_blocked()
    assert trio.lowlevel.current_statistics().seconds_to_next_deadline == math.inf
    runner.finish(0, "")
    nursery.cancel_scope.cancel()


async def test_what_is_typed_ends_the_slice(nursery):
    machine, runner = make()
    machine.script.append(machine.spin)
    nursery.start_soon(runner.run)
    await until(lambda: machine.slices == 1)
    await runner.type_in(b"off")
    await until(lambda: runner.ended == Ended(0, "the guest powered off"))


async def test_an_error_of_the_machine_comes_out():
    def fail():
        raise ZeroDivisionError

    _, runner = make(fail)
    with pytest.raises(ZeroDivisionError):
        await runner.run()


class TestIdle:
    async def test_virtual_time_jumps_to_the_timer(self):
        machine, runner = make(Idle(3_600_000_000_000), OFF, clock=Clock.VIRTUAL)
        await runner.run()
        assert machine.idled == [3_600_000_000_000 - SLICE_TICKS]

    async def test_virtual_time_does_not_go_back_for_a_timer_that_is_late(self):
        machine, runner = make(Idle(1), OFF, clock=Clock.VIRTUAL)
        await runner.run()
        assert machine.idled == [0]

    async def test_real_time_sleeps_until_the_timer(self, autojump_clock):
        machine, runner = make(Idle(3_600_000_000_000), OFF)
        before = trio.current_time()
        await runner.run()
        assert trio.current_time() - before == pytest.approx(3600)
        assert 0 <= machine.clock_now - 3_600_000_000_000 - SLICE_TICKS < 1000

    @pytest.mark.parametrize("deadline", [1007, 1_333_333_333, 10_000_000_007, 123_456_789_123])
    async def test_no_rounding_wakes_the_machine_before_its_timer(self, autojump_clock, deadline):
        autojump_clock.jump(123456.789)  # where the float of the clock has fewer digits
        machine, runner = make(Idle(deadline), OFF)
        await runner.run()
        assert machine.clock_now - SLICE_TICKS >= deadline

    async def test_input_ends_it_and_the_machine_hears_how_long_it_was(
        self, autojump_clock, nursery
    ):
        machine, runner = make()
        nursery.start_soon(runner.run)
        await trio.testing.wait_all_tasks_blocked(0.05)  # the first slice is over
        await trio.sleep(2)
        await runner.type_in(b"off")
        await trio.testing.wait_all_tasks_blocked()
        assert machine.idled == [pytest.approx(2_000_000_000, abs=1000)]

    async def test_virtual_time_stands_still_without_a_timer(self, nursery):
        machine, runner = make(Idle(None), clock=Clock.VIRTUAL)
        nursery.start_soon(runner.run)
        await trio.testing.wait_all_tasks_blocked(0.01)
        await runner.type_in(b"off")
        await until(lambda: runner.ended is not None)
        assert machine.idled == []

    async def test_a_halted_machine_is_left_alone(self, nursery):
        machine, runner = make()
        nursery.start_soon(runner.run)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert machine.slices == 1
        runner.finish(0, "")


class TestInput:
    async def test_who_types_too_much_waits_and_nothing_is_lost(self, nursery):
        machine, runner = make()
        machine.reads_input = False
        nursery.start_soon(runner.run)
        paste = bytes(range(256)) * (INPUT_SIZE // 64)
        done = trio.Event()

        async def type_it():
            await runner.type_in(paste)
            done.set()

        nursery.start_soon(type_it)
        await until(lambda: len(machine.typed) == INPUT_SIZE)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert not done.is_set()
        assert machine.typed == paste[:INPUT_SIZE]
        received = bytearray()
        machine.on_console = received.extend
        machine.reads_input = True
        runner.resume()  # wakes the machine, as one of its timers would
        await until(lambda: done.is_set() and len(received) == len(paste))
        assert received == paste.upper()
        runner.finish(0, "")


class TestDebugger:
    async def test_attaching_stops_a_running_machine(self, nursery):
        machine, runner = make()
        machine.script.append(machine.spin)
        nursery.start_soon(runner.run)
        await trio.testing.wait_all_tasks_blocked(0.01)
        stops = Stops()
        assert await runner.visit(lambda: runner.attach(stops)) == target.Stopped(1)
        slices = machine.slices
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert (runner.running, machine.slices) == (False, slices)
        runner.detach(resume=True)
        await until(lambda: machine.slices > slices)
        runner.finish(0, "")

    async def test_it_finds_a_machine_that_starts_paused(self, nursery):
        machine, runner = make(OFF, paused=True)
        nursery.start_soon(runner.run)
        await trio.testing.wait_all_tasks_blocked(0.01)
        stops = Stops()
        assert runner.attach(stops) == target.Stopped(1)
        assert machine.slices == 0
        runner.resume()
        assert await stops.wait() == target.Exited(0)

    async def test_ctrl_c(self, nursery):
        machine, runner = make(paused=True)
        machine.script.append(machine.spin)
        nursery.start_soon(runner.run)
        stops = Stops()
        runner.attach(stops)
        runner.resume()
        await trio.testing.wait_all_tasks_blocked(0.01)
        runner.interrupt()
        assert await stops.wait() == target.Stopped(1, target.Signal.SIGINT)
        runner.interrupt()  # it stands still: nothing to report
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert len(stops) == 0
        runner.finish(0, "")

    @pytest.mark.parametrize(
        ("kind", "reason"),
        [
            (DebugReason.BREAKPOINT, target.StopReason.SWBREAK),
            (DebugReason.WRITE_WATCHPOINT, target.StopReason.WATCH),
            (DebugReason.READ_WATCHPOINT, target.StopReason.RWATCH),
            (DebugReason.ACCESS_WATCHPOINT, target.StopReason.AWATCH),
            (DebugReason.STEP, target.StopReason.SIGNAL),
        ],
    )
    async def test_a_hit_is_reported_once(self, nursery, kind, reason):
        _machine, runner = make(DebugEvent(1, kind, 0xFFFF_8000), paused=True)
        nursery.start_soon(runner.run)
        stops = Stops()
        runner.attach(stops)
        runner.resume()
        hit = target.Stopped(2, reason=reason, address=0xFFFF_8000)
        assert await stops.wait() == hit
        assert len(stops) == 0
        runner.detach(resume=False)
        assert runner.attach(stops) == hit
        runner.finish(0, "")

    async def test_a_panic_of_the_svsm_is_a_signal(self, nursery):
        _machine, runner = make(DebugEvent(1, DebugReason.PANIC, 0x1000), paused=True)
        nursery.start_soon(runner.run)
        stops = Stops()
        runner.attach(stops)
        runner.resume()
        assert await stops.wait() == target.Stopped(2, target.Signal.SIGABRT, address=0x1000)
        runner.finish(0, "")

    async def test_a_hit_comes_before_a_ctrl_c_and_swallows_it(self, nursery):
        machine, runner = make(paused=True)

        def hit_when_interrupted():
            machine.spin()
            return DebugEvent(0, DebugReason.BREAKPOINT, 0x1000)

        machine.script.append(hit_when_interrupted)
        nursery.start_soon(runner.run)
        stops = Stops()
        runner.attach(stops)
        runner.resume()
        await trio.testing.wait_all_tasks_blocked(0.01)
        runner.interrupt()
        assert await stops.wait() == target.Stopped(
            1, reason=target.StopReason.SWBREAK, address=0x1000
        )
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert len(stops) == 0
        runner.finish(0, "")

    async def test_a_sprint_runs_at_once_and_returns_its_stop(self, nursery):
        seen: list[object] = []

        def hit():
            take(b"printed")
            assert not seen
            seen.append(threading.current_thread())
            return DebugEvent(1, DebugReason.BREAKPOINT, 0x1000)

        machine, runner = make(hit, paused=True)
        take = runner.between_slices(seen.append)
        nursery.start_soon(runner.run)
        stops = Stops()
        runner.attach(stops)
        expected = target.Stopped(2, reason=target.StopReason.SWBREAK, address=0x1000)
        assert runner.resume(at_once=True) == expected
        assert seen == [threading.current_thread(), b"printed"]
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert (machine.slices, len(stops), runner.running) == (1, 0, False)
        assert runner.attach(stops) == expected
        runner.finish(0, "")

    async def test_a_sprint_without_a_stop_goes_on_in_the_other_thread(self, nursery):
        threads = []

        def note(end):
            threads.append(threading.current_thread())
            return end

        hit = DebugEvent(0, DebugReason.WRITE_WATCHPOINT, 0x1000)
        _, runner = make(partial(note, Stopped()), partial(note, hit), paused=True)
        nursery.start_soon(runner.run)
        stops = Stops()
        runner.attach(stops)
        assert runner.resume(at_once=True) is None
        watched = target.StopReason.WATCH
        assert await stops.wait() == target.Stopped(1, reason=watched, address=0x1000)
        assert threads[0] is threading.current_thread() is not threads[1]
        runner.finish(0, "")

    async def test_a_machine_may_end_in_a_sprint(self, nursery):
        _, runner = make(OFF, paused=True)
        nursery.start_soon(runner.run)
        stops = Stops()
        runner.attach(stops)
        assert runner.resume(at_once=True) is None
        assert await stops.wait() == target.Exited(0)
        assert runner.resume(at_once=True) is None  # it does not run any more

    async def test_a_hit_without_a_debugger_does_not_stop_the_machine(self):
        for kind in (DebugReason.BREAKPOINT, DebugReason.PANIC):
            _, runner = make(DebugEvent(0, kind, 0x1000), OFF)
            assert await runner.run() == OFF

    async def test_input_waits_while_the_machine_stands_still(self, nursery):
        machine, runner = make(paused=True)
        nursery.start_soon(runner.run)
        await runner.type_in(b"off")
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert machine.slices == 0
        runner.resume()
        await until(lambda: runner.ended == Ended(0, "the guest powered off"))

    async def test_the_end_of_a_machine_that_stands_still_is_no_stop(self, nursery):
        _machine, runner = make(paused=True)
        nursery.start_soon(runner.run)
        stops = Stops()
        runner.attach(stops)
        runner.finish(0, "")
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert len(stops) == 0
        assert runner.attach(stops) == target.Exited(0)


class TestVisits:
    async def test_a_visit_ends_a_slice_and_the_machine_goes_on(self, nursery):
        machine, runner = make()
        machine.script.extend([machine.spin, machine.spin])
        nursery.start_soon(runner.run)
        await trio.testing.wait_all_tasks_blocked(0.01)
        with trio.fail_after(5):
            thread = await runner.visit(threading.current_thread)
        assert thread is threading.current_thread()
        await until(lambda: machine.slices == 2)
        runner.finish(0, "")

    @pytest.mark.parametrize("paused", [False, True])
    async def test_without_a_slice_it_takes_place_at_once(self, nursery, paused):
        machine, runner = make(paused=paused)  # a machine that idles, or stands still
        nursery.start_soon(runner.run)
        await trio.testing.wait_all_tasks_blocked(0.01)
        slices = machine.slices
        assert await runner.visit(lambda: machine.clock_now) == machine.clock_now
        assert machine.slices == slices
        runner.finish(0, "")

    async def test_an_exception_belongs_to_the_visitor(self, nursery):
        machine, runner = make()
        machine.script.extend([machine.spin, machine.spin])
        nursery.start_soon(runner.run)
        await trio.testing.wait_all_tasks_blocked(0.01)
        with pytest.raises(ZeroDivisionError):
            await runner.visit(lambda: 1 // 0)
        assert runner.running
        runner.finish(0, "")

    async def test_who_goes_before_the_visit_does_not_make_it(self, nursery):
        machine, runner = make()
        done = threading.Event()

        def wait():
            done.wait(5)
            return Stopped()

        machine.script.append(wait)
        nursery.start_soon(runner.run)
        await trio.testing.wait_all_tasks_blocked(0.01)
        visits = []
        with trio.move_on_after(0.01):
            await runner.visit(lambda: visits.append(1))
        done.set()
        await until(lambda: machine.slices == 2)
        assert visits == []
        runner.finish(0, "")

    @pytest.mark.parametrize("seconds", [0.001, 0.01])
    async def test_visitors_without_end_leave_the_guest_its_part(self, nursery, seconds):
        """Each of them holds the machine so long, again and again."""
        machine, runner = make()
        guest = []

        def spin():
            machine.script.append(spin)
            started = time.perf_counter()
            end = machine.spin()
            guest.append(time.perf_counter() - started)
            return end

        machine.script.append(spin)
        nursery.start_soon(runner.limit_slices)
        nursery.start_soon(runner.run)
        held = [0] * 8

        async def look(number):
            while True:
                await runner.visit(lambda: time.sleep(seconds))
                held[number] += 1

        async with trio.open_nursery() as visitors:
            for number in range(8):
                visitors.start_soon(look, number)
            await trio.sleep(CREDIT_SECONDS * 3)
            guest.clear()
            started, before = time.perf_counter(), sum(held)
            await trio.sleep(1)
            passed, visits = time.perf_counter() - started, sum(held) - before
            visitors.cancel_scope.cancel()
        assert sum(guest) > passed / 2
        assert 0.05 < visits * seconds / passed < 0.28  # a quarter, and one visit more
        assert max(held) - min(held) <= max(1, max(held) / 2)
        runner.finish(0, "")

    async def test_who_waits_for_a_turn_gets_it_when_the_guest_idles(self, nursery):
        """Maybe for ever, so that there is no next slice."""
        machine, runner = make()
        machine.script.append(machine.spin)
        nursery.start_soon(runner.run)
        await trio.testing.wait_all_tasks_blocked(0.01)
        machine.script.append(machine.spin)
        await runner.visit(lambda: time.sleep(CREDIT_SECONDS))
        done = trio.Event()

        async def look():
            await runner.visit(lambda: None)
            done.set()

        nursery.start_soon(look)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert not done.is_set()
        machine.request_stop()
        with trio.fail_after(0.1):
            await done.wait()
        runner.finish(0, "")

    async def test_a_visitor_that_takes_the_run_control_of_an_idle_machine(self, nursery):
        """What it idled until then counts, and from then on its time stands still."""
        machine, runner = make(Idle(10**12))
        nursery.start_soon(runner.run)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert await runner.visit(lambda: runner.attach(Stops())) == target.Stopped(1)
        await until(lambda: len(machine.idled) == 1)
        await trio.sleep(0.02)
        assert machine.slices == 1
        assert len(machine.idled) == 1
        runner.detach(resume=True)
        await until(lambda: machine.slices == 2)
        runner.finish(0, "")

    async def test_a_stop_that_was_asked_for_is_forgotten_with_who_asked(self, nursery):
        machine, runner = make(paused=True)
        machine.script.extend([machine.spin])
        nursery.start_soon(runner.run)
        first, second = Stops(), Stops()
        await runner.visit(lambda: runner.attach(first))
        runner.resume()
        await trio.testing.wait_all_tasks_blocked(0.01)

        def take():
            runner.interrupt()
            return runner.attach(second)

        assert await runner.visit(take) == target.Stopped(1)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert len(first) == len(second) == 0
        assert not runner.running
        runner.finish(0, "")

    async def test_visits_go_on_when_the_machine_has_ended(self, nursery):
        _machine, runner = make(OFF)
        assert await runner.run() == OFF
        assert await runner.visit(lambda: runner.last_stop) == target.Exited(0)


class TestEnd:
    async def test_finish_ends_a_slice(self, nursery):
        machine, runner = make()
        machine.script.append(machine.spin)

        async def finish():
            await trio.sleep(0.01)
            runner.finish(5, "first")
            runner.finish(130, "second")

        nursery.start_soon(finish)
        assert await runner.run() == Ended(5, "first")

    async def test_abandon_does_not_wait_for_a_slice(self, nursery):
        machine, runner = make()
        machine.script.append(machine.spin)

        async def abandon():
            await trio.sleep(0.01)
            runner.abandon()

        nursery.start_soon(abandon)
        with trio.fail_after(5), pytest.raises(Abandoned):
            await runner.run()
        machine.request_stop()
