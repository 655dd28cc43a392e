# SPDX-License-Identifier: MIT
"""The network side of a serial console: clients of a hub over sockets and terminals.

Spec: docs/consoles.md.
"""

import itertools
import logging
from collections.abc import Awaitable, Callable, Iterator

import trio

from svsmd.console.hub import Hub, HubClient, HubFull
from svsmd.console.telnet import Break, Data, Reply, TelnetCodec
from svsmd.endpoint import Endpoint, StreamEndpoint, TelnetEndpoint, serve_endpoint

log = logging.getLogger(__name__)

TOO_MANY = b"svsmd: too many clients on this console\r\n"


async def serve_stream_console(
    hub: Hub,
    endpoint: StreamEndpoint,
    *,
    expose: bool = False,
    task_status: trio.TaskStatus[Endpoint] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve a hub's line at an endpoint, for ever.

    `task_status.started` gets the endpoint with its real port.

    Raises:
        UserError: it cannot be served there.
    """
    serial_numbers: Iterator[int] = itertools.count(1)
    serve = serve_telnet_client if isinstance(endpoint, TelnetEndpoint) else serve_raw_client

    async def handler(stream: trio.abc.Stream) -> None:
        await serve(hub, stream, f"{endpoint} client {next(serial_numbers)}")

    await serve_endpoint(endpoint, handler, expose=expose, task_status=task_status)


async def serve_raw_client(hub: Hub, stream: trio.abc.Stream, name: str) -> None:
    """Serve one client whose bytes are the line's bytes.

    A client that has sent all it wants to (`printf off | nc -N ...`) still gets the output.
    """

    async def read(client: HubClient) -> None:
        while data := await stream.receive_some():
            await client.send(bytes(data))
        client.input_ended = True

    await _serve_client(hub, stream, name, read, stream.send_all)


async def serve_telnet_client(hub: Hub, stream: trio.abc.Stream, name: str) -> None:
    """Serve one client that speaks telnet. When it has sent all, it is gone."""
    codec = TelnetCodec()
    writing = trio.Lock()  # answers to the client come between the guest's output

    async def send(data: bytes) -> None:
        async with writing:
            await stream.send_all(data)

    async def read(client: HubClient) -> None:
        while data := await stream.receive_some():
            for event in codec.receive_data(bytes(data)):
                match event:
                    case Data(typed):
                        await client.send(typed)
                    case Break():
                        log.info("%s: break ignored, the UART has none", name)
                    case Reply(answer):
                        await send(answer)
        client.close()

    async def write(data: bytes) -> None:
        await send(codec.encode(data))

    await _serve_client(hub, stream, name, read, write, greeting=codec.greeting())


async def _serve_client(
    hub: Hub,
    stream: trio.abc.Stream,
    name: str,
    read: Callable[[HubClient], Awaitable[None]],
    write: Callable[[bytes], Awaitable[None]],
    *,
    greeting: bytes = b"",
) -> None:
    """Read and write until the client is gone or the line is dead; contains the client's errors.

    What it typed before it went still counts (`echo off | nc ...`): a failed write is no reason to
    stop reading.
    """
    reads = True

    async def deliver(send: Callable[[bytes], Awaitable[None]], data: bytes) -> None:
        nonlocal reads
        try:
            await send(data)
        except trio.BrokenResourceError as error:
            log.debug("%s: reads no more: %s", name, error)
            reads = False

    async def take(client: HubClient) -> None:
        try:
            await read(client)
        except trio.BrokenResourceError as error:
            log.debug("%s: types no more: %s", name, error)
        client.input_ended = True
        if not reads:
            client.close()

    async with stream:
        try:
            with hub.attach(name) as client:
                async with trio.open_nursery() as nursery:
                    await deliver(stream.send_all, greeting)
                    nursery.start_soon(take, client)
                    while data := await client.receive():
                        if reads:
                            await deliver(write, data)
                        if client.input_ended and not reads:
                            break
                    nursery.cancel_scope.cancel()
        except HubFull:
            log.warning("%s: refused, there are too many", name)
            try:
                await stream.send_all(TOO_MANY)
            except trio.BrokenResourceError:
                pass
