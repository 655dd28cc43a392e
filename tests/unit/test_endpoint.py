# SPDX-License-Identifier: MIT
"""The grammar of endpoints, and what listens at them."""

import os
import socket
import stat
from functools import partial
from pathlib import Path

import pytest
import trio

from svsmd.endpoint import (
    MAX_UNIX_PATH,
    FdEndpoint,
    FileEndpoint,
    NullEndpoint,
    PtyEndpoint,
    RingEndpoint,
    StdioEndpoint,
    TcpEndpoint,
    TelnetEndpoint,
    UnixEndpoint,
    format_address,
    open_listeners,
    parse_endpoint,
    serve_endpoint,
)
from svsmd.errors import ExitCode, UserError


async def echo(stream: trio.abc.Stream) -> None:
    async with stream:
        try:
            while data := await stream.receive_some():
                await stream.send_all(data)
        except trio.BrokenResourceError:
            pass


async def assert_echoes(stream: trio.abc.Stream) -> None:
    async with stream:
        await stream.send_all(b"hello")
        with trio.fail_after(5):
            assert await stream.receive_some() == b"hello"


class TestGrammar:
    @pytest.mark.parametrize(
        ("text", "endpoint"),
        [
            ("tcp:127.0.0.1:1234", TcpEndpoint("127.0.0.1", 1234)),
            ("tcp::0", TcpEndpoint("127.0.0.1", 0)),
            ("tcp:[::1]:65535", TcpEndpoint("::1", 65535)),
            ("tcp:localhost:1", TcpEndpoint("localhost", 1)),
            ("telnet::5555", TelnetEndpoint("127.0.0.1", 5555)),
            ("unix:/run/a b:c", UnixEndpoint(Path("/run/a b:c"))),
            ("fd:3", FdEndpoint(3)),
            ("pty", PtyEndpoint()),
            ("stdio", StdioEndpoint()),
            ("file:out.log", FileEndpoint(Path("out.log"))),
            ("ring:64K", RingEndpoint(65536)),
            ("ring:1MiB", RingEndpoint(1 << 20)),
            ("null", NullEndpoint()),
        ],
    )
    def test_reads_and_writes(self, text, endpoint):
        assert parse_endpoint(text) == endpoint
        assert parse_endpoint(str(endpoint)) == endpoint

    @pytest.mark.parametrize(
        ("text", "part"),
        [
            ("", "is not an endpoint"),
            ("1234", "is not an endpoint"),
            (":1234", "is not an endpoint"),
            ("TCP::1", "is not an endpoint"),
            ("null:", "is not an endpoint"),
            ("pty:/dev/x", "is not an endpoint"),
            ("stdio:", "is not an endpoint"),
            ("tcp", "takes HOST:PORT"),
            ("tcp:1234", "takes HOST:PORT"),
            ("tcp:a:", "takes HOST:PORT"),
            ("tcp:a:-1", "takes HOST:PORT"),
            ("tcp:::1:80", "takes HOST:PORT"),
            ("tcp:a:٣", "takes HOST:PORT"),
            ("telnet::65536", "65536 is not a port"),
            ("unix:", "takes a path"),
            ("file:a\0b", "takes a path"),
            ("fd:", "takes the number"),
            ("fd:1", "takes the number"),
            ("fd:-3", "takes the number"),
            ("fd:x", "takes the number"),
            ("ring:", "is not a size"),
            ("ring:0K", "a ring has"),
            ("ring:1G", "a ring has"),
            ("ring:64", "is not a size"),
        ],
    )
    def test_refuses_in_one_line(self, text, part):
        with pytest.raises(UserError, match=part) as caught:
            parse_endpoint(text)
        assert "\n" not in caught.value.message
        assert caught.value.exit_code is ExitCode.USAGE

    def test_an_ipv6_address_is_written_in_brackets(self):
        assert format_address("::1", 5) == "[::1]:5"
        assert format_address("localhost", 5) == "localhost:5"


class TestTcp:
    async def test_port_0_takes_a_free_one_and_says_which(self, nursery):
        bound = await nursery.start(partial(serve_endpoint, TcpEndpoint("127.0.0.1", 0), echo))
        assert bound.host == "127.0.0.1"
        assert bound.port > 0
        await assert_echoes(await trio.open_tcp_stream(bound.host, bound.port))
        nursery.cancel_scope.cancel()

    async def test_localhost_means_all_its_addresses_at_one_port(self):
        async with open_listeners(TcpEndpoint("localhost", 0)) as (bound, listeners):
            names = [listener.socket.getsockname() for listener in listeners]
        assert isinstance(bound, TcpEndpoint)
        assert {name[1] for name in names} == {bound.port}
        assert {name[0] for name in names} <= {"127.0.0.1", "::1"}

    async def test_a_port_in_use(self):
        async with open_listeners(TcpEndpoint("127.0.0.1", 0)) as (bound, _):
            assert isinstance(bound, TcpEndpoint)
            with pytest.raises(UserError, match=f"{bound}: the address is in use"):
                async with open_listeners(bound):
                    pass

    async def test_the_port_is_free_again_afterwards(self):
        async with open_listeners(TcpEndpoint("127.0.0.1", 0)) as (bound, _):
            assert isinstance(bound, TcpEndpoint)
        async with open_listeners(bound):
            pass

    @pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
    async def test_an_address_that_others_can_reach_needs_expose(self, host):
        with pytest.raises(UserError, match="other machines could connect") as caught:
            async with open_listeners(TelnetEndpoint(host, 0)):
                pass
        assert caught.value.hint == "--expose allows it"

    async def test_expose(self, caplog):
        async with open_listeners(TcpEndpoint("0.0.0.0", 0), expose=True) as (bound, _):
            assert "tcp:0.0.0.0:0: other machines can connect" in caplog.text
            assert isinstance(bound, TcpEndpoint)
            await (await trio.open_tcp_stream("127.0.0.1", bound.port)).aclose()

    async def test_an_address_of_another_machine(self):
        with pytest.raises(UserError, match="cannot listen there: Cannot assign"):
            async with open_listeners(TcpEndpoint("192.0.2.1", 0), expose=True):
                pass

    @pytest.mark.parametrize("host", ["nowhere.invalid", "a" * 70, "a..b"])
    async def test_a_host_that_does_not_exist(self, host):
        with pytest.raises(UserError, match="there is no host"):
            async with open_listeners(TcpEndpoint(host, 0)):
                pass


