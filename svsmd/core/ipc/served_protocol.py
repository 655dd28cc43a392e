# SPDX-License-Identifier: MIT
"""Protocols of the guest that a program at CPL 3 serves.

Theory of operation. The program registers a number and gets a port, whose handle it keeps. A call
of the guest with that number becomes a request in the port's queue, and the vCPU's task waits. The
program takes the request, and answers it by its token. If that has not come within
`costs.MODULE_CALL_BUDGET`, the guest gets SVSM_ERR_INCOMPLETE with its registers as they were, and
makes the same call again: while it waits in the SVSM it takes no interrupts.

A vCPU has one request at a port at most. It stays there, and is the one that is answered, as long
as the vCPU calls again with the same registers. It is given up, and whatever the program still does
for it fails with ECANCELED, when the vCPU

* makes another call of the same protocol,
* is not what it was: deleted, replaced, or the guest was restarted.

When the port's last handle goes, so does the protocol: the vCPUs that wait, and all that call
again, find SVSM_ERR_UNSUPPORTED_PROTOCOL; how far the program had come with their calls nobody
knows. If the SVSM itself has a protocol of that number, it serves these calls instead.

What a program answers goes into four registers of the guest and nowhere else. It may also answer
that the SVSM's own protocol of that number shall serve the call.

Spec: 58019 (SVSM), section 4 (calling convention), section 5 (SVSM_ERR_INCOMPLETE).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from svsmd.core import costs
from svsmd.core.calls import CallProtocol, Reply, Request, Versioned
from svsmd.core.gate import Block, Handler
from svsmd.core.ipc.objects import IpcObject, Ready, Undertaker, Waker
from svsmd.core.percpu import GuestWorld, PerCpu
from svsmd.core.result_codes import SvsmResult
from svsmd.core.tasks.address_space import Quota
from svsmd.core.tasks.errno import CallFailed, Errno
from svsmd.core.tasks.task import WaitQueue
from svsmd.snp.types import Vmpl

PORT_PAGES: Final = 1


@dataclass(eq=False, slots=True)
class GuestRequest:
    """One call of the guest, from when it is made until its answer is fetched."""

    token: int
    cpu: PerCpu
    world: GuestWorld
    request: Request
    answered: bool = False
    reply: Reply | None = None
    """The answer; None stands for that of the SVSM's own protocol."""
    answer: WaitQueue = field(default_factory=lambda: WaitQueue("answer of a module"))

    @property
    def is_alive(self) -> bool:
        """Whether there is still somebody who could fetch the answer."""
        return self.cpu.world is self.world


