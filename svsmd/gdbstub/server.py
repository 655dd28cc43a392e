# SPDX-License-Identifier: MIT
"""The trio shell round `Session`: connections of debuggers to one machine.

Theory of operation. A client is one from its first packet on: who only connects stops nothing. If
nobody has the run control, it gets it and is the owner; else it is a reader, whose packets are
served in visits (`Runner.visit`). What a client does wrong ends its own connection only, and what
it does not read waits for it alone: at most one reply, one stop and some output.

Spec: GDB manual, 20.1 Connecting to a Remote Target; appendix E; docs/gdb.md, "Several debuggers".
"""

import itertools
import logging
import math
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from svsmd.gdbstub.eager_stream import EagerSocketStream
from svsmd.gdbstub.rsp import (
    ACK,
    MAX_PACKET,
    BadChecksum,
    ConnectionClosed,
    Decoder,
    Need,
    Packet,
    RemoteProtocolError,
    encode,
)
from svsmd.gdbstub.session import Session, State
from svsmd.gdbstub.target import Exited, Runner, Signal, StopEvent, Stopped, Target, TargetError

log = logging.getLogger(__name__)

RECEIVE_SIZE: Final = 0x10000
"""Most bytes that are taken from a client at once."""

MAX_DEBUGGERS: Final = 16
"""So many are attached at once; another one is refused."""

MAX_SILENT: Final = 64
"""So many connections may have said nothing yet, with no limit of time."""

PATIENCE_SECONDS: Final = 0.1
"""So long a client waits for another one to go before it becomes a reader."""

REFUSAL_SECONDS: Final = 2
"""So long a client that will be refused has time to say its first packet."""

REST_SECONDS: Final = 0.1
"""So long the machine stands still before a reader that waits is told of it: debuggers stop and
resume it many times for one command of their user."""

KEEP_WAITING_SECONDS: Final = 1
"""gdb waits 2 s for each byte of a reply (`set remotetimeout`)."""

_CREDENTIALS: Final = struct.Struct("=3i")
"""pid, uid, gid (SO_PEERCRED, unix(7))."""


class GdbServer:
    """Serves debuggers of one machine."""

    def __init__(self, target: Target, runner: Runner) -> None:
        self._target = target
        self._runner = runner
        self._numbers = itertools.count(1)
        self._clients: list[_Client] = []
        self._silent = 0
        self._change = trio.Event()
        self.owner: _Client | None = None
        runner.after_slice = self._after_slice
        runner.on_rest = self.note_change

    async def serve_client(self, stream: trio.abc.Stream) -> None:
        """Serve one connection to its end, close it, and contain its errors."""
        name = ""
        if isinstance(stream, trio.SocketStream):
            name = _peer(stream.socket)
            stream = EagerSocketStream(stream)
        async with stream:
            try:
                await self._serve(stream, name)
            except (RemoteProtocolError, trio.BrokenResourceError) as error:
                log.info("debugger lost before it was attached: %s", error)

    async def _serve(self, stream: trio.abc.Stream, name: str) -> None:
        if self._silent >= MAX_SILENT:
            await _refuse(stream, f"{MAX_SILENT} connections say nothing already")
            return
        self._silent += 1
        try:
            words = await _first_words(stream)
        finally:
            self._silent -= 1
        if not words:
            return
        if len(self._clients) >= MAX_DEBUGGERS:
            await stream.send_all(_refusal(f"{MAX_DEBUGGERS} debuggers are attached already"))
            return
        client = _Client(self, self._target, self._runner, stream, next(self._numbers), name)
        self._clients.append(client)
        self._runner.debuggers = len(self._clients)
        try:
            # A debugger that comes right after another one finds the machine not yet released.
            with trio.move_on_after(PATIENCE_SECONDS):
                while self.owner is not None:
                    await self._change.wait()
            await client.run(words)
        finally:
            self._clients.remove(client)
            self._runner.debuggers = len(self._clients)
            if self.owner is client:  # cancelled: whoever does that stops the machine too
                self.owner = None
                self._runner.detach(resume=True)

    def note_change(self) -> None:
        """The machine has moved or stands still, or the run control has been left."""
        if self._change.statistics().tasks_waiting:
            self._change.set()
            self._change = trio.Event()

    async def wait_for_change(self, seconds: float) -> bool:
        """Wait for `note_change`, or so long; say which."""
        with trio.move_on_after(seconds):
            await self._change.wait()
            return True
        return False

    def _after_slice(self) -> None:
        if self.owner is not None:
            self.owner.take_printed()

    def standing(self) -> StopEvent:
        """How the machine stands, for a client that has not stopped it."""
        last = self._runner.last_stop
        if self._runner.running:
            return Stopped(1)
        if self.owner is None or isinstance(last, Exited):
            return last
        return self.owner.session.last_stop  # behind its last step

    def describe(self, asking: "_Client") -> str:
        """See RunControl."""
        running = "runs" if self._runner.running else "stands still"
        lines = [f"the machine {running}"]
        for client in self._clients:
            role = "has the run control" if client is self.owner else "reads"
            lines.append(f"{client}{' (this one)' if client is asking else ''} {role}")
        if self.owner is None:
            lines.append("nobody has the run control")
        return "\n".join(lines)


