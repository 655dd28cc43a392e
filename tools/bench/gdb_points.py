# SPDX-License-Identifier: MIT
"""Stops and conditions, and what watchpoints cost, by a client of our own."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from typing import Final

from tools.bench.gdb_stub import QEMU_PLAIN, beside_qemu, clients
from tools.bench.guest_code import kernel_symbols
from tools.bench.registry import Bound, Result, in_turns, register
from tools.bench.rsp import RspClient, RspError

RUN_SECONDS: Final = 0.5
PERIOD: Final = 64
"""One condition in so many holds."""
ROUNDS: Final = 20
"""Conditions that hold, in one measurement."""
ELSEWHERE: Final = 0x300_0000
"""Of a page that the guest does not touch."""
HITS: Final = 500
INTERRUPTIONS: Final = 25
LET_RUN_SECONDS: Final = 0.01
MAX_LATENCY_MS: Final = 5
_RBX: Final = 1
_RBX_IN_G: Final = slice(16, 32)
_WATCHED: Final = "guest with a watchpoint"


def _condition(mask: int, equal: int) -> bytes:
    """`;X...`: RBX & mask == equal (GDB manual, F.2)."""
    code = struct.pack(">BHBHBBHBB", 0x26, _RBX, 0x23, mask, 0x0F, 0x23, equal, 0x13, 0x27)
    return b";X%x,%b" % (len(code), code.hex().encode())


def _conditions_in_stub(client: RspClient, place: int) -> float:
    """Conditions/s of a stub that evaluates them."""
    client.expect(b"Z0,%x,1" % place + _condition(PERIOD - 1, 0))
    client.request(b"vCont;c")
    begin = time.perf_counter()
    for _ in range(ROUNDS):
        client.request(b"vCont;c")
    seconds = time.perf_counter() - begin
    client.expect(b"z0,%x,1" % place)
    return ROUNDS * PERIOD / seconds


def _conditions_in_client(client: RspClient, place: int) -> float:
    """Conditions/s of a client that has every hit reported, and steps off it."""
    client.expect(b"Z0,%x,1" % place)
    client.request(b"vCont;c")
    begin = time.perf_counter()
    for _ in range(ROUNDS * PERIOD):
        client.step()
        client.request(b"vCont;c")
        rbx = client.request(b"g")[_RBX_IN_G]
        _holds = int.from_bytes(bytes.fromhex(rbx.decode()), "little") % PERIOD == 0
    seconds = time.perf_counter() - begin
    client.expect(b"z0,%x,1" % place)
    return ROUNDS * PERIOD / seconds


def _hits(client: RspClient, point: bytes, *bodies: bytes) -> float:
    """Hits in a second of a breakpoint or a watchpoint, each of which takes these packets."""
    client.expect(b"Z" + point)
    client.request(b"vCont;c")
    packets = [client.packet(body) for body in bodies]
    begin = time.perf_counter()
    for _ in range(HITS):
        for packet in packets:
            reply = client.exchange(packet)
    seconds = time.perf_counter() - begin
    client.expect(b"z" + point)
    if b"T05" not in reply:
        raise RspError(f"the last hit was {reply[:40]!r}")
    return HITS / seconds


def _interruptions(client: RspClient) -> list[float]:
    """Milliseconds from each Ctrl-C to the stop reply, in order of size."""
    times = []
    for _ in range(INTERRUPTIONS):
        client.resume()
        time.sleep(LET_RUN_SECONDS)
        begin = time.perf_counter()
        client.interrupt()
        times.append(1000 * (time.perf_counter() - begin))
    return sorted(times)


def _rounds(client: RspClient, counter: int) -> float:
    """Rounds of the guest's loop in a second of its running."""

    def read() -> int:
        return int.from_bytes(client.read_memory(counter, 8), "little")

    before, begin = read(), time.perf_counter()
    client.run_for(RUN_SECONDS)
    return (read() - before) / (time.perf_counter() - begin)


def _rejected(client: RspClient, place: int, counter: int) -> float:
    """Conditions/s while none of them holds: RBX & 0 is not 1."""
    client.expect(b"Z0,%x,1" % place + _condition(0, 1))
    rate = _rounds(client, counter)
    client.expect(b"z0,%x,1" % place)
    return rate


def _slowdown(client: RspClient, counter: int, watched: int) -> float:
    """How much slower the guest is while eight bytes are watched for writes."""
    free = _rounds(client, counter)
    client.expect(b"Z2,%x,8" % watched)
    slow = _rounds(client, counter)
    client.expect(b"z2,%x,8" % watched)
    return free / slow


@register("gdb-points")
def gdb_points() -> list[Result]:
    """Stops, conditions and watchpoints beside QEMU's: raw packets on loopback, a loop at CPL 0."""
    symbols = kernel_symbols("spin")
    place, counter = symbols["spin"], symbols["counter"]
    with clients("spin") as (ours, *peers):

        def measure(
            own: Callable[[RspClient], float], theirs: Callable[[RspClient], float] | None = None
        ) -> list[tuple[float, ...]]:
            other = theirs or own
            return in_turns(lambda: own(ours), *(lambda p=peer: other(p) for peer in peers))

        breakpoints = measure(lambda c: _hits(c, b"0,%x,1" % place, c.step_body, b"vCont;c"))
        writes = measure(lambda c: _hits(c, b"2,%x,8" % counter, b"vCont;c"))
        latencies: dict[RspClient, list[list[float]]] = {client: [] for client in (ours, *peers)}

        def interrupt(client: RspClient) -> float:
            times = _interruptions(client)
            latencies[client].append(times)
            return times[len(times) // 2]

        medians = measure(interrupt)
        slowest = [times[-1] for times in latencies[ours][-len(medians[0]) :]]
        conditions = measure(
            lambda c: _conditions_in_stub(c, place), lambda c: _conditions_in_client(c, place)
        )
        rejected = measure(
            lambda c: _rejected(c, place, counter), lambda c: _conditions_in_client(c, place)
        )
        near = measure(lambda c: _slowdown(c, counter, counter + 8))
        far = measure(lambda c: _slowdown(c, counter, ELSEWHERE))
    in_client = f"{QEMU_PLAIN}: the client evaluates them"
    return [
        beside_qemu("breakpoint: step off, continue, stop", "hits/s", breakpoints, Bound(1.5)),
        beside_qemu("watchpoint: continue, stop", "hits/s", writes),
        beside_qemu("Ctrl-C to stop, median", "ms", medians),
        Result(
            name=f"Ctrl-C to stop, slowest of {INTERRUPTIONS}",
            unit="ms",
            figures=slowest,
            bound=Bound(MAX_LATENCY_MS, at_most=True),
        ),
        beside_qemu(
            f"conditions, one in {PERIOD} holds", "conditions/s", conditions, Bound(50), in_client
        ),
        beside_qemu("conditions, none holds", "conditions/s", rejected, Bound(50), in_client),
        beside_qemu(f"{_WATCHED} on the page of its counter", "times slower", near),
        beside_qemu(f"{_WATCHED} elsewhere", "times slower", far),
    ]
