# SPDX-License-Identifier: MIT
"""Services: channels by name.

A server registers a name and accepts connections; each is a channel that the client pays for, and
that it may use before it is accepted. Which names a program may connect to is said where it is
started; who may register one has a capability for that.

Spec: none.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from svsmd.core.ipc.channel import ChannelEnd
from svsmd.core.ipc.objects import IpcObject, Ready, Undertaker, Waker, Watched
from svsmd.core.percpu import PerCpu
from svsmd.core.tasks.address_space import Quota
from svsmd.core.tasks.errno import CallFailed, Errno

BACKLOG: Final = 8
"""Connections that wait to be accepted."""
SERVICE_NAME_MAX: Final = 31
SERVICE_PAGES: Final = 1


class Service(IpcObject):
    """A name that its server holds as long as it has the handle."""

    def __init__(
        self, waker: Waker, undertaker: Undertaker, quota: Quota, registry: Services, name: str
    ) -> None:
        super().__init__(waker, undertaker, quota, SERVICE_PAGES)
        self.name: Final = name
        self._registry = registry
        self._waiting: deque[ChannelEnd] = deque()
        self.ended = False

    @property
    def ready(self) -> Ready:
        """READABLE if there is something to accept."""
        return Ready.READABLE if self._waiting else Ready.NONE

    @property
    def waiting(self) -> tuple[ChannelEnd, ...]:
        """Connections that wait to be accepted, those that were given up included."""
        return tuple(self._waiting)

    def make_room(self, cpu: PerCpu) -> bool:
        """Whether `offer` is possible, without those that have given up meanwhile."""
        for end in [end for end in self._waiting if end.peer is None]:
            self._waiting.remove(end)
            end.closed(cpu)
        return len(self._waiting) < BACKLOG

    def offer(self, cpu: PerCpu, end: ChannelEnd) -> None:
        """A client wants a connection; the handle that the server will get counts already."""
        end.opened()
        self._waiting.append(end)
        self.changed(cpu)

    def accept(self, cpu: PerCpu) -> ChannelEnd:
        """The connection that has waited longest; its handle is the server's."""
        end = self._waiting.popleft()
        self.changed(cpu)
        return end

    def destroy(self, cpu: PerCpu) -> None:
        """The name is free, and nobody will be accepted."""
        super().destroy(cpu)
        self.ended = True
        self._registry.remove(self)
        while self._waiting:
            self._waiting.popleft().closed(cpu)
        self.changed(cpu)


class Services(Watched):
    """All services by name; it changes when there is a new one."""

    def __init__(self, waker: Waker) -> None:
        super().__init__(waker)
        self._services: dict[str, Service] = {}

    def find(self, name: str) -> Service | None:
        """The service of that name."""
        return self._services.get(name)

    def add(self, cpu: PerCpu, service: Service) -> None:
        """Make a service known. Its name must be free: see `check_free`."""
        self._services[service.name] = service
        self.changed(cpu)

    def check_free(self, name: str) -> None:
        """Fails with EEXIST if somebody has that name."""
        if name in self._services:
            raise CallFailed(Errno.EEXIST)

    def remove(self, service: Service) -> None:
        """Its server is gone."""
        del self._services[service.name]
