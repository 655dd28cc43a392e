# SPDX-License-Identifier: MIT
"""Runs the guest on one vCPU, and serves the calls it makes.

Theory of operation, one turn: the guest's VMSA loses EFER.SVME, so that no VMRUN can use it while
the SVSM looks at it; if the guest came by VMGEXIT and its calling area says that a call is pending,
the call is served; SVME is set again; the host is asked to run the guest's VMPL.
The host may come back without any of that having happened, as often as it likes: then there is no
call, and the turn is an empty one.

Spec: 58019 (SVSM), section 4 (calling convention); 24593, 15.36.12 (VMRUN needs SVME).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final, Never, Protocol

from svsmd.core import costs
from svsmd.core.access import load, mapped, store
from svsmd.core.calls import CallProtocol, Reply, Request
from svsmd.core.gate import Block, Handler, Preempt, Reschedule, Sleepers, Vmgexit
from svsmd.core.guest_memory import GuestMemory
from svsmd.core.ipc.served_protocol import ProtocolPort
from svsmd.core.log import CoreLog
from svsmd.core.memory import OutOfMemory
from svsmd.core.percpu import GuestWorld, PerCpu
from svsmd.core.recent_calls import CallRecord, RecentCalls
from svsmd.core.result_codes import SvsmError, SvsmResult, memory_required
from svsmd.snp import ghcb_msr
from svsmd.snp.events import EventClass, SnpEvents
from svsmd.snp.faults import GuestFault
from svsmd.snp.ghcb_msr import GhcbInfo, UnexpectedResponse
from svsmd.snp.types import PAGE_SIZE, Gpa, Vmpl
from svsmd.snp.vmsa import Efer, VmexitCode, Vmsa

CAA_CALL_PENDING: Final = 0
"""Offset of the one-byte flag in the calling area."""
CAA_MEM_AVAILABLE: Final = 1
"""Offset of the one-byte flag in the calling area that says that SVSM_CORE_WITHDRAW_MEM would give
something back."""

_U64: Final = struct.Struct("<Q")
_SVME: Final = int(Efer.SVME)
"""As a plain number: the complement of a flag would lack the bits that have no name."""


class CpuSharing(Protocol):
    """How a task that runs the guest shares its CPU with others (`Scheduler`)."""

    def resumed(self, apic_id: int, /) -> Sleepers:
        """Where it waits until the host runs VMPL0 again, for whatever reason."""
        ...

    def wants_cpu(self, cpu: PerCpu, /) -> bool:
        """Whether another task should run before the guest does."""
        ...

    def before_guest(self, cpu: PerCpu, /) -> Handler[None]:
        """The guest is about to get the CPU."""
        ...

    def after_guest(self, cpu: PerCpu, /) -> Handler[None]:
        """The host took it away from the guest without being asked."""
        ...


class RequestLoop:
    """What all vCPUs share: the protocols by number, the guest's memory and its VMPL."""

    def __init__(
        self,
        memory: GuestMemory,
        protocols: Mapping[int, CallProtocol],
        served: Mapping[int, ProtocolPort],
        guest_vmpl: Vmpl,
        log: CoreLog,
        refused: Callable[[PerCpu], Handler[bool]],
        sharing: CpuSharing,
        events: SnpEvents | None = None,
    ) -> None:
        """`served` are protocols that programs serve, which come before `protocols` of the same
        number. `refused` handles a refusal of the host to run the guest: whether there is one
        again. `events` is told of the calls.
        """
        self._memory = memory
        self._protocols = protocols
        self._served = served
        self._run_guest = ghcb_msr.RunVmpl(guest_vmpl).encode()
        self._log = log
        self._on_refusal = refused
        self._sharing = sharing
        self.recent: Final = RecentCalls()
        self._events = events or SnpEvents()

    def run(self, cpu: PerCpu) -> Handler[Never]:
        """The life of a vCPU after boot: a task that never leaves its CPU."""
        sharing = self._sharing
        idle = False
        while True:
            world = cpu.world
            if world is None and not idle:
                self._log.write(f"vCPU {cpu.apic_id} has no VMSA and no calling area, and waits")
            idle = world is None
            if world is None:
                yield Block(sharing.resumed(cpu.apic_id))
                continue
            if self._is_busy(cpu, world):
                yield Preempt()
                continue
            called = yield from self._turn(cpu, world)
            if not called:
                # An interrupt of ours may be the reason, which the host's answer to RUN_VMPL does
                # not tell. As long as it is pending, the host would not run the guest at all.
                yield from sharing.after_guest(cpu)
            if cpu.world is world:
                if sharing.wants_cpu(cpu):
                    yield Reschedule()
                    continue  # the guest's world may be another one now
                yield from sharing.before_guest(cpu)
                answer = yield Vmgexit(self._run_guest)
                if self._is_refusal(cpu, answer) and not (yield from self._on_refusal(cpu)):
                    yield Block(sharing.resumed(cpu.apic_id))

    def _is_busy(self, cpu: PerCpu, world: GuestWorld) -> bool:
        return self._memory.is_locked(cpu, world.vmsa) or self._memory.is_locked(cpu, world.caa)

    def _turn(self, cpu: PerCpu, world: GuestWorld) -> Handler[bool]:
        """Everything but the guest itself; returns whether it had called.

        It may run if this vCPU's world is still the same.
        """
        began = cpu.port.rdtsc()
        with self._held(cpu, world):
            vmsa = yield from self._stop_guest(cpu, world)
            request = yield from self._take_request(cpu, world, vmsa)
            port = None if request is None else self._served.get(request.protocol)
            if request is None or port is None:
                yield from self._finish(cpu, world, request, None, began)
                return request is not None
        # Others go on meanwhile, so nothing is held: not even the vCPU itself is sure to be there
        # afterwards.
        reply = yield from port.ask(cpu, request)
        while cpu.world is world and self._is_busy(cpu, world):
            yield Preempt()
        if cpu.world is world:
            with self._held(cpu, world):
                yield from self._finish(cpu, world, request, reply, began)
        return True

    @contextmanager
    def _held(self, cpu: PerCpu, world: GuestWorld) -> Iterator[None]:
        """The two pages of a vCPU are locked, and mapped."""
        memory, vmsa_page, caa_page = self._memory, world.vmsa, world.caa
        with (
            memory.locked(cpu, vmsa_page),
            memory.locked(cpu, caa_page),
            mapped(cpu, vmsa_page),
            mapped(cpu, caa_page),
        ):
            yield

    def _finish(
        self,
        cpu: PerCpu,
        world: GuestWorld,
        request: Request | None,
        reply: Reply | None,
        began: int,
    ) -> Handler[None]:
        """Serve a request that has no reply yet, write the reply, let the guest run."""
        if request is not None:
            if reply is None:
                reply = yield from self._serve(cpu, request)
            ticks = cpu.port.rdtsc() - began
            self.recent.append(
                CallRecord(
                    cpu.apic_id, request.protocol, request.call, request.rcx, reply.rax, began,
                    ticks,
                )
            )  # fmt: skip
            if self._events.armed & EventClass.SVSM.bit:
                self._tell(request, reply)
            # DELETE_VCPU of the caller itself: the page belongs to the guest again.
            if self._memory.world_of(world.vmsa) is world:
                yield from _write_reply(cpu, world.vmsa, reply)
        if cpu.world is world:
            yield from self._show_available(cpu, world)
            # No flush here: whoever takes a right away from the guest flushes at once.
            yield from set_svme(cpu, world.vmsa, True)

    def _tell(self, request: Request, reply: Reply) -> None:
        values = {
            "protocol": request.protocol, "call": request.call,
            "rcx": request.rcx, "rdx": request.rdx, "result": reply.rax,
        }  # fmt: skip
        self._events.note(EventClass.SVSM, values)

    def _show_available(self, cpu: PerCpu, world: GuestWorld) -> Handler[None]:
        """Say in the calling area whether memory can be withdrawn, if that has changed."""
        available = self._memory.can_withdraw
        if world.mem_available is not available:
            yield from store(cpu, world.caa + CAA_MEM_AVAILABLE, bytes([available]))
            world.mem_available = available

    @staticmethod
    def _stop_guest(cpu: PerCpu, world: GuestWorld) -> Handler[Vmsa]:
        """Clear SVME, and return a copy of the guest's registers."""
        yield from set_svme(cpu, world.vmsa, False)
        return Vmsa.copy_of((yield from load(cpu, world.vmsa, PAGE_SIZE)))

    @staticmethod
    def _take_request(cpu: PerCpu, world: GuestWorld, vmsa: Vmsa) -> Handler[Request | None]:
        """The call that the guest made, if it made one; call_pending is clear afterwards."""
        if vmsa.guest_exitcode != VmexitCode.VMGEXIT:
            return None
        pending = world.caa + CAA_CALL_PENDING
        if (yield from load(cpu, pending, 1)) == b"\0":
            return None
        yield from store(cpu, pending, b"\0")
        return Request(vmsa.rax, vmsa.rcx, vmsa.rdx, vmsa.r8, vmsa.r9)

    def _serve(self, cpu: PerCpu, request: Request) -> Handler[Reply]:
        cpu.port.charge(costs.REQUEST)
        protocol = self._protocols.get(request.protocol)
        if protocol is None:
            return Reply.to(request, SvsmResult.SVSM_ERR_UNSUPPORTED_PROTOCOL)
        try:
            return (yield from protocol.handle(cpu, request))
        except SvsmError as error:
            return Reply.to(request, error.code)
        except OutOfMemory as error:
            return Reply.to(request, memory_required(error.npages))
        except GuestFault:
            return Reply.to(request, SvsmResult.SVSM_ERR_INVALID_ADDRESS)

    def _is_refusal(self, cpu: PerCpu, answer: int) -> bool:
        """Whether the host says that it cannot run the guest."""
        try:
            error = ghcb_msr.parse_error(answer, GhcbInfo.RUN_VMPL_RESPONSE)
        except UnexpectedResponse:
            return False
        if error:
            self._log.write(f"vCPU {cpu.apic_id}: the hypervisor refuses RUN_VMPL: {error:#x}")
        return bool(error)


def set_svme(cpu: PerCpu, vmsa: Gpa, enable: bool) -> Handler[bool]:
    """Allow or forbid VMRUN to use a VMSA (24593, 15.36.12); returns what it was before."""
    where = vmsa + Vmsa.efer.offset
    efer = int.from_bytes((yield from load(cpu, where, _U64.size)), "little")
    changed = efer | _SVME if enable else efer & ~_SVME
    yield from store(cpu, where, _U64.pack(changed))
    return bool(efer & _SVME)


def _write_reply(cpu: PerCpu, vmsa: Gpa, reply: Reply) -> Handler[None]:
    for field, value in (
        (Vmsa.rax, reply.rax),
        (Vmsa.rcx, reply.rcx),
        (Vmsa.rdx, reply.rdx),
        (Vmsa.r8, reply.r8),
    ):
        yield from store(cpu, vmsa + field.offset, _U64.pack(value))
