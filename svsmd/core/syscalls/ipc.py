# SPDX-License-Identifier: MIT
"""Class 2: channels, shared memory, events, services.

Spec: `svsmd.core.syscalls.table`; the structures are those of
svsmd/modules/sdk/include/svsm/structures.h.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

from svsmd.core import costs
from svsmd.core.gate import Handler
from svsmd.core.ipc.channel import ChannelEnd
from svsmd.core.ipc.event import Event
from svsmd.core.ipc.kernel import IpcKernel
from svsmd.core.ipc.messages import HANDLES_MAX, MESSAGE_MAX
from svsmd.core.ipc.objects import IpcObject, Ready, wait_for
from svsmd.core.ipc.services import SERVICE_NAME_MAX, Service
from svsmd.core.syscalls.dispatch import Arguments, Function, signed
from svsmd.core.tasks.errno import CallFailed, Errno
from svsmd.core.tasks.process import Capability, Process

MESSAGE: Final = struct.Struct("<IIQQI4iI")
"""struct svsm_message: size, length, data, token, count of handles, handles, reserved."""
WAIT_ITEM: Final = struct.Struct("<iIII")
"""struct svsm_wait_item: handle, wanted, ready, reserved."""
WAIT_MAX: Final = 16
"""Objects that one call waits for."""
_PAIR: Final = struct.Struct("<ii")


@dataclass(frozen=True, slots=True)
class MessageBuffer:
    """A struct svsm_message of a program, read once."""

    where: int
    data: int
    length: int
    token: int
    handles: tuple[int, ...]

    @classmethod
    def read(cls, process: Process, where: int) -> Self:
        """Fails with EFAULT, EINVAL."""
        raw = process.space.read(process.cpu, where, MESSAGE.size)
        size, length, data, token, count, *handles, reserved = MESSAGE.unpack(raw)
        if size != MESSAGE.size or count > HANDLES_MAX or reserved:
            raise CallFailed(Errno.EINVAL)
        return cls(where, data, length, token, tuple(handles[:count]))

    def contents(self, process: Process) -> bytes:
        """What is to be sent. Fails with EFAULT, EMSGSIZE."""
        if self.length > MESSAGE_MAX:
            raise CallFailed(Errno.EMSGSIZE)
        return process.space.read(process.cpu, self.data, self.length) if self.length else b""

    def objects(self, process: Process) -> tuple[IpcObject, ...]:
        """What its handles refer to. Fails with EBADF, EINVAL (one twice)."""
        if len(set(self.handles)) != len(self.handles):
            raise CallFailed(Errno.EINVAL)
        return tuple(process.handles.get(handle, IpcObject) for handle in self.handles)

    def check_writable(self, process: Process, nbytes: int | None = None) -> None:
        """That so many bytes, or all for which there is room, can be received. EFAULT."""
        wanted = min(self.length, MESSAGE_MAX) if nbytes is None else nbytes
        process.space.check_writable(process.cpu, self.where, MESSAGE.size)
        if wanted:
            process.space.check_writable(process.cpu, self.data, wanted)

    def check_fits(self, process: Process, nbytes: int, count: int) -> None:
        """That a message can be received. Fails with EFAULT, EMSGSIZE, EMFILE."""
        self.check_writable(process, min(nbytes, self.length))
        if nbytes > self.length or count > len(self.handles):
            self._write_header(process, nbytes, 0, (-1,) * count)
            raise CallFailed(Errno.EMSGSIZE)
        process.handles.check_room(count)

    def write(
        self, process: Process, data: bytes, objects: Sequence[IpcObject], token: int = 0
    ) -> None:
        """Receive what `check_fits` has checked."""
        handles = [process.handles.give(each) for each in objects]
        if data:
            process.space.write(process.cpu, self.data, data)
        self._write_header(process, len(data), token, handles)

    def _write_header(
        self, process: Process, nbytes: int, token: int, handles: Sequence[int]
    ) -> None:
        padded = [*handles, *(-1,) * (HANDLES_MAX - len(handles))]
        raw = MESSAGE.pack(MESSAGE.size, nbytes, self.data, token, len(handles), *padded, 0)
        process.space.write(process.cpu, self.where, raw)


class IpcCalls:
    """The functions of class 2."""

    def __init__(self, kernel: IpcKernel) -> None:
        self._kernel = kernel

    @property
    def functions(self) -> dict[str, Function]:
        """By name."""
        return {
            "svsm_channel_create": self._channel_create, "svsm_send": self._send,
            "svsm_receive": self._receive, "svsm_call": self._call, "svsm_reply": self._reply,
            "svsm_reply_receive": self._reply_receive, "svsm_event_create": self._event_create,
            "svsm_event_signal": self._event_signal, "svsm_event_clear": self._event_clear,
            "svsm_wait_many": self._wait_many, "svsm_memory_create": self._memory_create,
            "svsm_duplicate": self._duplicate, "svsm_service_register": self._register,
            "svsm_service_accept": self._accept, "svsm_service_connect": self._connect,
        }  # fmt: skip

    # Channels --------------------------------------------------------------------------------

    def _channel_create(self, process: Process, arguments: Arguments) -> int:
        process.handles.check_room(2)
        process.space.check_writable(process.cpu, arguments[0], _PAIR.size)
        ends = self._kernel.channel(process.quota)
        numbers = _PAIR.pack(*(process.handles.add(end) for end in ends))
        process.space.write(process.cpu, arguments[0], numbers)
        return 0

    def _send(self, process: Process, arguments: Arguments) -> Handler[int]:
        channel, where, deadline, *_ = arguments
        end = process.handles.get(channel, ChannelEnd)
        message = MessageBuffer.read(process, where)
        data, objects = message.contents(process), message.objects(process)
        end.check_handles(process.cpu, objects)
        yield from wait_for([end], lambda: end.can_send(len(data)), deadline)
        _charge_copy(process)
        end.send(process.cpu, data, objects)
        _take(process, message)
        return 0

    def _receive(self, process: Process, arguments: Arguments) -> Handler[int]:
        channel, where, deadline, *_ = arguments
        end = process.handles.get(channel, ChannelEnd)
        return (yield from self._receive_at(process, end, where, deadline))

    @staticmethod
    def _receive_at(process: Process, end: ChannelEnd, where: int, deadline: int) -> Handler[int]:
        buffer = MessageBuffer.read(process, where)
        yield from wait_for([end], lambda: end.first is not None or end.peer is None, deadline)
        first = end.first
        if first is None:
            raise CallFailed(Errno.EPIPE)
        buffer.check_fits(process, first.nbytes, len(first.handles))
        _charge_copy(process)
        data, objects = end.receive(process.cpu)
        buffer.write(process, data, objects, first.token)
        return len(data)

    def _call(self, process: Process, arguments: Arguments) -> Handler[int]:
        channel, where, reply_at, deadline, *_ = arguments
        end = process.handles.get(channel, ChannelEnd)
        message, buffer = MessageBuffer.read(process, where), MessageBuffer.read(process, reply_at)
        data, objects = message.contents(process), message.objects(process)
        buffer.check_writable(process)
        end.check_handles(process.cpu, objects)
        yield from wait_for([end], lambda: end.can_send(len(data)), deadline)
        _charge_copy(process)
        call = end.begin_call(process.cpu, data, objects)
        _take(process, message)
        try:
            yield from wait_for([end], lambda: call.reply is not None or end.peer is None, deadline)
            if call.reply is None:
                raise CallFailed(Errno.ECANCELED)
            buffer.check_fits(process, call.reply.nbytes, len(call.reply.handles))
            _charge_copy(process)
            data, objects = end.receive_reply(process.cpu)
            buffer.write(process, data, objects)
        except BaseException as error:
            # With GeneratorExit the whole machine is thrown away, and no CPU runs the task.
            if not isinstance(error, GeneratorExit):
                end.end_call(process.cpu)
            raise
        end.end_call(process.cpu)
        return len(data)

    def _reply(self, process: Process, arguments: Arguments) -> int:
        channel, where, *_ = arguments
        end = process.handles.get(channel, ChannelEnd)
        message = MessageBuffer.read(process, where)
        data, objects = message.contents(process), message.objects(process)
        _charge_copy(process)
        end.reply(process.cpu, message.token, data, objects)
        _take(process, message)
        return 0

    def _reply_receive(self, process: Process, arguments: Arguments) -> Handler[int]:
        channel, _reply_at, where, deadline, *_ = arguments
        try:
            self._reply(process, arguments)
        except CallFailed as error:
            # Who gave its call up, or is gone, must not keep a server from the next one.
            if error.errno not in (Errno.ECANCELED, Errno.EPIPE):
                raise
        end = process.handles.get(channel, ChannelEnd)
        return (yield from self._receive_at(process, end, where, deadline))

    # Events, waiting -------------------------------------------------------------------------

    def _event_create(self, process: Process, arguments: Arguments) -> int:
        process.handles.check_room(1)
        event = self._kernel.event(process.quota, signaled=bool(signed(arguments[0], 32)))
        return process.handles.add(event)

    def _event_signal(self, process: Process, arguments: Arguments) -> int:
        process.handles.get(arguments[0], Event).signal(process.cpu)
        return 0

    def _event_clear(self, process: Process, arguments: Arguments) -> int:
        process.handles.get(arguments[0], Event).clear()
        return 0

    def _wait_many(self, process: Process, arguments: Arguments) -> Handler[int]:
        where, count, deadline, *_ = arguments
        if not 0 < count <= WAIT_MAX:
            raise CallFailed(Errno.EINVAL)
        nbytes = count * WAIT_ITEM.size
        process.space.check_writable(process.cpu, where, nbytes)
        items: list[tuple[int, int, IpcObject]] = []
        for handle, wanted, _ready, reserved in WAIT_ITEM.iter_unpack(
            process.space.read(process.cpu, where, nbytes)
        ):
            if reserved or wanted & ~sum(Ready):
                raise CallFailed(Errno.EINVAL)
            items.append((handle, wanted, process.handles.get(handle, IpcObject)))

        def found() -> list[int]:
            return [target.ready & (wanted | Ready.CLOSED) for _, wanted, target in items]

        yield from wait_for([target for *_, target in items], lambda: any(found()), deadline)
        ready = found()
        process.space.write(
            process.cpu,
            where,
            b"".join(
                WAIT_ITEM.pack(handle, wanted, bits, 0)
                for (handle, wanted, _), bits in zip(items, ready, strict=True)
            ),
        )
        return sum(map(bool, ready))

    # Shared memory, handles ------------------------------------------------------------------

    def _memory_create(self, process: Process, arguments: Arguments) -> int:
        process.handles.check_room(1)
        return process.handles.add(self._kernel.shared_memory(process.quota, arguments[0]))

    def _duplicate(self, process: Process, arguments: Arguments) -> int:
        target = process.handles.get(signed(arguments[0], 32), IpcObject)
        if not target.duplicable:
            raise CallFailed(Errno.EINVAL)
        return process.handles.add(target)

    # Services --------------------------------------------------------------------------------

    def _register(self, process: Process, arguments: Arguments) -> int:
        if not process.program.capabilities & Capability.REGISTER:
            raise CallFailed(Errno.EPERM)
        name = _read_name(process, arguments[0])
        process.handles.check_room(1)
        return process.handles.add(self._kernel.service(process.cpu, process.quota, name))

    def _accept(self, process: Process, arguments: Arguments) -> Handler[int]:
        handle, deadline, *_ = arguments
        service = process.handles.get(handle, Service)
        process.handles.check_room(1)
        yield from wait_for([service], lambda: bool(service.ready), deadline)
        return process.handles.give(service.accept(process.cpu))

    def _connect(self, process: Process, arguments: Arguments) -> Handler[int]:
        name_at, deadline, *_ = arguments
        name = _read_name(process, name_at)
        if name not in process.program.services:
            raise CallFailed(Errno.EPERM)
        process.handles.check_room(1)
        services = self._kernel.services
        yield from wait_for([services], lambda: services.find(name) is not None, deadline)
        service = services.find(name)
        assert service is not None, "it was there, and nobody ran since"
        while not (service.ended or service.make_room(process.cpu)):
            # Those that wait may give up, and so may those that come after them.
            yield from _until_others_wait(service, deadline)
        if service.ended:
            raise CallFailed(Errno.ECANCELED)
        mine, servers = self._kernel.channel(process.quota)
        service.offer(process.cpu, servers)
        return process.handles.add(mine)


def _until_others_wait(service: Service, deadline: int) -> Handler[None]:
    """Until a connection of its backlog is accepted or given up, or the service ends."""
    before = service.waiting
    yield from wait_for(
        [service, *before],
        lambda: service.ended or service.waiting != before or any(e.peer is None for e in before),
        deadline,
    )


def _take(process: Process, message: MessageBuffer) -> None:
    """The handles of a message that was sent are its own now."""
    for handle in message.handles:
        process.handles.take(handle)


def _charge_copy(process: Process) -> None:
    process.cpu.port.charge(costs.MESSAGE)


def _read_name(process: Process, where: int) -> str:
    """The name of a service. Fails with EFAULT, ENAMETOOLONG, EINVAL."""
    try:
        name = process.space.read_string(process.cpu, where, SERVICE_NAME_MAX).decode("ascii")
    except UnicodeDecodeError:
        raise CallFailed(Errno.EINVAL) from None
    if not name:
        raise CallFailed(Errno.EINVAL)
    return name
