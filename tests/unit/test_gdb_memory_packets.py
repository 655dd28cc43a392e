# SPDX-License-Identifier: MIT
"""Physical memory mode, searches and checksums, packet by packet."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svsmd.gdbstub.packets import search
from tests.fake_target import BASE, CODE, COUNTER, SIZE, FakeMachine
from tests.unit.test_gdb_session import Client


class NoPhysical:
    """The machine without what it need not have."""

    def __init__(self, machine: FakeMachine) -> None:
        self._machine = machine

    def __getattr__(self, name: str) -> object:
        if "physical" in name:
            raise AttributeError(name)
        return getattr(self._machine, name)


def crc_of_gdb(data: bytes) -> int:
    """gdb's xcrc32 with a start value of all ones, bit by bit."""
    value = 0xFFFF_FFFF
    for byte in data:
        value ^= byte << 24
        for _ in range(8):
            value = (value << 1 ^ (0x04C1_1DB7 if value >> 31 else 0)) & 0xFFFF_FFFF
    return value


# physical memory


def test_physical_mode() -> None:
    client = Client()
    assert client.ask(b"qqemu.Supported") == b"sstepbits;sstep;PhyMemMode"
    assert client.ask(b"qqemu.PhyMemMode") == b"0"
    assert client.ask(b"m0,2") == b"E0e"
    assert client.ask(b"Qqemu.PhyMemMode:1") == b"OK"
    assert client.ask(b"qqemu.PhyMemMode") == b"1"
    # The fake machine's RAM begins at 0.
    assert client.ask(b"m0,2") == CODE[:2].hex().encode()
    assert client.ask(b"x0,2") == b"b" + CODE[:2]
    assert client.ask(b"M10,2:abcd") == b"OK"
    assert client.ask(b"X12,1:\xef") == b"OK"
    assert client.ask(b"m10,3") == b"abcdef"
    assert client.ask(b"m%x,10" % (SIZE - 1)) == b"00"
    assert client.ask(b"m%x,1" % SIZE) == b"E0e"
    assert client.ask(b"M%x,2:abcd" % (SIZE - 1)) == b"E0e"
    assert client.ask(b"Qqemu.PhyMemMode:0") == b"OK"
    assert client.ask(b"m%x,3" % (BASE + 0x10)) == b"abcdef"


@pytest.mark.parametrize(
    ("packet", "reply"),
    [
        (b"Qqemu.PhyMemMode:2", b"E16"),
        (b"Qqemu.PhyMemMode:", b"E16"),
        (b"Qqemu.PhyMemMode", b"E16"),
        (b"Qqemu.PhyMemModes:1", b""),
        (b"Qqemu", b""),
        (b"qqemu", b""),
        (b"qqemu.sstepbit", b""),
        (b"qqemu.sstep", b"0x7"),
        (b"Qqemu.sstep", b"0x7"),
        (b"qqemu.sstepbits", b"ENABLE=1,NOIRQ=2,NOTIMER=4"),
        (b"Qqemu.sstepbits", b"ENABLE=1,NOIRQ=2,NOTIMER=4"),
        (b"Qqemu.sstep=8", b"E16"),
        (b"Qqemu.sstep=6", b"E16"),
        (b"Qqemu.sstep=0", b"E16"),
        (b"Qqemu.sstep=", b"E16"),
        (b"Qqemu.sstep=z", b"E16"),
    ],
)
def test_mistakes(packet: bytes, reply: bytes) -> None:
    client = Client()
    assert client.ask(packet) == reply
    assert client.ask(b"qqemu.PhyMemMode") == b"0"


def test_a_machine_without_physical_memory() -> None:
    client = Client()
    client.session._context.target = NoPhysical(client.machine)  # type: ignore[assignment]
    assert client.ask(b"qqemu.PhyMemMode") == client.ask(b"Qqemu.PhyMemMode:1") == b""
    assert client.ask(b"qqemu.Supported") == b"sstepbits;sstep"


# steps


@pytest.mark.parametrize("flags", [b"1", b"0x1", b"3", b"0x5", b"7"])
def test_what_a_step_is_asked_for(flags: bytes) -> None:
    client = Client()
    value = int(flags, 16)
    assert client.ask(b"Qqemu.sstep=%b" % flags) == b"OK"
    assert client.ask(b"qqemu.sstep") == b"%#x" % value
    assert client.machine.step_interrupts is not bool(value & 2)
    client.session.close()
    assert not client.machine.step_interrupts, "until the debugger leaves"


