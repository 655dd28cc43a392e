# SPDX-License-Identifier: MIT
"""A serial console on standard input and output, and in a file.

Bytes go through as they are, unbuffered, so that scripts can talk to a guest. The end of stdin is
not the end of the machine: the guest may still have to say something. A terminal is put into raw
mode, apart from two things: Ctrl-C still ends svsmd, and output still gets its carriage returns,
since svsmd's own messages go to the same terminal.

Spec: docs/consoles.md, "stdio"; termios(3).
"""

import logging
import os
import stat
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import trio

from svsmd.console.hub import Hub, HubClient
from svsmd.endpoint import Endpoint, FileEndpoint, StdioEndpoint
from svsmd.errors import UserError

log = logging.getLogger(__name__)

STDIN: Final = 0
STDOUT: Final = 1

_NO_CHARACTER: Final = b"\0"
"""_POSIX_VDISABLE on Linux: this control character does nothing."""
_COOKED_INPUT: Final = (
    termios.ICRNL | termios.INLCR | termios.IGNCR | termios.ISTRIP | termios.IXON | termios.IXOFF
)
_LOCAL_EDITING: Final = termios.ICANON | termios.ECHO | termios.IEXTEN


async def serve_stdio_console(
    hub: Hub,
    *,
    stdin: int = STDIN,
    stdout: int = STDOUT,
    task_status: trio.TaskStatus[Endpoint] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve a hub's line on two file descriptors until the line is dead or stdout is closed."""
    with hub.attach("stdio") as client, raw_terminal(stdin):
        async with (
            trio.lowlevel.FdStream(_private(stdin, os.O_RDONLY)) as source,
            trio.lowlevel.FdStream(_private(stdout, os.O_WRONLY)) as sink,
            trio.open_nursery() as nursery,
        ):
            task_status.started(StdioEndpoint())
            nursery.start_soon(_read, client, source)
            await _write(client, sink, "stdout")
            nursery.cancel_scope.cancel()


async def serve_file_console(
    hub: Hub,
    endpoint: FileEndpoint,
    *,
    task_status: trio.TaskStatus[Endpoint] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Write a hub's line to a file, which is created with mode 0600 or emptied.

    Raises:
        UserError: it cannot be opened for writing.
    """
    # O_NONBLOCK: a FIFO without a reader is an error, not a wait for ever.
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        fd = os.open(endpoint.path, flags, 0o600)
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise UserError(f"{endpoint}: cannot write there: {reason}") from None
    async with trio.lowlevel.FdStream(fd) as sink:
        with hub.attach(str(endpoint)) as client:
            task_status.started(endpoint)
            await _write(client, sink, str(endpoint))


@contextmanager
def raw_terminal(fd: int) -> Iterator[None]:
    """Raw mode for a terminal, as the module's docstring says; nothing if it is none."""
    if not os.isatty(fd):
        yield
        return
    before = termios.tcgetattr(fd)
    raw = termios.tcgetattr(fd)
    raw[0] &= ~_COOKED_INPUT
    raw[3] &= ~_LOCAL_EDITING
    raw[6][termios.VMIN] = 1
    raw[6][termios.VTIME] = 0
    # Of the keys that make signals only Ctrl-C is left; Ctrl-Z and Ctrl-\ are the guest's.
    raw[6][termios.VSUSP] = _NO_CHARACTER
    raw[6][termios.VQUIT] = _NO_CHARACTER
    termios.tcsetattr(fd, termios.TCSADRAIN, raw)
    try:
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


async def _read(client: HubClient, source: trio.lowlevel.FdStream) -> None:
    try:
        while data := await source.receive_some():
            await client.send(data)
    except trio.BrokenResourceError as error:  # a terminal that was hung up
        log.info("stdin: %s", error.__cause__)
    client.input_ended = True


async def _write(client: HubClient, sink: trio.lowlevel.FdStream, name: str) -> None:
    try:
        while data := await client.receive():
            await sink.send_all(data)
    except trio.BrokenResourceError as error:
        log.warning(
            "%s: %s; the console's output is no longer written there", name, error.__cause__
        )


def _private(fd: int, flags: int) -> int:
    """Another descriptor for the same file, which may be made non-blocking.

    O_NONBLOCK belongs to the open file, which a terminal's shell and the other processes of a
    pipeline share. So pipes and terminals are opened again; where that is not possible, and for
    files, whose position would be lost, it is a duplicate (a file never blocks anyway).
    """
    mode = os.fstat(fd).st_mode
    if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
        try:
            return os.open(
                f"/proc/self/fd/{fd}", flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
            )
        except OSError:
            pass
    return os.dup(fd)