class _Client:
    """A debugger, and the tasks of its session: one reads and answers, two report.

    It is its session's `RunControl`.
    """

    session: Session

    def __init__(
        self,
        server: GdbServer,
        target: Target,
        runner: Runner,
        stream: trio.abc.Stream,
        number: int,
        name: str,
    ) -> None:
        self._server = server
        self._target = target
        self._runner = runner
        self._stream = stream
        self._number = number
        self._name = name
        self._sending = trio.Lock()
        self._posted = b""
        """What is to be sent without having been asked for."""
        self._has_posted = trio.Event()
        self._begins_to_wait = trio.Event()
        self._seen: int | None = None
        """The machine's position when a reader was told last how it stands; None if it ran then."""
        self._released = trio.Event()
        self._is_gone = False

    def __str__(self) -> str:
        return f"debugger {self._number}{f', {self._name},' if self._name else ''}"

    # RunControl

    def describe(self) -> str:
        """See RunControl."""
        return self._server.describe(self)

    @property
    def is_free(self) -> bool:
        """See RunControl."""
        return self._server.owner is None

    def take(self, *, force: bool) -> None:
        """See RunControl."""
        server, runner = self._server, self._runner
        owner = server.owner
        if owner is not None and owner.session.state is State.LEAVING:
            raise TargetError(f"{owner} is about to leave: try again")
        if owner is not None and not force:
            raise TargetError(f"{owner} has the run control; take --force takes it away from that")
        stop = server.standing()
        was_running = runner.running
        if owner is not None:
            was_running = was_running or owner.session.resumes_at_end
            owner.lose(f"{self} has taken the run control: this one only reads from now on")
        runner.attach(self._on_stop)
        server.owner = self
        self.session.take_control(stop, was_running=was_running)
        log.info("%s has taken the run control", self)

    def give(self) -> None:
        """See RunControl."""
        self._server.owner = None
        self._seen = None
        self.session.give_control()
        self._server.note_change()
        log.info("%s has given the run control", self)

    def lose(self, words: str) -> None:
        """Another one takes the run control."""
        self._seen = None
        self._post(self.session.lose_control(words))
        self._note_waiting()

    # What happens to it

    def take_printed(self) -> None:
        """Between two slices: what was printed goes out, if what went before has."""
        if not self._posted:
            self._post(self.session.printed())

    def _on_stop(self, event: StopEvent) -> None:
        self._post(self.session.stopped(event))
        self._check_released()

    def _check_released(self) -> None:
        if self.session.state is State.DISCONNECTED:
            if self._server.owner is self:
                self._server.owner = None
                self._server.note_change()
            self._released.set()

    def _post(self, data: bytes) -> None:
        if data:
            self._posted += data
            self._has_posted.set()

    def _note_waiting(self) -> None:
        """In a visit: a reader may have begun to wait, or have been told how the machine stands."""
        if self.session.waits and not self.session.in_control:
            self._begins_to_wait.set()
        elif self._begins_to_wait.is_set():
            self._begins_to_wait = trio.Event()
            self._note_position()
            self._server.note_change()

    def _note_position(self) -> None:
        self._seen = None if self._runner.running else self._runner.position

    # The conversation

    async def run(self, words: bytes) -> None:
        """Talk until one side ends it; returns when the machine is released."""
        await self._runner.visit(self._begin)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._send_posted)
            nursery.start_soon(self._report_rests)
            try:
                await self._read(words)
            except RemoteProtocolError as error:
                log.warning("%s disconnected: %s", self, error)
            except trio.BrokenResourceError as error:
                log.info("%s lost: %s", self, error)
            nursery.cancel_scope.cancel()
        self.session.close()
        self._check_released()
        await self._released.wait()
        log.info("%s detached", self)

    def _begin(self) -> None:
        server, runner = self._server, self._runner
        free = server.owner is None
        was_running = runner.running
        stop = runner.attach(self._on_stop) if free else server.standing()
        self.session = Session(
            self._target, runner, stop, was_running=was_running, control=self, in_control=free
        )
        if free:
            server.owner = self
        else:
            self._note_position()
        log.info("%s attached%s", self, "" if free else ", to read")

    async def _read(self, data: bytes) -> None:
        session, runner = self.session, self._runner
        while True:
            session.receive_data(data)
            while session.state not in (State.LEAVING, State.DISCONNECTED):
                if session.in_control:  # and touches the machine only while it holds it
                    reply = self._next_reply()
                else:
                    reply = await runner.visit(self._next_reply)
                if reply is not None:
                    await self._send(reply)
                elif session.prepare is not None:
                    await self._prepare(session.prepare)
                else:
                    break
            else:
                return
            data = bytes(await self._stream.receive_some(RECEIVE_SIZE))

    async def _prepare(self, prepare: Callable[[], Awaitable[None]]) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_waiting)
            nursery.start_soon(self._listen, nursery.cancel_scope)
            await prepare()
            nursery.cancel_scope.cancel()
        if self._is_gone:
            raise trio.BrokenResourceError("it did not wait for an answer")
        self.session.prepared()

    async def _keep_waiting(self) -> None:
        """gdb gives up after some seconds in which nothing comes; an acknowledgement is enough."""
        while True:
            await trio.sleep(KEEP_WAITING_SECONDS)
            try:
                await self._send(ACK)
            except trio.BrokenResourceError:
                return  # the listener finds out as well

    async def _listen(self, work: trio.CancelScope) -> None:
        """What the client says while it waits; nobody works for one that has gone."""
        received = 0
        while received < MAX_PACKET:
            try:
                data = await self._stream.receive_some(RECEIVE_SIZE)
            except trio.BrokenResourceError:
                data = b""
            if not data:
                self._is_gone = True
                work.cancel()
                return
            received += len(data)
            self.session.receive_data(data)

    def _next_reply(self) -> bytes | None:
        reply = self.session.next_reply()
        if self.session.in_control:
            self._server.note_change()  # it may have been a step
        else:
            self._note_waiting()
            self._check_released()
        return reply

    async def _report_rests(self) -> None:
        """Tell a reader that waits when the machine stands still, and has moved since it knows."""
        server, runner, session = self._server, self._runner, self.session
        while True:
            await self._begins_to_wait.wait()
            seconds = math.inf
            if not runner.running:
                if isinstance(runner.last_stop, Exited):
                    seconds = 0
                elif runner.position != self._seen:
                    seconds = REST_SECONDS
            if await server.wait_for_change(seconds) or runner.running or not session.waits:
                continue
            stop = server.standing()
            if isinstance(stop, Stopped):
                stop = Stopped(stop.tid, Signal.NONE, words=stop.words, pid=stop.pid)
            self._post(session.observe(stop))
            self._note_waiting()

    async def _send_posted(self) -> None:
        while True:
            await self._has_posted.wait()
            self._has_posted = trio.Event()
            posted, self._posted = self._posted, b""
            try:
                await self._send(posted)
            except trio.BrokenResourceError:
                return  # the reader finds out as well

    async def _send(self, data: bytes) -> None:
        try:
            # Almost always free; `acquire` would let other tasks run first, which costs more than
            # the answer to a step.
            self._sending.acquire_nowait()
        except trio.WouldBlock:
            await self._sending.acquire()
        try:
            await self._stream.send_all(data)
        finally:
            self._sending.release()


