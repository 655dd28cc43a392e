# SPDX-License-Identifier: MIT
"""Endpoints: where a console or a debugger is served. One grammar for every option, one listener.

    tcp:HOST:PORT     raw bytes            unix:PATH   a socket of mode 0600
    telnet:HOST:PORT  with negotiation     fd:N        an inherited file descriptor
    pty               a new terminal       stdio       stdin and stdout
    file:PATH         output only          ring:SIZE   memory only, shown when the guest crashes
    null              nothing

An empty HOST is 127.0.0.1, an IPv6 address stands in brackets, PORT 0 takes a free one. Neither
a console nor a debugger has a password: a HOST that others can reach is refused unless the
caller says that it is meant.

Spec: docs/consoles.md, "Endpoints".
"""

import errno
import ipaddress
import logging
import os
import re
import socket
import stat
import tty
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import trio

from svsmd.config import parse_size
from svsmd.errors import UserError

log = logging.getLogger(__name__)

LOOPBACK: Final = "127.0.0.1"
MAX_UNIX_PATH: Final = 107
"""Bytes of a socket's path: sun_path of unix(7) without its final NUL."""
MAX_RING: Final = 64 << 20
"""Bytes of the largest ring."""
LISTEN_BACKLOG: Final = 16

_HOST_PORT: Final = re.compile(r"(?P<host>\[[^\]]*\]|[^:\[\]]*):(?P<port>[0-9]{1,5})")
_GRAMMAR: Final = (
    "one of tcp:HOST:PORT telnet:HOST:PORT unix:PATH fd:N pty stdio file:PATH ring:SIZE null"
)


@dataclass(frozen=True, slots=True)
class TcpEndpoint:
    """Raw bytes over TCP."""

    host: str
    """Name or address, without brackets."""
    port: int
    """0 to 65535; 0 takes a free one."""

    def __str__(self) -> str:
        return f"tcp:{format_address(self.host, self.port)}"


@dataclass(frozen=True, slots=True)
class TelnetEndpoint:
    """The telnet protocol over TCP; the fields are those of `TcpEndpoint`."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"telnet:{format_address(self.host, self.port)}"


@dataclass(frozen=True, slots=True)
class UnixEndpoint:
    """A stream socket in the file system."""

    path: Path

    def __str__(self) -> str:
        return f"unix:{self.path}"


@dataclass(frozen=True, slots=True)
class FdEndpoint:
    """A file descriptor that the parent process left open: a socket, listening or not, or a tty."""

    fd: int
    """3 or more."""

    def __str__(self) -> str:
        return f"fd:{self.fd}"


@dataclass(frozen=True, slots=True)
class PtyEndpoint:
    """A pseudo-terminal."""

    path: str = ""
    """Device of the terminal, once there is one."""

    def __str__(self) -> str:
        return "pty"


@dataclass(frozen=True, slots=True)
class StdioEndpoint:
    """Standard input and output of the process."""

    def __str__(self) -> str:
        return "stdio"


@dataclass(frozen=True, slots=True)
class FileEndpoint:
    """A file that takes the output."""

    path: Path

    def __str__(self) -> str:
        return f"file:{self.path}"


@dataclass(frozen=True, slots=True)
class RingEndpoint:
    """The newest output, in memory."""

    size: int
    """Bytes, 1 to `MAX_RING`."""

    def __str__(self) -> str:
        return f"ring:{self.size >> 10}K"


@dataclass(frozen=True, slots=True)
class NullEndpoint:
    """Nothing."""

    def __str__(self) -> str:
        return "null"


Endpoint = (
    TcpEndpoint
    | TelnetEndpoint
    | UnixEndpoint
    | FdEndpoint
    | PtyEndpoint
    | StdioEndpoint
    | FileEndpoint
    | RingEndpoint
    | NullEndpoint
)

StreamEndpoint = TcpEndpoint | TelnetEndpoint | UnixEndpoint | FdEndpoint | PtyEndpoint
"""Those at which clients come and go, or at least could; `serve_endpoint` serves them."""

Handler = Callable[[trio.abc.Stream], Awaitable[None]]
"""Serves one client until it goes. It contains the errors of its own connection."""


def parse_endpoint(text: str) -> Endpoint:
    """The endpoint that `text` names; `str()` of it gives such a text again.

    Raises:
        UserError: it names none, with what is wrong.
    """
    kind, colon, rest = text.partition(":")
    match kind:
        case "tcp":
            return TcpEndpoint(*_parse_host_port(text, rest))
        case "telnet":
            return TelnetEndpoint(*_parse_host_port(text, rest))
        case "unix":
            return UnixEndpoint(_parse_path(text, rest))
        case "file":
            return FileEndpoint(_parse_path(text, rest))
        case "fd":
            if not re.fullmatch(r"[0-9]{1,6}", rest) or int(rest) < 3:
                raise UserError(
                    f"{text!r}: fd: takes the number of an open file descriptor, 3 or more",
                    hint="0 and 1 together are stdio" if rest in ("0", "1", "2") else None,
                )
            return FdEndpoint(int(rest))
        case "ring":
            size = parse_size(rest)
            if not 1 <= size <= MAX_RING:
                raise UserError(f"{text!r}: a ring has 1K to {MAX_RING >> 20}M")
            return RingEndpoint(size)
        case "pty" if not colon:
            return PtyEndpoint()
        case "stdio" if not colon:
            return StdioEndpoint()
        case "null" if not colon:
            return NullEndpoint()
        case _:
            raise UserError(f"{text!r} is not an endpoint", hint=_GRAMMAR)


def format_address(host: str, port: int) -> str:
    """HOST:PORT, with brackets round an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@asynccontextmanager
