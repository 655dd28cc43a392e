# SPDX-License-Identifier: MIT
"""How fast debuggers are served: single steps and memory, by a client of our own."""

from __future__ import annotations

import multiprocessing
import random
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Final, TypeAlias

from tools.bench.demo import SVSMD
from tools.bench.guest_code import kernel
from tools.bench.registry import Bound, Result, in_turns, register
from tools.bench.rsp import RspClient, RspError, checksum

QEMU: Final = "qemu-system-x86_64"
QEMU_MISSING: Final = "peer missing: apt install qemu-system-x86"
QEMU_PLAIN: Final = "QEMU TCG, plain VM"
TIMES: Final = 2000
RANGE_STEPS: Final = 20
"""Packets, not instructions."""
READ_FROM: Final = 0x110_0000
READ_BYTES: Final = 1 << 20
QEMU_CHUNK: Final = 0x800
"""QEMU answers E22 to an `m` of more, though it announces packets of twice that and one."""
_MIB: Final = 1 << 20
_FILL_CHUNK: Final = 0x400
_ECHO_SIZE: Final = 0x10000
_RUN_SECONDS: Final = 0.5
_Rounds: TypeAlias = list[tuple[float, ...]]
_PORT = re.compile(rb'debugger: gdb -ex "target remote \S*:(\d+)"')


@contextmanager
def running_svsmd(image: Path) -> Iterator[int]:
    """The machine with its guest running; the port of its stub."""
    command = [str(SVSMD), "run", f"--kernel={image}", "--serial=null", "--gdb=tcp:127.0.0.1:0"]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if match := _PORT.search(line):
                yield int(match[1])
                return
        raise EOFError("svsmd has ended before it served debuggers")
    finally:
        process.kill()
        process.communicate()


@contextmanager
def running_qemu(image: Path) -> Iterator[int]:
    """A plain VM of QEMU's TCG with the same guest; the port of its stub."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    command = [
        QEMU, "-accel", "tcg", "-m", "512", "-display", "none", "-nodefaults", "-S",
        "-gdb", f"tcp:127.0.0.1:{port}", "-kernel", str(image),
    ]  # fmt: skip
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        yield port
    finally:
        process.kill()
        process.wait()


@contextmanager
def echo() -> Iterator[EchoClient]:
    """A server in Python that sends back what it gets: the floor of all round trips."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        process = multiprocessing.get_context("fork").Process(target=_serve_echo, args=(server,))
        process.start()
        try:
            with socket.create_connection(server.getsockname()) as connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                yield EchoClient(connection)
        finally:
            process.kill()
            process.join()


def _serve_echo(server: socket.socket) -> None:
    connection, _ = server.accept()
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while data := connection.recv(_ECHO_SIZE):
        connection.sendall(data)