def test_refused_flags_change_nothing() -> None:
    client = Client()
    assert client.ask(b"Qqemu.sstep=1") == b"OK"
    assert client.ask(b"Qqemu.sstep=f") == client.ask(b"Qqemu.sstep=2") == b"E16"
    assert client.ask(b"qqemu.sstep") == b"0x1"


def test_a_machine_whose_steps_are_always_the_same() -> None:
    client = Client()
    del client.machine.step_interrupts
    assert client.ask(b"qqemu.sstepbits") == b"ENABLE=1"
    assert client.ask(b"qqemu.sstep") == b"0x1"
    assert client.ask(b"Qqemu.sstep=1") == b"OK"
    assert client.ask(b"Qqemu.sstep=3") == b"E16"


# searches


def test_search() -> None:
    client = Client()
    assert client.ask(b"qSearch:memory:1000;2000;\x90\xeb\xf2") == b"1,100b"
    assert client.ask(b"qSearch:memory:100c;1ff4;\x90") == b"0"
    assert client.ask(b"qSearch:memory:100b;1;\x90") == b"1,100b"
    assert client.ask(b"qSearch:memory:100b;2;\x90\xeb\xf2") == b"0"
    client.ask(b"M%x,3:3b233b" % COUNTER)  # the packet's own separators are data, too
    assert client.ask(b"qSearch:memory:1000;2000;\x3b#\x3b") == b"1,%x" % COUNTER


@given(st.integers(1, 5), st.binary(min_size=1, max_size=4), st.binary(max_size=40))
def test_search_across_the_pieces_it_reads(size: int, pattern: bytes, data: bytes) -> None:
    client = Client()
    client.machine.memory[: len(data)] = data
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "_CHUNK", size)
        packet = b"qSearch:memory:1000;%x;" % len(data) + pattern
        found = data.find(pattern)
        assert client.ask(packet) == (b"0" if found < 0 else b"1,%x" % (BASE + found))


@pytest.mark.parametrize(
    ("packet", "reply"),
    [
        (b"qSearch:memory:0;10;a", b"E0e"),
        (b"qSearch:memory:2ff0;20;a", b"E0e"),  # runs into a hole
        (b"qSearch:memory:1000;10;", b"E16"),
        (b"qSearch:memory:1000;10", b"E16"),
        (b"qSearch:memory:1000;z;a", b"E16"),
        (b"qSearch:memory:1000;4000001;a", b"E16"),
        (b"qSearch:memory:ffffffffffffffff;2;a", b"E16"),
        (b"qSearch:other:1000;10;a", b""),
        (b"qSearch", b""),
        (b"qCRC", b""),
        (b"qCRC:", b"E16"),
        (b"qCRC:1000", b"E16"),
        (b"qCRC:1000,4000001", b"E16"),
        (b"qCRC:0,1", b"E0e"),
        (b"qCRC:2fff,2", b"E0e"),
        (b"qCRC:1000,0", b"Cffffffff"),
    ],
)
def test_what_cannot_be_looked_through(packet: bytes, reply: bytes) -> None:
    assert Client().ask(packet) == reply


def test_what_cannot_be_read_is_said_in_words() -> None:
    client = Client(hello=b"qSupported:error-message+")
    assert client.ask(b"qSearch:memory:2ff0;20;a") == b"E.no page table maps 0x3000"


def test_what_gdb_has_said_holds() -> None:
    """pwndbg and gef send qSupported themselves, by `maintenance packet`."""
    client = Client(hello=b"qSupported:error-message+;swbreak+")
    client.ask(b"qSupported")
    client.ask(b"qSupported:multiprocess+;xmlRegisters=i386")
    assert client.ask(b"m0,1").startswith(b"E.")
    client.ask(b"Z0,1008,1")
    assert b"swbreak:;" in (client.go() or b"")


@given(st.binary(max_size=64))
def test_crc(data: bytes) -> None:
    client = Client()
    client.machine.memory[: len(data)] = data
    assert client.ask(b"qCRC:1000,%x" % len(data)) == b"C%x" % crc_of_gdb(data)
