# SPDX-License-Identifier: MIT
"""Channels: two ends, and a queue of messages from each to the other.

Theory of operation. An end has one handle, so one process at a time. What is sent at one end waits
in the queue of the other; queues have bounds that the maker of the channel has paid for. A call is
a message with a token, whose sender waits until somebody answers the token at the other end; the
answer takes no room in the queue. Since a process waits for one thing at a time, an end has one
call under way at most.

Handles move with messages. A handle that is in a message is nobody's until the message is received:
one that could only be received through itself would never be closed, so it is refused (ELOOP).

Spec: none.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from svsmd.core import costs
from svsmd.core.ipc.messages import (
    HANDLES_MAX,
    MESSAGE_MAX,
    Message,
    MessageStore,
    room_of,
)
from svsmd.core.ipc.objects import IpcObject, Ready, Undertaker, Waker
from svsmd.core.percpu import PerCpu
from svsmd.core.tasks.address_space import Quota
from svsmd.core.tasks.errno import CallFailed, Errno
from svsmd.snp.types import PAGE_SIZE

QUEUE_MESSAGES: Final = 16
"""Messages that wait at an end."""
QUEUE_BYTES: Final = 4 * PAGE_SIZE
"""Memory that they take."""
END_PAGES: Final = (QUEUE_BYTES + MESSAGE_MAX) // PAGE_SIZE
"""What an end costs: its queue, and the answer to its call."""


class Call:
    """A call under way: its token, and the answer when there is one."""

    def __init__(self, token: int) -> None:
        self.token: Final = token
        self.reply: Message | None = None


class ChannelEnd(IpcObject):
    """One end of a channel; `make_channel` makes two."""

    movable = True

    def __init__(
        self, waker: Waker, undertaker: Undertaker, quota: Quota, store: MessageStore
    ) -> None:
        super().__init__(waker, undertaker, quota, END_PAGES)
        self._store = store
        self._queue: deque[Message] = deque()
        self._room_taken = 0
        self._last_token = 0
        self._call: Call | None = None
        self.peer: ChannelEnd | None = None
        """The other end, None if it is closed."""

    @property
    def ready(self) -> Ready:
        """READABLE, WRITABLE, CLOSED."""
        ready = Ready.READABLE if self._queue else Ready.NONE
        if self.peer is None:
            return ready | Ready.CLOSED
        return ready | (Ready.WRITABLE if self.peer.has_room(MESSAGE_MAX) else Ready.NONE)

    def has_room(self, nbytes: int) -> bool:
        """Whether a message of that size can join those that wait here."""
        return (
            len(self._queue) < QUEUE_MESSAGES and self._room_taken + room_of(nbytes) <= QUEUE_BYTES
        )

    def can_send(self, nbytes: int) -> bool:
        """Whether `send` would not fail with EAGAIN."""
        return self.peer is None or self.peer.has_room(nbytes)

    @property
    def held(self) -> Iterator[IpcObject]:
        """What the handles refer to that wait here."""
        for message in self._queue:
            yield from message.handles
        if self._call is not None and self._call.reply is not None:
            yield from self._call.reply.handles

    # Sending ---------------------------------------------------------------------------------

    def check_handles(self, cpu: PerCpu, handles: Sequence[IpcObject]) -> None:
        """Whether these may move to the other end. Fails with EINVAL, ELOOP."""
        if len(handles) > HANDLES_MAX or self in handles:
            raise CallFailed(Errno.EINVAL)
        if any(not each.movable for each in handles):
            raise CallFailed(Errno.EINVAL)
        if self.peer is not None and _leads_to(cpu, handles, self.peer):
            raise CallFailed(Errno.ELOOP)

    def _peer_for(self, cpu: PerCpu, data: bytes, handles: Sequence[IpcObject]) -> ChannelEnd:
        """The other end, if there is one and these may go there."""
        if self.peer is None:
            raise CallFailed(Errno.EPIPE)
        if len(data) > MESSAGE_MAX:
            raise CallFailed(Errno.EMSGSIZE)
        self.check_handles(cpu, handles)
        return self.peer

    def send(
        self, cpu: PerCpu, data: bytes, handles: Sequence[IpcObject] = (), token: int = 0
    ) -> None:
        """Put a message into the queue of the other end.

        Its handles are the message's then; if this fails they are still the caller's. Fails with
        EPIPE, EMSGSIZE, EAGAIN (no room), EINVAL, ELOOP. Raises OutOfMemory.
        """
        peer = self._peer_for(cpu, data, handles)
        if not peer.has_room(len(data)):
            raise CallFailed(Errno.EAGAIN)
        peer._queue.append(self._store.put(cpu, data, handles, token))
        peer._room_taken += room_of(len(data))
        peer.changed(cpu)

    def begin_call(self, cpu: PerCpu, data: bytes, handles: Sequence[IpcObject] = ()) -> Call:
        """As `send`, with a token that the other end can answer until `end_call`."""
        token = self._last_token + 1
        self.send(cpu, data, handles, token)
        self._last_token = token
        self._call = Call(token)
        return self._call

    def end_call(self, cpu: PerCpu) -> None:
        """Nobody waits for an answer any more: one that is there, and was not taken, is dropped."""
        call, self._call = self._call, None
        if call is not None and call.reply is not None:
            self._store.drop(cpu, call.reply)

    def reply(
        self, cpu: PerCpu, token: int, data: bytes, handles: Sequence[IpcObject] = ()
    ) -> None:
        """Answer a call of the other end.

        Fails as `send`, and with ECANCELED if nobody waits for that answer; not with EAGAIN.
        """
        peer = self._peer_for(cpu, data, handles)
        call = peer._call
        if call is None or call.token != token or call.reply is not None:
            raise CallFailed(Errno.ECANCELED)
        call.reply = self._store.put(cpu, data, handles)
        peer.changed(cpu)

    # Receiving -------------------------------------------------------------------------------

    @property
    def first(self) -> Message | None:
        """The message that is received next."""
        return self._queue[0] if self._queue else None

    def receive(self, cpu: PerCpu) -> tuple[bytes, tuple[IpcObject, ...]]:
        """Take `first` out of the queue; its handles are the caller's then."""
        message = self._queue.popleft()
        self._room_taken -= room_of(message.nbytes)
        if self.peer is not None:
            self.peer.changed(cpu)
        return self._take(cpu, message)

    def receive_reply(self, cpu: PerCpu) -> tuple[bytes, tuple[IpcObject, ...]]:
        """Take the answer of the call under way, which ends with it."""
        assert self._call is not None, "there is a call"
        assert self._call.reply is not None, "it is answered"
        message, self._call = self._call.reply, None
        return self._take(cpu, message)

    def _take(self, cpu: PerCpu, message: Message) -> tuple[bytes, tuple[IpcObject, ...]]:
        data = self._store.read(cpu, message)
        self._store.free(cpu, message)
        return data, message.handles

    # End -------------------------------------------------------------------------------------

    def destroy(self, cpu: PerCpu) -> None:
        """Drop what waits here, and tell the other end."""
        super().destroy(cpu)
        self.end_call(cpu)
        while self._queue:
            self._store.drop(cpu, self._queue.popleft())
        peer, self.peer = self.peer, None
        if peer is not None:
            peer.peer = None
            peer.changed(cpu)


def make_channel(
    waker: Waker, undertaker: Undertaker, quota: Quota, store: MessageStore
) -> tuple[ChannelEnd, ChannelEnd]:
    """Two ends, without handles yet. Fails with ENOMEM."""
    one = ChannelEnd(waker, undertaker, quota, store)
    try:
        other = ChannelEnd(waker, undertaker, quota, store)
    except CallFailed:
        quota.refund(END_PAGES)
        raise
    one.peer, other.peer = other, one
    return one, other


def _leads_to(cpu: PerCpu, handles: Iterable[IpcObject], target: ChannelEnd) -> bool:
    """Whether `target` is one of these, or waits in a message at one of them, and so on.

    An end has one handle, so this is a walk through a tree.
    """
    left = list(handles)
    while left:
        each = left.pop()
        cpu.port.charge(costs.MEMORY_ACCESS)
        if each is target:
            return True
        if isinstance(each, ChannelEnd):
            left += each.held
    return False