async def open_listeners(
    endpoint: TcpEndpoint | TelnetEndpoint | UnixEndpoint, *, expose: bool = False
) -> AsyncIterator[tuple[Endpoint, list[trio.SocketListener]]]:
    """Listen at an endpoint; at the end close the sockets and remove a socket file.

    Args:
        endpoint: where.
        expose: listen even where other machines could connect.

    Yields:
        The endpoint with the port that was taken in the place of port 0, and the listeners.

    Raises:
        UserError: the address is in use, not allowed, not ours or not local.
    """
    if isinstance(endpoint, UnixEndpoint):
        with _unix_socket(endpoint) as unix_socket:
            yield endpoint, [trio.SocketListener(unix_socket)]
        return
    sockets = await _bind_tcp(endpoint, expose=expose)
    try:
        port = sockets[0].getsockname()[1]
        yield replace(endpoint, port=port), [trio.SocketListener(sock) for sock in sockets]
    finally:
        for sock in sockets:
            sock.close()


async def serve_endpoint(
    endpoint: StreamEndpoint,
    handler: Handler,
    *,
    expose: bool = False,
    task_status: trio.TaskStatus[Endpoint] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve every client of an endpoint with `handler`, for ever, or for the one client there is.

    `task_status.started` gets the endpoint as `open_listeners` yields it, or a pty's with its
    device. An exception of `handler` is a bug and ends everything: it contains the errors of its
    own client.

    Raises:
        UserError: as `open_listeners` does, or the file descriptor is of no use.
    """
    match endpoint:
        case TcpEndpoint() | TelnetEndpoint() | UnixEndpoint():
            async with open_listeners(endpoint, expose=expose) as (bound, listeners):
                task_status.started(bound)
                await trio.serve_listeners(handler, listeners)
        case FdEndpoint():
            opened = _open_inherited(endpoint)
            task_status.started(endpoint)
            if isinstance(opened, trio.SocketListener):
                await trio.serve_listeners(handler, [opened])
            else:
                async with opened:
                    await handler(opened)
        case PtyEndpoint():
            with _open_pty() as (controller, path):
                task_status.started(PtyEndpoint(path))
                async with trio.lowlevel.FdStream(os.dup(controller)) as stream:
                    await handler(stream)


def _parse_host_port(text: str, rest: str) -> tuple[str, int]:
    match = _HOST_PORT.fullmatch(rest)
    if match is None:
        scheme = text.partition(":")[0]
        raise UserError(
            f"{text!r}: {scheme}: takes HOST:PORT",
            hint=f"HOST may be empty: {scheme}::1234; an IPv6 address stands in brackets",
        )
    port = int(match["port"])
    if port > 0xFFFF:
        raise UserError(f"{text!r}: {port} is not a port, 0 to 65535")
    return match["host"].strip("[]") or LOOPBACK, port


def _parse_path(text: str, rest: str) -> Path:
    if not rest or "\0" in rest:
        raise UserError(f"{text!r}: {text.partition(':')[0]}: takes a path")
    return Path(rest)


async def _bind_tcp(
    endpoint: TcpEndpoint | TelnetEndpoint, *, expose: bool
) -> list[trio.socket.SocketType]:
    """Listening sockets at every address of the host, all at one port."""
    try:
        found = await trio.socket.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise UserError(f"{endpoint}: there is no host {endpoint.host!r}") from None
    addresses = {(family, str(address[0])): address for family, _, _, _, address in found}
    for _, host in addresses:
        if ipaddress.ip_address(host.partition("%")[0]).is_loopback:
            continue
        if not expose:
            raise UserError(
                f"{endpoint}: other machines could connect to {host}, and there is no password",
                hint="--expose allows it",
            )
        log.warning("%s: other machines can connect to %s without a password", endpoint, host)
    sockets: list[trio.socket.SocketType] = []
    port = endpoint.port
    refusal: OSError | None = None
    for (family, _), address in addresses.items():
        try:
            sock = trio.socket.socket(family, socket.SOCK_STREAM)
        except OSError as error:  # a kernel without IPv6
            refusal = error
            continue
        try:
            # Else the port of a machine that has just ended stays taken for a minute (TIME_WAIT).
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            await sock.bind((address[0], port, *address[2:]))
            sock.listen(LISTEN_BACKLOG)
        except OSError as error:
            sock.close()
            refusal = error
            # "localhost" names ::1 also where no interface has it; and a port that was free at the
            # first address may be taken at the second.
            unusable = error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
            if unusable or (sockets and endpoint.port == 0):
                continue
            break
        sockets.append(sock)
        port = sock.getsockname()[1]
    else:
        if sockets:
            return sockets
    for sock in sockets:
        sock.close()
    assert refusal is not None
    raise _cannot_listen(endpoint, refusal)


def _cannot_listen(endpoint: Endpoint, error: OSError) -> UserError:
    if error.errno == errno.EADDRINUSE:
        return UserError(
            f"{endpoint}: the address is in use",
            hint="end it, or take another port; port 0 takes a free one"
            if not isinstance(endpoint, UnixEndpoint)
            else "end it, or take another path",
        )
    return UserError(f"{endpoint}: cannot listen there: {os.strerror(error.errno or 0)}")


@contextmanager
def _unix_socket(endpoint: UnixEndpoint) -> Iterator[trio.socket.SocketType]:
    """A listening socket at a path that appears there complete: mode 0600, ready to be used."""
    path = endpoint.path
    # Bound under another name first, so that nobody finds a socket that does not listen yet.
    newborn = path.with_name(f".{os.getpid():x}")
    if max(len(os.fsencode(path)), len(os.fsencode(newborn))) > MAX_UNIX_PATH:
        raise UserError(f"{endpoint}: the path of a socket has at most {MAX_UNIX_PATH} bytes")
    _refuse_live_socket(endpoint)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        newborn.unlink(missing_ok=True)
        sock.bind(os.fspath(newborn))
        newborn.chmod(0o600)
        sock.listen(LISTEN_BACKLOG)
        newborn.rename(path)
        identity = _identity(path)
    except OSError as error:
        sock.close()
        newborn.unlink(missing_ok=True)
        raise _cannot_listen(endpoint, error) from None
    try:
        yield trio.socket.from_stdlib_socket(sock)
    finally:
        sock.close()
        # Another machine may have taken the path over, if this one looked dead.
        if _identity(path) == identity:
            path.unlink(missing_ok=True)


def _refuse_live_socket(endpoint: UnixEndpoint) -> None:
    """Raise unless the path is free, or holds a socket that nobody listens at any more."""
    try:
        mode = endpoint.path.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise _cannot_listen(endpoint, error) from None
    if not stat.S_ISSOCK(mode):
        raise UserError(f"{endpoint}: there is a file of that name, and it is not a socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(endpoint.path))
        except ConnectionRefusedError:
            return
        except BlockingIOError:  # its backlog is full: somebody is there
            pass
        except OSError as error:
            raise _cannot_listen(endpoint, error) from None
    raise _cannot_listen(endpoint, OSError(errno.EADDRINUSE, ""))


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.lstat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _open_inherited(endpoint: FdEndpoint) -> trio.SocketListener | trio.abc.Stream:
    """What the file descriptor is: a listener, a connection, or a terminal."""
    try:
        mode = os.fstat(endpoint.fd).st_mode
    except OSError:
        raise UserError(f"{endpoint}: no such file descriptor is open") from None
    if stat.S_ISSOCK(mode):
        inherited = socket.socket(fileno=endpoint.fd)
        if inherited.type != socket.SOCK_STREAM:
            inherited.detach()
            raise UserError(f"{endpoint}: it is not a stream socket")
        listening = inherited.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        inherited.setblocking(False)
        wrapped = trio.socket.from_stdlib_socket(inherited)
        return trio.SocketListener(wrapped) if listening else trio.SocketStream(wrapped)
    if stat.S_ISCHR(mode) and os.isatty(endpoint.fd):
        return trio.lowlevel.FdStream(endpoint.fd)
    raise UserError(f"{endpoint}: it is neither a socket nor a terminal")


@contextmanager
def _open_pty() -> Iterator[tuple[int, str]]:
    """The controlling side of a new terminal in raw mode, and the path of its other side."""
    controller, terminal = os.openpty()
    try:
        # The terminal stays open here too: else the controlling side would see an error, not
        # silence, while nobody uses it.
        tty.setraw(terminal)
        os.fchmod(terminal, 0o600)
        yield controller, os.ttyname(terminal)
    finally:
        os.close(controller)
        os.close(terminal)
