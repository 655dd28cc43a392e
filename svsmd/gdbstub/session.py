# SPDX-License-Identifier: MIT
"""One debugging session: what the client sends goes in, what it is to be sent comes out.

Theory of operation. The session of a client that has the run control begins when the machine stands
still under it (`Runner.attach`). In `IDLE` the client asks and the stub answers. A packet that
resumes the machine gets no answer: the session is `RUNNING` until the runner reports a stop, and
the report is the answer. Ctrl-C makes it `INTERRUPTING`, which is `RUNNING` but for a second
Ctrl-C, which changes nothing. Whichever stop comes first answers both the resumption and the
Ctrl-C; a Ctrl-C that crosses a stop reply finds the session `IDLE` and is ignored. But a range step
that takes long comes in pieces, whose stop replies the user does not see: a Ctrl-C then ends the
next piece.

A session ends when the client detaches, when its connection is lost, and when it breaks the
protocol: breakpoints are taken out and the machine goes on, unless it stood still before the client
came and was never continued by it. The machine must not be touched while it runs, so a session that
ends then is `LEAVING` until the machine has stopped.

A client that has not the run control is a reader. Its session has the same states, but they say
what the client believes, not what the machine does: that is held by another one, or runs. So
`next_reply` has to be called in a visit (`Runner.visit`). `RUNNING` is a reader that waits: the
shell reports it a stop when one is worth it, Ctrl-C ends the wait at once, and what ends then is
over at once. `take_control` makes a reader the owner, `lose_control` and `give_control` the owner a
reader: one that waits for a stop goes on to wait.

Spec: GDB manual, E.1 Overview, E.8 Interrupts, E.9 Packet Acknowledgment.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from enum import Enum
from typing import Final

from svsmd.gdbstub.packets import (
    breakpoints,
    files,
    lldb,
    mem,
    monitor,
    physical,
    query,
    readers,
    regs,
    resume,
    search,
    signals,
)
from svsmd.gdbstub.packets.context import (
    OK,
    UNSUPPORTED,
    Action,
    Context,
    Errno,
    Handler,
    PacketError,
    Reply,
    console_packets,
)
from svsmd.gdbstub.rsp import (
    ACK,
    NAK,
    BadChecksum,
    ConnectionClosed,
    Decoder,
    Interrupt,
    Nak,
    Need,
    Packet,
    RemoteProtocolError,
    encode,
)
from svsmd.gdbstub.target import (
    Execution,
    Exited,
    Preparing,
    RunControl,
    Signal,
    StopEvent,
    Stopped,
    SupportsRelocation,
    Target,
    TargetError,
)

MAX_RETRANSMITS: Final = 3
"""So many requests to repeat one packet are granted; one more ends the connection."""


class State(Enum):
    """Where a session is."""

    IDLE = "the machine stands still and the client may ask"
    RUNNING = "the machine runs; the client waits for a stop reply"
    INTERRUPTING = "the machine runs, and has been asked to stop for the client"
    LEAVING = "the client is gone; the machine has been asked to stop, to be released"
    DISCONNECTED = "over: the machine is released"


class Trigger(Enum):
    """What moves a session from state to state."""

    RESUME = "a packet that runs the machine"
    INTERRUPT = "Ctrl-C"
    STOP = "the runner reports that the machine stands still"
    LEAVE = "the client detaches, or its connection is over"


TRANSITIONS: Final[Mapping[tuple[State, Trigger], State]] = {
    (State.IDLE, Trigger.RESUME): State.RUNNING,
    (State.IDLE, Trigger.INTERRUPT): State.IDLE,
    (State.IDLE, Trigger.LEAVE): State.DISCONNECTED,
    (State.RUNNING, Trigger.INTERRUPT): State.INTERRUPTING,
    (State.RUNNING, Trigger.STOP): State.IDLE,
    (State.RUNNING, Trigger.LEAVE): State.LEAVING,
    (State.INTERRUPTING, Trigger.INTERRUPT): State.INTERRUPTING,
    (State.INTERRUPTING, Trigger.STOP): State.IDLE,
    (State.INTERRUPTING, Trigger.LEAVE): State.LEAVING,
    (State.LEAVING, Trigger.LEAVE): State.LEAVING,
    (State.LEAVING, Trigger.STOP): State.DISCONNECTED,
    (State.DISCONNECTED, Trigger.LEAVE): State.DISCONNECTED,
}
"""Every transition there is; another one is a mistake of the caller (`LocalProtocolError`)."""

HANDLERS: Final[Mapping[bytes, Handler]] = {
    **regs.HANDLERS,
    **mem.HANDLERS,
    **breakpoints.HANDLERS,
    **resume.HANDLERS,
    **query.HANDLERS,
    **monitor.HANDLERS,
    **files.HANDLERS,
    **lldb.HANDLERS,
    **physical.HANDLERS,
    **search.HANDLERS,
    **signals.HANDLERS,
}
"""By the name of the packet: one character, or a long name such as b"qXfer"."""
_LONG_NAME_INITIALS: Final = frozenset({b"q", b"Q", b"v"})
_LONG_NAME: Final = re.compile(rb"[qQv][A-Za-z]+")

_WHILE_RUNNING: Final = frozenset({b"D", b"k", b"vKill", b"QStartNoAckMode"})
"""Packets that are served while the machine runs; so is `vCont;t`."""


class LocalProtocolError(Exception):
    """The session was used in a way that `TRANSITIONS` does not know: a bug of ours."""


class Session:
    """The conversation with one client.

    Feed it with `receive_data`, send what `next_reply` returns until it returns None, and send what
    `stopped` returns when the runner reports a stop. Call `close` when the connection is over.
    """

    def __init__(
        self,
        target: Target,
        runner: Execution,
        stop: StopEvent,
        *,
        was_running: bool,
        control: RunControl | None = None,
        in_control: bool = True,
    ) -> None:
        """A conversation that begins, in a visit if the client is to be a reader.

        Args:
            target: the machine.
            runner: who runs it.
            stop: how it stands.
            was_running: whether it ran before `attach`.
            control: what the client can do about the run control.
            in_control: the client has it; else it is a reader.
        """
        thread = stop.thread if isinstance(stop, Stopped) else target.threads()[0].id
        self._context = Context(
            target, last_stop=stop, general=thread, control=control, in_control=in_control
        )
        self._runner = runner
        self._resume_at_end = was_running
        self._decoder = Decoder()
        self._state = State.IDLE
        self._acks = True
        self._news = ""
        """A line for the user that waits for an occasion."""
        self._last_packet = b""
        self._retransmits = 0
        self._unanswered: bytes | None = None
        self.prepare: Callable[[], Awaitable[None]] | None = None
        """What the answer to the client waits for: to be called, and then `prepared`."""

    @property
    def state(self) -> State:
        """Where the session is."""
        return self._state

    @property
    def in_control(self) -> bool:
        """The client has the run control."""
        return self._context.in_control

    @property
    def waits(self) -> bool:
        """The client has resumed the machine, as far as it knows, and waits for a stop."""
        return self._state in (State.RUNNING, State.INTERRUPTING)

    @property
    def last_stop(self) -> StopEvent:
        """The stop that the client was told of last."""
        return self._context.last_stop

    @property
    def resumes_at_end(self) -> bool:
        """The machine goes on when the client leaves it."""
        return self._resume_at_end

    def receive_data(self, data: bytes | bytearray) -> None:
        """Take in bytes of the client; b"" says that it has closed its side."""
        self._decoder.receive_data(data)

    def next_reply(self) -> bytes | None:
        """Serve what was received, one packet at a time: bytes to send, or None if all is served.

        Raises `RemoteProtocolError`; the connection then has to be closed.
        """
        while self._state not in (State.LEAVING, State.DISCONNECTED) and self.prepare is None:
            if self._unanswered is not None:
                body, self._unanswered = self._unanswered, None
                return self._serve(body)
            event = self._decoder.next_event()
            match event:
                case Packet(body):
                    ack = ACK if self._acks else b""
                    reply = ack + self._serve(body)
                    if reply:
                        return reply
                case Need.DATA:
                    return None
                case Interrupt():
                    if reply := self._interrupt():
                        return reply
                case BadChecksum():
                    return NAK
                case Nak() if self._acks and self._last_packet:
                    return self._retransmit()
                case ConnectionClosed():
                    self.close()
                case _:
                    pass  # acknowledgements tell nothing over a transport that loses nothing
        return None

    def prepared(self) -> None:
        """What the client waits for can be served."""
        self.prepare = None

    def stopped(self, event: StopEvent) -> bytes:
        """The runner's `on_stop`: returns the stop reply to send, b"" if nobody waits for it."""
        if self._state is State.IDLE and isinstance(event, Exited):
            # The end of a machine that the client holds (a time limit, say): it hears of it when it
            # resumes the machine.
            self._context.last_stop = event
            return b""
        if self._state is State.LEAVING:
            resume.abandon_step(self._context)
        settled = resume.settle(self._context, event)
        if settled is None and self._state is State.RUNNING:
            self._runner.resume()
            return b""
        resume.abandon_step(self._context)
        if settled is None:  # a Ctrl-C came while the step waited for others
            settled = Stopped(event.tid, Signal.SIGINT) if isinstance(event, Stopped) else event
        event = settled
        self._move(Trigger.STOP)
        self._context.running = False
        if self._state is State.DISCONNECTED:
            self._context.last_stop = event
            self._release()
            return b""
        reply = resume.report_stop(self._context, event)
        return self._console_packets() + self._packet(reply)

    def observe(self, event: StopEvent) -> bytes:
        """The machine stands still for another client: what to send to a reader that waits."""
        return self.stopped(self._context.plain(event))

    def take_control(self, stop: StopEvent, *, was_running: bool) -> None:
        """A reader becomes the owner: the machine stands still under its control from now on."""
        self._context.in_control = True
        self._context.last_stop = self._context.plain(stop)
        self._resume_at_end = was_running
        signals.apply(self._context)
        query.report_moves(self._context)

    def lose_control(self, words: str) -> bytes:
        """Another client has the run control now; what to send. The machine stands still.

        The owner becomes a reader, and is told so as soon as it can hear it.
        """
        resume.abandon_step(self._context)
        self._take_out()
        self._news = words
        if not self.waits:
            return b""
        told = self._tell_news()
        if self._state is State.INTERRUPTING:
            told += self.observe(Stopped(1, Signal.SIGINT))
        return told

    def give_control(self) -> None:
        """The owner becomes a reader, and the machine goes on as if it had left."""
        self._release()

    def printed(self) -> bytes:
        """What the machine has printed for the client until now, to send; it stands still."""
        if not self.waits:
            return b""
        return b"".join(map(encode, resume.console_output(self._context)))

    def close(self) -> None:
        """The conversation is over. If the machine runs, `state` is LEAVING until it has stopped.

        May be called again.
        """
        before = self._state
        self._move(Trigger.LEAVE)
        if not self.in_control:
            if self._state is State.LEAVING:  # it holds nothing that it would have to wait for
                self._move(Trigger.STOP)
        elif before is State.IDLE:
            self._release()
        elif before in (State.RUNNING, State.INTERRUPTING):
            self._runner.interrupt()

    def _release(self) -> None:
        self._take_out()
        self._runner.detach(resume=self._resume_at_end)

    def _take_out(self) -> None:
        """Nothing of the client stays in the machine, and it has not the run control any more."""
        breakpoints.remove_all(self._context)
        signals.release(self._context)
        physical.release(self._context)
        if isinstance(self._context.target, SupportsRelocation):
            self._context.target.report_moves(False)
        self._context.in_control = False

    def _move(self, trigger: Trigger) -> None:
        try:
            self._state = TRANSITIONS[self._state, trigger]
        except KeyError:
            raise LocalProtocolError(f"{trigger.name} in state {self._state.name}") from None

    def _interrupt(self) -> bytes:
        before = self._state
        self._move(Trigger.INTERRUPT)
        if before is State.RUNNING:
            if not self.in_control:
                return self.stopped(Stopped(1, Signal.SIGINT))
            self._runner.interrupt()
        self._context.interrupted = self._context.unfinished
        return b""

    def _retransmit(self) -> bytes:
        self._retransmits += 1
        if self._retransmits > MAX_RETRANSMITS:
            raise RemoteProtocolError("a packet was refused again and again")
        return self._last_packet

    def _packet(self, body: bytes) -> bytes:
        self._last_packet = encode(body)
        self._retransmits = 0
        return self._last_packet

    def _serve(self, body: bytes) -> bytes:
        name = body[:1]
        if name in _LONG_NAME_INITIALS and (match := _LONG_NAME.match(body)):
            name = match[0]
        handler = HANDLERS.get(name)
        if handler is None:
            return self._packet(UNSUPPORTED)
        if self._context.running and name not in _WHILE_RUNNING and body != b"vCont;t":
            return self._error(Errno.BUSY, "the machine is running")
        if not self.in_control and not readers.may_send(name, body[len(name) :]):
            return self._refuse(name, body[len(name) :])
        try:
            reply: Reply = handler(self._context, body[len(name) :])
        except PacketError as error:
            return self._error(error.errno, str(error))
        except TargetError as error:
            return self._error(Errno.FAULT, str(error))
        except Preparing as work:
            self.prepare, self._unanswered = work.prepare, body
            return b""
        if isinstance(reply, bytes):
            if name == b"qRcmd":
                return self._tell_news() + self._console_packets() + self._packet(reply)
            return self._console_packets() + self._packet(reply)
        return self._act(reply)

    def _refuse(self, name: bytes, args: bytes) -> bytes:
        text = readers.refusal(self._context)
        if name not in readers.RESUMING:
            return self._error(Errno.ACCESS, text)
        # gdb 13 takes an error for a stop with the reason of the one before, and may step again,
        # for ever. What is printed before a stop it shows.
        thread = readers.thread_to_run(self._context, args)
        stop = Stopped(thread.tid, Signal.NONE, pid=thread.pid)
        told = self._tell_news() + _line(text)
        return told + self._packet(resume.report_stop(self._context, stop))

    def _tell_news(self) -> bytes:
        """What the user has to know; while the client waits, or has given a `monitor` command."""
        words, self._news = self._news, ""
        return _line(words) if words else b""

    def _console_packets(self) -> bytes:
        """What a handler has to say before its reply."""
        if not self._context.console:
            return b""
        packets = b"".join(map(encode, self._context.console))
        self._context.console.clear()
        return packets

    def _act(self, action: Action) -> bytes:
        match action:
            case Action.RESUME:
                self._move(Trigger.RESUME)
                self._context.running = True
                if not self.in_control:
                    return self._tell_news()
                self._resume_at_end = True
                stop = self._runner.resume(at_once=True)
                return b"" if stop is None else self.stopped(stop)
            case Action.INTERRUPT:
                return self._interrupt()
            case Action.START_NO_ACK_MODE:
                self._acks = False
                return self._packet(OK)
            case Action.DETACH:
                self.close()
                return self._packet(OK)
            case Action.DETACH_SILENTLY:
                self.close()
                return b""

    def _error(self, errno: Errno, text: str) -> bytes:
        if b"error-message+" in self._context.client_features:
            return self._packet(b"E." + text.encode("utf-8", "replace"))
        return self._packet(b"E%02x" % errno.value)


def _line(text: str) -> bytes:
    """Packets that show the user a line."""
    return b"".join(map(encode, console_packets(f"{text}\n".encode())))
