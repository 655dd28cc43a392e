# SPDX-License-Identifier: MIT
"""Where debuggers of a machine are served. What serves them is there when the first one comes.

Most runs never have a debugger, and a machine starts a tenth of a second sooner without what one
needs.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import trio

from svsmd.endpoint import Endpoint, StreamEndpoint, serve_endpoint
from svsmd.gdbstub.target import Runner, Target

if TYPE_CHECKING:
    from svsmd.gdbstub.server import GdbServer


async def serve_gdb(
    endpoint: StreamEndpoint,
    build_target: Callable[[], Target],
    runner: Runner,
    *,
    expose: bool = False,
    task_status: trio.TaskStatus[Endpoint] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve debuggers of a machine at an endpoint, for ever.

    `build_target` makes what they see; it may import, but must not touch the machine, which runs.
    `task_status.started` gets the endpoint with its real port.

    Raises:
        UserError: it cannot be served there.
    """
    server: GdbServer | None = None
    building = trio.Lock()

    def build() -> "GdbServer":
        from svsmd.gdbstub.server import GdbServer

        return GdbServer(build_target(), runner)

    async def serve_client(stream: trio.abc.Stream) -> None:
        nonlocal server
        async with building:
            if server is None:
                # In a thread, so that consoles need not wait for it.
                server = await trio.to_thread.run_sync(build)
        await server.serve_client(stream)

    await serve_endpoint(endpoint, serve_client, expose=expose, task_status=task_status)
