# SPDX-License-Identifier: MIT
"""Channels against queues: nothing is lost, nothing is doubled, and nothing is left at the end."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
)

from svsmd.core.ipc.channel import END_PAGES, QUEUE_BYTES, QUEUE_MESSAGES, ChannelEnd
from svsmd.core.ipc.event import EVENT_PAGES, Event
from svsmd.core.ipc.kernel import IpcKernel
from svsmd.core.ipc.messages import MESSAGE_MAX, room_of
from svsmd.core.ipc.objects import IpcObject, Ready
from svsmd.core.memory import PageAllocator
from svsmd.core.percpu import PerCpu
from svsmd.core.tasks.address_space import Quota
from svsmd.core.tasks.errno import CallFailed, Errno
from svsmd.core.tasks.task import WaitQueue
from svsmd.snp.types import Gpa
from tests.own_memory import own_memory

MIB = 1 << 20
REGION = range(4 * MIB, 6 * MIB)
LIMIT = 12 * END_PAGES


class _Nobody:
    def wake_all(self, cpu: PerCpu, queue: WaitQueue) -> None:
        raise AssertionError("nobody waits")


@dataclass(eq=False)
class Held:
    """A handle of the test: what the model knows of an object."""

    target: IpcObject
    peer: Held | None = None
    queue: deque[tuple[bytes, tuple[Held, ...], int]] = field(default_factory=deque)
    call: int | None = None
    """Token of the call under way."""
    reply: tuple[bytes, tuple[Held, ...]] | None = None
    tokens: list[int] = field(default_factory=list)
    """Calls that were received here."""

    @property
    def end(self) -> ChannelEnd:
        assert isinstance(self.target, ChannelEnd)
        return self.target

    @property
    def room(self) -> int:
        return sum(room_of(len(data)) for data, _, _ in self.queue)

    def reaches(self, target: Held) -> bool:
        inside = [h for _, handles, _ in self.queue for h in handles]
        inside += self.reply[1] if self.reply is not None else ()
        return self is target or any(h.reaches(target) for h in inside)


def failure(attempt: Callable[[], None]) -> Errno | None:
    """Why something fails."""
    try:
        attempt()
    except CallFailed as error:
        return error.errno
    return None


class Channels(RuleBasedStateMachine):
    """Handles are in a bundle, in a message, or closed."""

    ends = Bundle("ends")
    events = Bundle("events")

    def __init__(self) -> None:
        super().__init__()
        self.memory, self.cpu = own_memory(0, REGION.stop)
        self.pages = PageAllocator(self.cpu, REGION, [], Gpa(REGION.start), poison=True)
        self.free = self.pages.statistics().free
        self.quota = Quota(LIMIT)
        self.kernel = IpcKernel(_Nobody(), self.pages)
        self.live: set[Held] = set()
        self.free_handles: set[Held] = set()
        """Those that are in no message."""

    # Making ----------------------------------------------------------------------------------

    @rule(target=ends)
    def make_channel(self) -> object:
        used, made = self.quota.used, list[ChannelEnd]()
        refused = failure(lambda: made.extend(self.kernel.channel(self.quota)))
        if used + 2 * END_PAGES > LIMIT:
            assert (refused, self.quota.used) == (Errno.ENOMEM, used)
            return multiple()
        one, other = made
        a, b = Held(one), Held(other)
        a.peer, b.peer = b, a
        return multiple(self.own(a), self.own(b))

    @rule(target=events)
    def make_event(self) -> object:
        made = list[Event]()
        refused = failure(lambda: made.append(self.kernel.event(self.quota, signaled=False)))
        if not made:
            assert refused is Errno.ENOMEM
            assert self.quota.used + EVENT_PAGES > LIMIT
            return multiple()
        return self.own(Held(made[0]))

    def own(self, held: Held) -> Held:
        held.target.opened()
        self.live.add(held)
        self.free_handles.add(held)
        return held

    # Messages --------------------------------------------------------------------------------

    def usable(self, *handles: Held) -> bool:
        return all(h in self.free_handles for h in handles)

    def expected_error(
        self, at: Held, moved: tuple[Held, ...], *, room: int | None
    ) -> Errno | None:
        """Why a message from there to its peer is refused."""
        if at.peer is None:
            return Errno.EPIPE
        if at in moved:
            return Errno.EINVAL
        if any(h.reaches(at.peer) for h in moved):
            return Errno.ELOOP
        if room is None:
            return None
        full = len(at.peer.queue) >= QUEUE_MESSAGES or at.peer.room + room > QUEUE_BYTES
        return Errno.EAGAIN if full else None

    @rule(
        at=ends,
        data=st.binary(max_size=100) | st.integers(0, MESSAGE_MAX).map(bytes),
        moved=st.lists(ends | events, max_size=4, unique=True),
        is_call=st.booleans(),
    )
    def send(self, at: Held, data: bytes, moved: list[Held], is_call: bool) -> None:
        if not self.usable(at, *moved) or (is_call and at.call is not None):
            return
        handles = tuple(moved)
        targets = [h.target for h in handles]
        wanted = self.expected_error(at, handles, room=room_of(len(data)))
        tokens = [0]

        def attempt() -> None:
            if is_call:
                tokens[0] = at.end.begin_call(self.cpu, data, targets).token
            else:
                at.end.send(self.cpu, data, targets)

        assert failure(attempt) is wanted
        if wanted is not None:
            return
        (token,) = tokens
        assert at.peer is not None
        at.peer.queue.append((data, handles, token))
        self.free_handles -= set(handles)
        if is_call:
            at.call = token

    @rule(at=ends)
    def receive(self, at: Held) -> None:
        if not self.usable(at):
            return
        first = at.end.first
        if not at.queue:
            assert first is None
            return
        data, handles, token = at.queue.popleft()
        assert first is not None
        assert (first.nbytes, first.token) == (len(data), token)
        got, objects = at.end.receive(self.cpu)
        assert got == data
        assert objects == tuple(h.target for h in handles)
        self.free_handles |= set(handles)
        if token:
            at.tokens.append(token)

    @rule(
        at=ends,
        data=st.binary(max_size=100),
        moved=st.lists(ends | events, max_size=4, unique=True),
        guess=st.integers(0, 3),
    )
    def reply(self, at: Held, data: bytes, moved: list[Held], guess: int) -> None:
        if not self.usable(at, *moved):
            return
        token = at.tokens.pop() if at.tokens else guess
        handles = tuple(moved)
        wanted = self.expected_error(at, handles, room=None)
        if wanted is None and at.peer is not None:
            waits = at.peer.call == token and at.peer.reply is None and at.peer.call is not None
            wanted = None if waits else Errno.ECANCELED
        targets = [h.target for h in handles]
        assert failure(lambda: at.end.reply(self.cpu, token, data, targets)) is wanted
        if wanted is not None:
            return
        assert at.peer is not None
        at.peer.reply = data, handles
        self.free_handles -= set(handles)

    @rule(at=ends, gives_up=st.booleans())
    def end_call(self, at: Held, gives_up: bool) -> None:
        if not self.usable(at) or at.call is None:
            return
        if at.reply is not None and not gives_up:
            data, handles = at.reply
            got, objects = at.end.receive_reply(self.cpu)
            assert (got, objects) == (data, tuple(h.target for h in handles))
            self.free_handles |= set(handles)
        elif at.reply is None and not gives_up:
            return
        else:
            at.end.end_call(self.cpu)
            for handle in at.reply[1] if at.reply is not None else ():
                self.closed(handle)
        at.call = at.reply = None

    # Ends ------------------------------------------------------------------------------------

    @rule(handle=consumes(ends) | consumes(events))
    def close(self, handle: Held) -> None:
        if self.usable(handle):
            handle.target.closed(self.cpu)
            self.closed(handle)

    def closed(self, held: Held) -> None:
        self.live.discard(held)
        self.free_handles.discard(held)
        for _, handles, _ in held.queue:
            for each in handles:
                self.closed(each)
        for each in held.reply[1] if held.reply is not None else ():
            self.closed(each)
        held.queue.clear()
        held.reply = None
        if held.peer is not None:
            held.peer.peer = None
            held.peer = None

    @invariant()
    def everything_is_as_the_model_has_it(self) -> None:
        cost = sum(EVENT_PAGES if isinstance(h.target, Event) else END_PAGES for h in self.live)
        assert self.quota.used == cost
        used = self.free - self.pages.statistics().free
        paid = sum(END_PAGES for h in self.live if isinstance(h.target, ChannelEnd))
        assert used <= paid, "messages have more memory than was paid for"
        for held in self.live:
            if isinstance(held.target, ChannelEnd):
                ready = held.target.ready
                assert (Ready.READABLE in ready) == bool(held.queue)
                assert (Ready.CLOSED in ready) == (held.peer is None)

    def teardown(self) -> None:
        for held in tuple(self.free_handles):
            if held in self.free_handles:
                held.target.closed(self.cpu)
                self.closed(held)
        assert not self.live, "a message that nobody can receive"
        assert self.quota.used == 0
        assert self.pages.statistics().free == self.free


TestChannels = Channels.TestCase
