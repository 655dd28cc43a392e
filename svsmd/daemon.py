# SPDX-License-Identifier: MIT
"""A machine and the services round it: consoles, debugger, signals, time limit.

Everything lives in one nursery. A service contains the errors of its own clients; an exception
that gets out of one, or out of the machine, is a bug, ends everything and leaves no thread, no raw
terminal and no socket file behind.

Spec: docs/cli.md.
"""

import math
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Protocol, TypeVar

import trio

from svsmd.config import MachineConfig
from svsmd.console.hub import HISTORY_SIZE, Hub
from svsmd.console.server import serve_stream_console
from svsmd.console.stdio import serve_file_console, serve_stdio_console
from svsmd.endpoint import (
    LOOPBACK,
    Endpoint,
    FdEndpoint,
    FileEndpoint,
    NullEndpoint,
    PtyEndpoint,
    RingEndpoint,
    StdioEndpoint,
    TcpEndpoint,
    TelnetEndpoint,
    UnixEndpoint,
    format_address,
)
from svsmd.errors import ExitCode, UserError
from svsmd.gdbstub.service import serve_gdb
from svsmd.gdbstub.target import Target
from svsmd.runner import Abandoned, Clock, RunnableMachine, Runner

DRAIN_SECONDS: Final = 5.0
"""How long clients may take to read the last output of a machine that has ended."""
HURRIED_DRAIN_SECONDS: Final = 0.25
"""The same after SIGINT, which promises to end at once."""
FAREWELL_SECONDS: Final = 0.1
"""How long debuggers may take to hear of the end."""


class Machine(RunnableMachine, Protocol):
    """What the daemon needs of a machine."""

    on_console: Callable[[bytes], None]
    """Called with what the guest prints, in the thread that runs the slice."""
    on_svsm_console: Callable[[bytes], None]
    """The same for the SVSM's own messages."""


AnyMachine = TypeVar("AnyMachine", bound=Machine)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """How a machine is run. Nothing of it changes what the machine computes but `clock`.

    Attributes:
        machine: what runs.
        gdb: where debuggers attach.
        serial: where the guest's COM1 is.
        svsm_console: where the SVSM's messages go.
        paused: wait for a debugger before the first instruction.
        clock: what happens to time while all vCPUs are halted.
        time_limit: wall seconds after which the run ends; None is for ever.
        expose: serve even where other machines could connect.
        verbose: also say what the run started from and where its clock ended.

    Raises:
        UserError: two of them exclude each other.
    """

    machine: MachineConfig
    gdb: Endpoint
    serial: Endpoint
    svsm_console: Endpoint = field(default_factory=NullEndpoint)
    paused: bool = False
    clock: Clock = Clock.REAL
    time_limit: float | None = None
    expose: bool = False
    verbose: bool = False

    def __post_init__(self) -> None:
        if self.time_limit is not None and not 0 < self.time_limit < math.inf:
            raise UserError(f"a time limit of {self.time_limit} s makes no sense")
        match self.gdb:
            case TcpEndpoint() | UnixEndpoint() | FdEndpoint() | PtyEndpoint():
                pass
            case NullEndpoint():
                if self.paused:
                    raise UserError(
                        "a machine that starts stopped needs a debugger to start it",
                        hint="give --gdb an endpoint, or leave out -S",
                    )
            case _:
                raise UserError(
                    f"a debugger cannot be served at {self.gdb}",
                    hint="tcp:HOST:PORT, unix:PATH, fd:N, pty or null",
                )
        if self.serial == self.svsm_console and isinstance(self.serial, StdioEndpoint):
            raise UserError("stdio serves one console, not two")


async def run(
    config: RunConfig,
    *,
    build_machine: Callable[[MachineConfig], AnyMachine],
    build_target: Callable[[AnyMachine], Target],
    say: Callable[[str], None],
) -> int:
    """Build a machine, run it with its services until it ends, and return the exit code.

    Args:
        config: what to do.
        build_machine: makes the machine.
        build_target: makes what debuggers see of it, when the first one comes.
        say: tells the user something: one line, without its end.

    Raises:
        UserError: something in the configuration or its surroundings does not let it run.
    """
    # Before there is a nursery, so that Ctrl-C is an ordinary KeyboardInterrupt meanwhile.
    machine = build_machine(config.machine)
    try:
        return await _run(config, machine, partial(build_target, machine), say)
    except BaseExceptionGroup as group:
        raise _innermost(group) from None


