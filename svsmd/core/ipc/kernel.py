# SPDX-License-Identifier: MIT
"""Makes the objects of IPC, and knows the services.

Spec: none.
"""

from __future__ import annotations

from typing import Final

from svsmd.core.ipc.channel import ChannelEnd, make_channel
from svsmd.core.ipc.event import Event
from svsmd.core.ipc.messages import MessageStore
from svsmd.core.ipc.objects import Undertaker, Waker
from svsmd.core.ipc.services import Service, Services
from svsmd.core.ipc.shared_memory import SharedMemory
from svsmd.core.memory import PageAllocator
from svsmd.core.percpu import PerCpu
from svsmd.core.tasks.address_space import Quota


class IpcKernel:
    """What all objects of one machine share. What it makes has no handle yet."""

    def __init__(self, waker: Waker, pages: PageAllocator) -> None:
        self.waker: Final = waker
        self.undertaker: Final = Undertaker()
        self.services: Final = Services(waker)
        self._pages = pages
        self._messages = MessageStore(pages)

    def channel(self, quota: Quota) -> tuple[ChannelEnd, ChannelEnd]:
        """A channel's two ends. Fails with ENOMEM."""
        return make_channel(self.waker, self.undertaker, quota, self._messages)

    def event(self, quota: Quota, *, signaled: bool) -> Event:
        """An event. Fails with ENOMEM."""
        return Event(self.waker, self.undertaker, quota, signaled=signaled)

    def shared_memory(self, quota: Quota, nbytes: int) -> SharedMemory:
        """Shared memory. Fails with EINVAL, ENOMEM."""
        return SharedMemory(self.waker, self.undertaker, quota, self._pages, nbytes)

    def service(self, cpu: PerCpu, quota: Quota, name: str) -> Service:
        """Register a name. Fails with EEXIST, ENOMEM."""
        self.services.check_free(name)
        service = Service(self.waker, self.undertaker, quota, self.services, name)
        self.services.add(cpu, service)
        return service