class TestUnix:
    async def test_its_socket_is_for_its_owner_only_and_goes_with_it(self, tmp_path, nursery):
        path = tmp_path / "console"
        bound = await nursery.start(partial(serve_endpoint, UnixEndpoint(path), echo))
        assert bound == UnixEndpoint(path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert os.listdir(tmp_path) == ["console"]
        await assert_echoes(await trio.open_unix_socket(path))
        nursery.cancel_scope.cancel()

    async def test_nothing_is_left_behind(self, tmp_path):
        async with open_listeners(UnixEndpoint(tmp_path / "s")):
            pass
        assert os.listdir(tmp_path) == []

    async def test_a_socket_left_behind_by_a_crash_is_replaced(self, tmp_path):
        path = tmp_path / "s"
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(os.fspath(path))
        async with open_listeners(UnixEndpoint(path)):
            await (await trio.open_unix_socket(path)).aclose()
        assert not path.exists()

    async def test_a_socket_in_use_is_left_alone(self, tmp_path):
        path = tmp_path / "s"
        async with open_listeners(UnixEndpoint(path)):
            with pytest.raises(UserError, match="the address is in use"):
                async with open_listeners(UnixEndpoint(path)):
                    pass
            await (await trio.open_unix_socket(path)).aclose()

    async def test_a_file_is_not_overwritten(self, tmp_path):
        path = tmp_path / "s"
        path.write_text("precious")
        with pytest.raises(UserError, match="not a socket"):
            async with open_listeners(UnixEndpoint(path)):
                pass
        assert path.read_text() == "precious"

    async def test_the_socket_of_a_successor_is_not_removed(self, tmp_path):
        path = tmp_path / "s"
        async with open_listeners(UnixEndpoint(path)):
            path.unlink()
            path.write_text("successor")
        assert path.read_text() == "successor"

    async def test_a_directory_that_does_not_exist(self, tmp_path):
        with pytest.raises(UserError, match="cannot listen there: No such file"):
            async with open_listeners(UnixEndpoint(tmp_path / "no" / "s")):
                pass

    async def test_a_path_that_is_too_long(self, tmp_path):
        with pytest.raises(UserError, match="at most 107 bytes"):
            async with open_listeners(UnixEndpoint(tmp_path / ("s" * MAX_UNIX_PATH))):
                pass


class TestFd:
    async def test_a_listening_socket(self, nursery):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            fd = os.dup(listener.fileno())
        await nursery.start(partial(serve_endpoint, FdEndpoint(fd), echo))
        await assert_echoes(await trio.open_tcp_stream("127.0.0.1", port))
        nursery.cancel_scope.cancel()

    async def test_a_connected_socket(self, nursery):
        ours, theirs = trio.socket.socketpair()
        await nursery.start(partial(serve_endpoint, FdEndpoint(theirs.detach()), echo))
        await assert_echoes(trio.SocketStream(ours))

    @pytest.mark.parametrize("kind", ["closed", "file", "pipe", "datagram"])
    async def test_anything_else_is_refused(self, kind, tmp_path):
        if kind == "datagram":
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                fd = os.dup(sock.fileno())
        elif kind == "pipe":
            fd, other = os.pipe()
            os.close(other)
        else:
            fd = os.open(tmp_path / "file", os.O_CREAT | os.O_RDWR)
            if kind == "closed":
                os.close(fd)
        with pytest.raises(UserError, match=f"fd:{fd}: (no such|it is n)"):
            await serve_endpoint(FdEndpoint(fd), echo)
        if kind != "closed":
            os.close(fd)


class TestPty:
    async def test_its_path_is_told_and_it_outlives_its_clients(self, nursery):
        bound = await nursery.start(partial(serve_endpoint, PtyEndpoint(), echo))
        assert stat.S_IMODE(os.stat(bound.path).st_mode) == 0o600
        for _ in range(2):
            fd = os.open(bound.path, os.O_RDWR | os.O_NOCTTY)
            # FdStream makes it non-blocking; "\x03\r\n" shows that the terminal is raw.
            async with trio.lowlevel.FdStream(fd) as terminal:
                await terminal.send_all(b"\x03\r\n")
                with trio.fail_after(5):
                    assert await terminal.receive_some() == b"\x03\r\n"
        nursery.cancel_scope.cancel()