async def _run(
    config: RunConfig,
    machine: Machine,
    build_target: Callable[[], Target],
    say: Callable[[str], None],
) -> int:
    runner = Runner(machine, clock=config.clock, paused=config.paused)
    serial = Hub(runner.type_in, history_size=_history_size(config.serial))
    svsm_log = Hub(_type_nowhere, history_size=_history_size(config.svsm_console))
    machine.on_console = runner.between_slices(serial.feed)
    machine.on_svsm_console = runner.between_slices(svsm_log.feed)
    async with trio.open_nursery() as nursery:
        await nursery.start(_obey_signals, runner, nursery.cancel_scope)
        start = partial(_start_service, nursery, say, config)
        await start("console", config.serial, partial(_serve_console, serial))
        await start("SVSM log", config.svsm_console, partial(_serve_console, svsm_log))
        await start("debugger", config.gdb, partial(_serve_debugger, build_target, runner))
        if config.paused:
            say("stopped before the first instruction: the debugger starts the machine")
        if config.verbose:
            say(f"seed {config.machine.seed.hex()}, rtc {config.machine.rtc}")
        if config.time_limit is not None:
            nursery.start_soon(_limit_time, runner, config.time_limit)

        nursery.start_soon(runner.limit_slices)
        try:
            ended = await runner.run()
        except Abandoned:  # by the second signal; the first one decided how the run ends
            assert runner.ended is not None
            ended = runner.ended
        hurry = ended.exit_code == ExitCode.INTERRUPTED
        with trio.move_on_after(HURRIED_DRAIN_SECONDS if hurry else DRAIN_SECONDS):
            await serial.close()
            await svsm_log.close()
        if runner.debuggers:
            await trio.sleep(FAREWELL_SECONDS)
        nursery.cancel_scope.cancel()
    say(ended.reason)
    if isinstance(config.svsm_console, NullEndpoint):
        for line in ended.report:
            say(line)
    if config.verbose:
        say(f"clock {machine.clock_now} ticks")
    if ended.exit_code == ExitCode.GUEST_CRASHED:
        for name, hub, endpoint in (
            ("console", serial, config.serial),
            ("SVSM log", svsm_log, config.svsm_console),
        ):
            if isinstance(endpoint, RingEndpoint):
                say(f"the last of the {name}:")
                say(hub.history().decode(errors="backslashreplace"))
    return ended.exit_code


class _Service(Protocol):
    """Serves something at an endpoint; `task_status.started` gets the endpoint as it is bound."""

    def __call__(
        self, endpoint: Endpoint, *, expose: bool, task_status: trio.TaskStatus[Endpoint]
    ) -> Awaitable[None]: ...


async def _start_service(
    nursery: trio.Nursery,
    say: Callable[[str], None],
    config: RunConfig,
    name: str,
    endpoint: Endpoint,
    service: _Service,
) -> None:
    """Start a service and tell the user what to type to reach it."""
    bound = await nursery.start(partial(service, endpoint, expose=config.expose))
    how = how_to_reach(bound, debugger=name == "debugger")
    if how is not None:
        say(f"{name}: {how}")


async def _serve_debugger(
    build_target: Callable[[], Target],
    runner: Runner,
    endpoint: Endpoint,
    *,
    expose: bool,
    task_status: trio.TaskStatus[Endpoint],
) -> None:
    match endpoint:
        case TcpEndpoint() | UnixEndpoint() | FdEndpoint() | PtyEndpoint():
            await serve_gdb(endpoint, build_target, runner, expose=expose, task_status=task_status)
        case _:  # null: RunConfig lets nothing else through
            task_status.started(endpoint)


async def _serve_console(
    hub: Hub,
    endpoint: Endpoint,
    *,
    expose: bool,
    task_status: trio.TaskStatus[Endpoint],
) -> None:
    match endpoint:
        case StdioEndpoint():
            await serve_stdio_console(hub, task_status=task_status)
        case FileEndpoint():
            await serve_file_console(hub, endpoint, task_status=task_status)
        case RingEndpoint() | NullEndpoint():  # the hub's history is all there is to it
            task_status.started(endpoint)
        case _:
            await serve_stream_console(hub, endpoint, expose=expose, task_status=task_status)


def how_to_reach(endpoint: Endpoint, *, debugger: bool) -> str | None:
    """What to type in another terminal to get to an endpoint; None if there is nothing to type."""
    match endpoint, debugger:
        case TcpEndpoint(host, port), True:
            address = f":{port}" if host == LOOPBACK else format_address(host, port)
            return f'gdb -ex "target remote {address}"'
        case UnixEndpoint(path), True:
            return f'gdb -ex "target remote {path}"'
        case PtyEndpoint(path), True:
            return f'gdb -ex "target remote {path}"'
        case TelnetEndpoint(host, port), False:
            return f"telnet {host} {port}"
        case TcpEndpoint(host, port), False:
            return f"nc {host} {port}"
        case UnixEndpoint(path), False:
            return f"socat -,raw,echo=0,escape=0x1d UNIX-CONNECT:{path}"
        case PtyEndpoint(path), False:
            return f"screen {path}"
    return None


def _history_size(endpoint: Endpoint) -> int:
    return endpoint.size if isinstance(endpoint, RingEndpoint) else HISTORY_SIZE


async def _type_nowhere(_data: bytes) -> None:
    """The SVSM's log is only read."""


async def _obey_signals(
    runner: Runner,
    everything: trio.CancelScope,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """The first signal ends the run in good order, the second one whatever it takes."""
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
        task_status.started()
        async for number in signals:
            if runner.ended is not None:
                runner.abandon()
                everything.cancel()
            elif number == signal.SIGINT:
                runner.finish(ExitCode.INTERRUPTED, "interrupted")
            else:
                runner.finish(ExitCode.OK, f"ended by {signal.Signals(number).name}")


async def _limit_time(runner: Runner, seconds: float) -> None:
    await trio.sleep(seconds)
    runner.finish(ExitCode.TIME_LIMIT, f"the time limit of {seconds:g} s ran out")


def _innermost(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """What went wrong: the first error that the user can mend, or the only error, or all."""
    errors = _leaves(group)
    for error in errors:
        if isinstance(error, UserError):
            return error
    return errors[0] if len(errors) == 1 else group


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        found += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found
