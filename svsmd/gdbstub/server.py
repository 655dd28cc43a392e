# SPDX-License-Identifier: MIT
"""The trio shell round `Session`: connections of debuggers to one machine.

One client at a time has the machine; another one gets an error reply to its first packet and is
disconnected. What a client does wrong ends its own connection only.

Spec: GDB manual, 20.1 Connecting to a Remote Target; appendix E.
"""

import logging
from typing import Final

import trio

from svsmd.gdbstub.eager_stream import EagerSocketStream
from svsmd.gdbstub.rsp import (
    ACK,
    MAX_PACKET,
    ConnectionClosed,
    Decoder,
    Need,
    Packet,
    RemoteProtocolError,
    encode,
)
from svsmd.gdbstub.session import Session, State
from svsmd.gdbstub.target import Runner, StopEvent, Target

log = logging.getLogger(__name__)

RECEIVE_SIZE: Final = 0x10000
"""Most bytes that are taken from a client at once."""

PATIENCE_SECONDS: Final = 0.5
"""So long a client waits for another one to go before it is refused."""

REFUSAL_SECONDS: Final = 2
"""So long a client that will be refused has time to say its first packet."""

KEEP_WAITING_SECONDS: Final = 1
"""gdb waits 2 s for each byte of a reply (`set remotetimeout`)."""


class GdbServer:
    """Serves debuggers of one machine."""

    def __init__(self, target: Target, runner: Runner) -> None:
        self._target = target
        self._runner = runner
        self._place = trio.Lock()

    async def serve_client(self, stream: trio.abc.Stream) -> None:
        """Serve one connection to its end, close it, and contain its errors."""
        if isinstance(stream, trio.SocketStream):
            stream = EagerSocketStream(stream)
        async with stream:
            # A debugger that comes right after another one finds the machine not yet released.
            with trio.move_on_after(PATIENCE_SECONDS) as patience:
                await self._place.acquire()
            if patience.cancelled_caught:
                await _refuse(stream)
                return
            try:
                await self._attach(stream)
            finally:
                self._place.release()

    async def _attach(self, stream: trio.abc.Stream) -> None:
        # Room for the stop that the client waits for, and for the end of the machine after it.
        on_stop, stops = trio.open_memory_channel[StopEvent](2)
        held = self._runner.attach(on_stop.send_nowait)
        released = False
        try:
            stop = held or await stops.receive()
            session = Session(self._target, self._runner, stop, was_running=held is None)
            log.info("debugger attached")
            conversation = _Conversation(session, stream, stops)
            self._runner.after_slice = conversation.take_printed
            await conversation.run()
            released = True
            log.info("debugger detached")
        finally:
            self._runner.after_slice = lambda: None
            if not released:  # cancelled: whoever does that stops the machine too
                self._runner.detach(resume=True)


class _Conversation:
    """The tasks of one session: one reads and answers, two report stops and what is printed."""

    def __init__(
        self,
        session: Session,
        stream: trio.abc.Stream,
        stops: trio.MemoryReceiveChannel[StopEvent],
    ) -> None:
        self._session = session
        self._stream = stream
        self._stops = stops
        self._sending = trio.Lock()
        self._printed = b""
        self._has_printed = trio.Event()
        self._is_gone = False

    def take_printed(self) -> None:
        """Between two slices: what was printed goes out, if what went before has."""
        if not self._printed and (printed := self._session.printed()):
            self._printed = printed
            self._has_printed.set()

    async def run(self) -> None:
        """Talk until one side ends it; returns when the machine is released."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._report_stops)
            nursery.start_soon(self._send_printed)
            try:
                await self._read()
            except RemoteProtocolError as error:
                log.warning("debugger disconnected: %s", error)
            except trio.BrokenResourceError as error:
                log.info("debugger lost: %s", error)
            nursery.cancel_scope.cancel()
        self._session.close()
        while self._session.state is not State.DISCONNECTED:
            self._session.stopped(await self._stops.receive())

    async def _read(self) -> None:
        session, stream = self._session, self._stream
        while session.state not in (State.LEAVING, State.DISCONNECTED):
            session.receive_data(await stream.receive_some(RECEIVE_SIZE))
            await self._answer()

    async def _answer(self) -> None:
        session = self._session
        while True:
            while (reply := session.next_reply()) is not None:
                await self._send(reply)
            if session.prepare is None:
                return
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._keep_waiting)
                nursery.start_soon(self._listen, nursery.cancel_scope)
                await session.prepare()
                nursery.cancel_scope.cancel()
            if self._is_gone:
                raise trio.BrokenResourceError("it did not wait for an answer")
            session.prepared()

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
            self._session.receive_data(data)

    async def _report_stops(self) -> None:
        while True:
            reply = self._session.stopped(await self._stops.receive())
            printed, self._printed = self._printed, b""
            try:
                await self._send(printed + reply)
            except trio.BrokenResourceError:
                return  # the reader finds out as well

    async def _send_printed(self) -> None:
        while True:
            await self._has_printed.wait()
            self._has_printed = trio.Event()
            printed, self._printed = self._printed, b""
            try:
                if printed:  # else the stop has taken it along
                    await self._send(printed)
            except trio.BrokenResourceError:
                return

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


async def _refuse(stream: trio.abc.Stream) -> None:
    log.info("debugger refused: another one is attached")
    decoder = Decoder()
    with trio.move_on_after(REFUSAL_SECONDS):
        try:
            # gdb takes an error reply only for an answer: wait for the question.
            while not isinstance(event := decoder.next_event(), Packet | ConnectionClosed):
                if event is Need.DATA:
                    decoder.receive_data(await stream.receive_some(RECEIVE_SIZE))
            await stream.send_all(ACK + encode(b"E.another debugger is attached to this machine"))
        except (RemoteProtocolError, trio.BrokenResourceError) as error:
            log.debug("refused debugger: %s", error)
