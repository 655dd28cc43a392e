# SPDX-License-Identifier: MIT
"""How fast debuggers are served: single steps and memory, by a client of our own."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from tools.bench.demo import SVSMD
from tools.bench.guest_code import kernel
from tools.bench.registry import Result, in_turns, register
from tools.bench.rsp import RspClient

QEMU: Final = "qemu-system-x86_64"
QEMU_MISSING: Final = "peer missing: apt install qemu-system-x86"
STEPS: Final = 2000
READ_FROM: Final = 0x100_0000
READ_BYTES: Final = 1 << 20
QEMU_CHUNK: Final = 0x800
"""QEMU answers E22 to an `m` of more, though it announces packets of twice that and one."""
_MIB: Final = 1 << 20
_RUN_SECONDS: Final = 0.5
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


def _steps_per_second(client: RspClient) -> float:
    begin = time.perf_counter()
    for _ in range(STEPS):
        client.step()
    return STEPS / (time.perf_counter() - begin)


def _mib_per_second(client: RspClient, chunk: int) -> float:
    begin = time.perf_counter()
    for offset in range(0, READ_BYTES, chunk):
        client.read_memory(READ_FROM + offset, min(chunk, READ_BYTES - offset))
    return READ_BYTES / _MIB / (time.perf_counter() - begin)


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


@register("gdb")
def gdb() -> list[Result]:
    """The gdb stub beside QEMU's: raw packets on loopback, the same loop at CPL 0."""
    peer = "QEMU TCG, plain VM"
    with clients("spin") as both:
        steps = in_turns(*(lambda c=client: _steps_per_second(c) for client in both))
        # The largest `m` that both answer, then a large one for each.
        same = in_turns(*(lambda c=client: _mib_per_second(c, QEMU_CHUNK) for client in both))
        large = both[0].packet_size // 4
        chunks = (large, QEMU_CHUNK)
        best = in_turns(
            *(
                lambda c=client, n=chunk: _mib_per_second(c, n)
                for client, chunk in zip(both, chunks, strict=False)
            )
        )
    return [
        Result(
            name=name,
            unit=unit,
            figures=figures[0],
            peer=peer,
            peer_figures=figures[1] if len(figures) > 1 else (),
            note="" if len(figures) > 1 else QEMU_MISSING,
        )
        for name, unit, figures in (
            ("`vCont;s`", "steps/s", steps),
            (f"`m` of {QEMU_CHUNK} bytes", "MiB/s", same),
            (f"`m` of {large} bytes, QEMU: {QEMU_CHUNK}", "MiB/s", best),
        )
    ]
