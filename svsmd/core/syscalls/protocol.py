# SPDX-License-Identifier: MIT
"""Class 3: programs serve protocols of the guest.

Spec: `svsmd.core.syscalls.table`; the structures are those of
svsmd/modules/sdk/include/svsm/structures.h.
"""

from __future__ import annotations

import struct
from typing import Final

from svsmd.core.access import load, store
from svsmd.core.calls import Reply
from svsmd.core.gate import Handler
from svsmd.core.guest_memory import GuestMemory
from svsmd.core.ipc.objects import Ready, wait_for
from svsmd.core.ipc.served_protocol import ProtocolPort, ServedProtocols
from svsmd.core.percpu import PerCpu
from svsmd.core.result_codes import SvsmError, SvsmResult
from svsmd.core.syscalls.dispatch import Arguments, Function
from svsmd.core.tasks.errno import CallFailed, Errno
from svsmd.core.tasks.process import Capability, Process
from svsmd.snp.faults import GuestFault
from svsmd.snp.types import PAGE_MASK, PAGE_SIZE

REQUEST: Final = struct.Struct("<IIQQQQQII")
"""struct svsm_request: size, call, token, RCX, RDX, R8, R9, APIC id, VMPL."""
ANSWER: Final = struct.Struct("<IIQQQQQ")
"""struct svsm_answer: size, flags, token, RAX, RCX, RDX, R8."""
ANSWER_DEFAULT: Final = 1
GUEST_TRANSFER_MAX: Final = 16 * 1024
"""Bytes that one call moves from or to the guest."""
_LOW_32: Final = 0xFFFF_FFFF


class ProtocolCalls:
    """The functions of class 3."""

    def __init__(self, served: ServedProtocols, memory: GuestMemory) -> None:
        self._served = served
        self._memory = memory

    @property
    def functions(self) -> dict[str, Function]:
        """By name."""
        return {
            "svsm_protocol_register": self._register, "svsm_protocol_receive": self._receive,
            "svsm_protocol_answer": self._answer,
            "svsm_protocol_answer_receive": self._answer_receive,
            "svsm_guest_read": self._guest_read, "svsm_guest_write": self._guest_write,
        }  # fmt: skip

    def _register(self, process: Process, arguments: Arguments) -> int:
        number, lowest, highest = (value & _LOW_32 for value in arguments[:3])
        if not process.program.capabilities & Capability.SERVE_PROTOCOL:
            raise CallFailed(Errno.EPERM)
        if number not in process.program.protocols:
            raise CallFailed(Errno.EPERM)
        if not 0 < lowest <= highest:
            raise CallFailed(Errno.EINVAL)
        process.handles.check_room(1)
        versions = range(lowest, highest + 1)
        return process.handles.add(self._served.register(process.quota, number, versions))

    # Requests --------------------------------------------------------------------------------

    def _receive(self, process: Process, arguments: Arguments) -> Handler[int]:
        handle, where, deadline, *_ = arguments
        port = process.handles.get(handle, ProtocolPort)
        return (yield from self._receive_at(process, port, where, deadline))

    def _receive_at(
        self, process: Process, port: ProtocolPort, where: int, deadline: int
    ) -> Handler[int]:
        process.space.check_writable(process.cpu, where, REQUEST.size)
        while True:
            yield from wait_for([port], lambda: Ready.READABLE in port.ready, deadline)
            asked = port.receive()
            if asked is not None:
                break
        request = asked.request
        raw = REQUEST.pack(
            REQUEST.size, request.call, asked.token, request.rcx, request.rdx, request.r8,
            request.r9, asked.cpu.apic_id, self._served.guest_vmpl,
        )  # fmt: skip
        process.space.write(process.cpu, where, raw)
        return 0

    def _answer(self, process: Process, arguments: Arguments) -> int:
        handle, where, *_ = arguments
        port = process.handles.get(handle, ProtocolPort)
        raw = process.space.read(process.cpu, where, ANSWER.size)
        size, flags, token, rax, rcx, rdx, r8 = ANSWER.unpack(raw)
        if size != ANSWER.size or flags & ~ANSWER_DEFAULT:
            raise CallFailed(Errno.EINVAL)
        reply = None if flags & ANSWER_DEFAULT else Reply(rax, rcx, rdx, r8)
        port.answer(process.cpu, token, reply)
        return 0

    def _answer_receive(self, process: Process, arguments: Arguments) -> Handler[int]:
        handle, _answer_at, where, deadline, *_ = arguments
        try:
            self._answer(process, arguments)
        except CallFailed as error:
            # A vCPU that is gone must not keep the others waiting.
            if error.errno is not Errno.ECANCELED:
                raise
        port = process.handles.get(handle, ProtocolPort)
        return (yield from self._receive_at(process, port, where, deadline))

    # The guest's memory ----------------------------------------------------------------------

    def _guest_read(self, process: Process, arguments: Arguments) -> Handler[int]:
        handle, token, gpa, buffer, size, *_ = arguments
        port = self._check_transfer(process, handle, size)
        process.space.check_writable(process.cpu, buffer, size)
        data = b""
        while len(data) < size:
            port.in_service(token)
            chunk = min(size - len(data), PAGE_SIZE - (gpa & PAGE_MASK))
            data += yield from self._access(process.cpu, gpa, chunk)
            gpa += chunk
        if data:
            process.space.write(process.cpu, buffer, data)
        return size

    def _guest_write(self, process: Process, arguments: Arguments) -> Handler[int]:
        handle, token, gpa, buffer, size, *_ = arguments
        port = self._check_transfer(process, handle, size)
        data = process.space.read(process.cpu, buffer, size) if size else b""
        while data:
            port.in_service(token)
            chunk = min(len(data), PAGE_SIZE - (gpa & PAGE_MASK))
            yield from self._access(process.cpu, gpa, chunk, data[:chunk])
            gpa, data = gpa + chunk, data[chunk:]
        return size

    @staticmethod
    def _check_transfer(process: Process, handle: int, size: int) -> ProtocolPort:
        port = process.handles.get(handle, ProtocolPort)
        if not process.program.capabilities & Capability.GUEST_MEMORY:
            raise CallFailed(Errno.EPERM)
        if size > GUEST_TRANSFER_MAX:
            raise CallFailed(Errno.EINVAL)
        return port

    def _access(
        self, cpu: PerCpu, gpa: int, nbytes: int, data: bytes | None = None
    ) -> Handler[bytes]:
        """Read from one page of the guest, or write `data` to it. Fails with EACCES, EBUSY."""
        page = gpa & ~PAGE_MASK
        try:
            self._memory.check_usable(cpu, page)
            with self._memory.locked(cpu, page):
                if data is None:
                    return (yield from load(cpu, gpa, nbytes))
                yield from store(cpu, gpa, data)
                return b""
        except SvsmError as error:
            busy = error.code == SvsmResult.SVSM_ERR_BUSY
            raise CallFailed(Errno.EBUSY if busy else Errno.EACCES) from None
        except GuestFault:
            raise CallFailed(Errno.EACCES) from None