class ProtocolPort(IpcObject):
    """Where the calls with one protocol number arrive."""

    def __init__(
        self,
        waker: Waker,
        undertaker: Undertaker,
        quota: Quota,
        registry: ServedProtocols,
        number: int,
        versions: range,
    ) -> None:
        super().__init__(waker, undertaker, quota, PORT_PAGES)
        self.number: Final = number
        self.versions: Final = versions
        self._registry = registry
        self._last_token = 0
        self._by_vcpu: dict[int, GuestRequest] = {}
        self._new: deque[GuestRequest] = deque()
        self._taken: dict[int, GuestRequest] = {}
        self._ended = False

    @property
    def ready(self) -> Ready:
        """READABLE if there is a request."""
        return Ready.READABLE if self._new else Ready.NONE

    # The guest's side ------------------------------------------------------------------------

    def ask(self, cpu: PerCpu, request: Request) -> Handler[Reply | None]:
        """Have a call of the guest served; None if the SVSM's own protocol shall do it.

        Nothing of the guest may be locked or mapped meanwhile: this blocks.
        """
        world = cpu.world
        if world is None:
            return Reply.to(request, SvsmResult.SVSM_ERR_INVALID_REQUEST)
        asked = self._by_vcpu.get(cpu.apic_id)
        if asked is None or asked.world is not world or asked.request != request:
            if asked is not None:
                self._forget(asked)
            self._last_token += 1
            asked = GuestRequest(self._last_token, cpu, world, request)
            self._by_vcpu[cpu.apic_id] = asked
            self._new.append(asked)
            self.changed(cpu)
        if not asked.answered:
            yield Block(asked.answer, cpu.port.rdtsc() + costs.MODULE_CALL_BUDGET)
        if asked.answered:
            self._forget(asked)
            return asked.reply
        if self._ended:
            return None
        return Reply.to(request, SvsmResult.SVSM_ERR_INCOMPLETE)

    def _forget(self, asked: GuestRequest) -> None:
        if self._by_vcpu.get(asked.cpu.apic_id) is asked:
            del self._by_vcpu[asked.cpu.apic_id]
        if self._taken.pop(asked.token, None) is None and asked in self._new:
            self._new.remove(asked)

    # The program's side ----------------------------------------------------------------------

    def receive(self) -> GuestRequest | None:
        """The request that has waited longest, which is being served now."""
        while self._new:
            asked = self._new.popleft()
            if asked.is_alive:
                self._taken[asked.token] = asked
                return asked
            self._forget(asked)
        return None

    def in_service(self, token: int) -> GuestRequest:
        """A request that was received and not answered. Fails with ECANCELED."""
        asked = self._taken.get(token)
        if asked is None:
            raise CallFailed(Errno.ECANCELED)
        if not asked.is_alive:
            self._forget(asked)
            raise CallFailed(Errno.ECANCELED)
        return asked

    def answer(self, cpu: PerCpu, token: int, reply: Reply | None) -> None:
        """Answer a request. Fails with ECANCELED."""
        asked = self.in_service(token)
        del self._taken[token]
        asked.answered, asked.reply = True, reply
        self._waker.wake_all(cpu, asked.answer)

    def destroy(self, cpu: PerCpu) -> None:
        """The program is gone."""
        super().destroy(cpu)
        self._ended = True
        self._registry.remove(self)
        for asked in self._by_vcpu.values():
            self._waker.wake_all(cpu, asked.answer)
        self._by_vcpu.clear()
        self._new.clear()
        self._taken.clear()


class ServedProtocols(Mapping[int, ProtocolPort]):
    """All ports by protocol number."""

    def __init__(self, waker: Waker, undertaker: Undertaker, guest_vmpl: Vmpl) -> None:
        self._waker = waker
        self._undertaker = undertaker
        self._ports: dict[int, ProtocolPort] = {}
        self.guest_vmpl: Final = guest_vmpl

    def __getitem__(self, number: int) -> ProtocolPort:
        return self._ports[number]

    def __iter__(self) -> Iterator[int]:
        return iter(self._ports)

    def __len__(self) -> int:
        return len(self._ports)

    def register(self, quota: Quota, number: int, versions: range) -> ProtocolPort:
        """A port without a handle yet. Fails with EEXIST, ENOMEM."""
        if number in self._ports:
            raise CallFailed(Errno.EEXIST)
        port = ProtocolPort(self._waker, self._undertaker, quota, self, number, versions)
        self._ports[number] = port
        return port

    def remove(self, port: ProtocolPort) -> None:
        """Its program is gone."""
        del self._ports[port.number]


class OfferedProtocols(Mapping[int, Versioned]):
    """All that the guest can call: what programs serve, and the SVSM's own behind it."""

    def __init__(self, served: ServedProtocols, own: Mapping[int, CallProtocol]) -> None:
        self._served = served
        self._own = own

    def __getitem__(self, number: int) -> Versioned:
        port = self._served.get(number)
        return self._own[number] if port is None else port

    def __iter__(self) -> Iterator[int]:
        return iter(self._served.keys() | self._own.keys())

    def __len__(self) -> int:
        return len(self._served.keys() | self._own.keys())