async def _first_words(stream: trio.abc.Stream) -> bytes:
    """What a client says until its first packet is complete; empty if it leaves before that.

    Raises `RemoteProtocolError` if it says too much without one.
    """
    decoder = Decoder()
    words = bytearray()
    while True:
        match decoder.next_event():
            case Packet() | BadChecksum():  # both are answered
                return bytes(words)
            case ConnectionClosed():
                return b""
            case Need.DATA:
                data = bytes(await stream.receive_some(RECEIVE_SIZE))
                decoder.receive_data(data)
                words += data


def _refusal(why: str) -> bytes:
    return ACK + encode(b"E." + why.encode())


async def _refuse(stream: trio.abc.Stream, why: str) -> None:
    log.info("debugger refused: %s", why)
    with trio.move_on_after(REFUSAL_SECONDS):
        # gdb takes an error reply only for an answer: wait for the question.
        if await _first_words(stream):
            await stream.send_all(_refusal(why))


def _peer(sock: trio.socket.SocketType) -> str:
    """Who is at the other end: its address, or its process."""
    try:
        if sock.family == socket.AF_UNIX:
            credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            return f"process {_CREDENTIALS.unpack(credentials)[0]}"
        host, port, *_ = sock.getpeername()
        return f"{host} port {port}"
    except OSError:  # it has gone
        return ""