class EchoClient:
    """One connection to an echo server."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def packet(self, body: bytes) -> bytes:
        """As RspClient.packet()."""
        return b"$" + body + b"#" + checksum(body)

    def exchange(self, packet: bytes) -> bytes:
        """As RspClient.exchange()."""
        self._connection.sendall(packet)
        return self._connection.recv(_ECHO_SIZE)


def _per_second(client: RspClient | EchoClient, *bodies: bytes) -> float:
    """Times that all of these packets are answered, one after the other."""
    packets, exchange = [client.packet(body) for body in bodies], client.exchange
    begin = time.perf_counter()
    for _ in range(TIMES):
        for packet in packets:
            exchange(packet)
    return TIMES / (time.perf_counter() - begin)


def _range_steps_per_second(client: RspClient, ticks: Callable[[], int] | None) -> float:
    """Instructions that a stub steps in a second, the PC staying in a range.

    `ticks` counts them for the stub that has range stepping; the other one does them one by one.
    """
    if ticks is None:
        return _per_second(client, client.step_body)
    packet = client.packet(client.step_body.replace(b";s:", b";r0,ffffffffffffffff:"))
    before, begin = ticks(), time.perf_counter()
    for _ in range(RANGE_STEPS):
        client.exchange(packet)
    seconds = time.perf_counter() - begin
    return (ticks() - before) / seconds


def _mib_per_second(client: RspClient, letter: bytes, chunk: int) -> float:
    bodies = [
        b"%b%x,%x" % (letter, READ_FROM + offset, min(chunk, READ_BYTES - offset))
        for offset in range(0, READ_BYTES, chunk)
    ]
    packets = [client.packet(body) for body in bodies]
    wanted = READ_BYTES * (2 if letter == b"m" else 1)
    begin = time.perf_counter()
    size = sum([len(client.exchange(packet)) for packet in packets])
    seconds = time.perf_counter() - begin
    if size < wanted:
        raise RspError(f"{size} bytes came instead of {wanted}")
    return READ_BYTES / _MIB / seconds


def _fill(client: RspClient) -> None:
    """Memory that looks like data: a stub may make fewer bytes of zeros."""
    content = random.Random(1).randbytes(READ_BYTES)
    for offset in range(0, READ_BYTES, _FILL_CHUNK):
        part = content[offset : offset + _FILL_CHUNK]
        client.expect(b"M%x,%x:%b" % (READ_FROM + offset, len(part), part.hex().encode()))


@contextmanager
def clients(guest: str) -> Iterator[list[RspClient]]:
    """Clients of svsmd and, where it is installed, of QEMU, that both run `guest` at CPL 0.

    Each guest has reached its loop, and stands still.
    """
    with ExitStack() as stack:
        image = Path(stack.enter_context(tempfile.TemporaryDirectory())) / f"{guest}.elf"
        image.write_bytes(kernel(guest))
        port = stack.enter_context(running_svsmd(image))
        peers = []
        if shutil.which(QEMU) is not None:
            peers.append(stack.enter_context(RspClient(stack.enter_context(running_qemu(image)))))
            peers[0].run_for(_RUN_SECONDS)
        time.sleep(_RUN_SECONDS)
        yield [stack.enter_context(RspClient(port)), *peers]


def beside_qemu(
    name: str,
    unit: str,
    figures: Sequence[tuple[float, ...]],
    bound: Bound | None = None,
    peer: str = QEMU_PLAIN,
) -> Result:
    """A result of in_turns(), of svsmd's side and of QEMU's if it is there."""
    return Result(
        name=name,
        unit=unit,
        figures=figures[0],
        peer=peer,
        bound=bound,
        peer_figures=figures[1] if len(figures) > 1 else (),
        note="" if len(figures) > 1 else QEMU_MISSING,
    )


def _round_trips(clients: Sequence[RspClient | EchoClient], *bodies: bytes) -> _Rounds:
    return in_turns(*(partial(_per_second, client, *bodies) for client in clients))


def _range_steps(ours: RspClient, *peers: RspClient) -> _Rounds:
    def ticks() -> int:
        # The virtual clock of svsmd: a tick is an instruction.
        return int(ours.monitor("info").split(": ")[1].split()[0])

    return in_turns(
        partial(_range_steps_per_second, ours, ticks),
        *(partial(_range_steps_per_second, peer, None) for peer in peers),
    )


def _reads(letter: bytes, chunk: int, ours: RspClient, *peers: RspClient) -> _Rounds:
    return in_turns(
        partial(_mib_per_second, ours, letter, chunk),
        *(partial(_mib_per_second, peer, b"m", QEMU_CHUNK) for peer in peers),
    )


@register("gdb")
def gdb() -> list[Result]:
    """The gdb stub beside QEMU's: raw packets on loopback, the same loop at CPL 0."""
    with clients("spin") as both, echo() as floor:
        for client in both:
            _fill(client)
        step, largest = both[0].step_body, both[0].packet_size - 8
        echoes = _round_trips([floor, *both[1:]], b"qC")
        results = [
            beside_qemu("a server that sends back what it gets", "round trips/s", echoes),
            beside_qemu("`qC`", "round trips/s", _round_trips(both, b"qC")),
            beside_qemu("`g`", "round trips/s", _round_trips(both, b"g")),
            beside_qemu("`vCont;s`", "steps/s", _round_trips(both, step), Bound(1.5)),
            beside_qemu("`vCont;s` and `g`", "steps/s", _round_trips(both, step, b"g"), Bound(1)),
            beside_qemu(
                "`vCont;r`, the PC in the range", "steps/s", _range_steps(*both), Bound(100),
                f"{QEMU_PLAIN}: `vCont;s`",
            ),
        ]  # fmt: skip
        # The largest `m` that both answer, then the largest ones that there are.
        for letter, chunk, bound in (
            ("m", QEMU_CHUNK, None), ("m", largest // 2, None), ("x", largest, Bound(5)),
        ):  # fmt: skip
            name = f"`{letter}` of {chunk} bytes, QEMU: `m` of {QEMU_CHUNK}"
            figures = _reads(letter.encode(), chunk, *both)
            results.append(beside_qemu(name, "MiB/s", figures, bound))
    return results
