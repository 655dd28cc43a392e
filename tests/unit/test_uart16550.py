# SPDX-License-Identifier: MIT
"""The 16550A: registers, FIFOs, interrupts, loopback, and the line to the host."""

import pytest

from svsmd.host.port_bus import PortBus
from svsmd.host.uart16550 import Uart16550

DATA, IER, IIR, FCR, LCR, MCR, LSR, MSR, SCR = 0, 1, 2, 2, 3, 4, 5, 6, 7
DTR_RTS_OUT2 = 0x0B


class Port:
    """A UART as a driver sees it."""

    def __init__(self) -> None:
        self.sent = bytearray()
        self.edges: list[bool] = []
        self.uart = Uart16550(self.edges.append, self.sent.extend)
        self.bus = PortBus()
        self.uart.attach(self.bus)

    def read(self, register: int) -> int:
        return self.bus.read(0x3F8 + register, 1)

    def write(self, register: int, value: int) -> None:
        self.bus.write(0x3F8 + register, 1, value)

    @property
    def irq(self) -> bool:
        return bool(self.edges) and self.edges[-1]


@pytest.fixture
def port() -> Port:
    return Port()


def test_reset_values(port):
    assert [port.read(register) for register in (IER, IIR, LCR, MCR, LSR, MSR, SCR)] == [
        0, 1, 0, 0, 0x60, 0xB0, 0,
    ]  # fmt: skip


def test_divisor_latch_hides_data_and_ier(port):
    port.write(LCR, 0x83)
    port.write(DATA, 0x0C)
    port.write(IER, 0x34)
    assert (port.read(DATA), port.read(IER)) == (0x0C, 0x34)
    port.write(LCR, 0x03)
    assert port.uart.state.divisor == 0x340C
    assert port.read(IER) == 0
    assert not port.sent


def test_transmit_and_scratch(port):
    for byte in b"hello":
        port.write(DATA, byte)
    port.write(SCR, 0xA5)
    assert port.sent == b"hello"
    assert port.read(SCR) == 0xA5
    assert port.read(LSR) == 0x60


def test_ier_keeps_four_bits(port):
    port.write(IER, 0xFF)
    assert port.read(IER) == 0x0F


def test_thre_interrupt_rises_on_enable_and_again_after_each_write(port):
    port.write(MCR, DTR_RTS_OUT2)
    port.write(IER, 2)
    assert port.irq
    assert port.read(IIR) == 2
    assert not port.irq
    assert port.read(IIR) == 1
    port.write(DATA, 0x41)
    assert port.irq
    before = len(port.edges)
    port.write(DATA, 0x42)
    # Pending already: an edge-triggered controller still has to see a new edge.
    assert port.edges[before:] == [False, True]


def test_irq_needs_out2(port):
    port.write(IER, 2)
    assert not port.edges
    port.write(MCR, 8)
    assert port.irq
    port.write(MCR, 0)
    assert not port.irq


def test_receive_interrupt_without_fifo(port):
    port.write(MCR, DTR_RTS_OUT2)
    port.write(IER, 1)
    port.uart.receive(b"ab")
    assert port.irq
    assert port.read(IIR) == 4
    assert port.read(LSR) == 0x61
    assert port.read(DATA) == ord("a")
    assert port.irq
    assert port.read(DATA) == ord("b")
    assert not port.irq
    assert port.read(LSR) == 0x60
    assert port.read(DATA) == 0


def test_fifo_trigger_level_and_timeout(port):
    port.write(FCR, 0x81)  # trigger at 8
    port.write(MCR, DTR_RTS_OUT2)
    port.write(IER, 1)
    port.uart.receive(b"1234567")
    assert port.read(IIR) == 0xCC
    port.uart.receive(b"8")
    assert port.read(IIR) == 0xC4


def test_interrupt_priorities(port):
    port.write(FCR, 1)
    port.write(MCR, 0x10)  # loopback: modem lines change
    port.write(IER, 0x0F)
    for byte in range(17):
        port.write(DATA, byte)
    assert port.read(IIR) == 0xC6
    assert port.read(LSR) == 0x63
    assert port.read(LSR) == 0x61
    assert port.read(IIR) == 0xC4
    assert [port.read(DATA) for _ in range(16)] == list(range(16))
    assert port.read(IIR) == 0xC2
    assert port.read(IIR) == 0xC0
    assert port.read(MSR) & 0x0F
    assert port.read(IIR) == 0xC1


def test_loopback_keeps_everything_inside(port):
    port.uart.receive(b"outside")
    port.write(MCR, 0x1F)
    port.write(IER, 3)
    port.write(DATA, 0x55)
    assert port.read(DATA) == 0x55
    assert port.read(LSR) == 0x60
    assert not port.sent
    assert not port.edges
    assert port.uart.waiting == 7


def test_loopback_overrun_without_fifo_keeps_the_last(port):
    port.write(MCR, 0x10)
    port.write(DATA, 1)
    port.write(DATA, 2)
    assert port.read(LSR) == 0x63
    assert port.read(DATA) == 2


@pytest.mark.parametrize(
    ("mcr", "lines"), [(0x10, 0), (0x11, 0x20), (0x12, 0x10), (0x14, 0x40), (0x18, 0x80)]
)
def test_loopback_modem_lines(port, mcr, lines):
    port.write(MCR, mcr)
    port.read(MSR)
    assert port.read(MSR) == lines


def test_modem_deltas(port):
    port.write(MCR, 0x10)
    assert port.read(MSR) == 0x0B
    assert port.read(MSR) == 0
    port.write(MCR, 0x14)
    assert port.read(MSR) == 0x40  # rising RI is no event
    port.write(MCR, 0x10)
    assert port.read(MSR) == 0x04  # trailing edge
    port.write(MCR, 0)
    assert port.read(MSR) == 0xBB


def test_fifo_reset_and_mode_change_empty_the_receiver(port):
    port.write(MCR, 2)
    port.write(FCR, 1)
    port.uart.receive(b"x" * 3)
    port.write(FCR, 3)
    assert port.read(LSR) == 0x60
    port.uart.receive(b"y")
    port.write(FCR, 0)
    assert port.read(LSR) == 0x60
    assert port.read(IIR) == 1


def test_typed_bytes_wait_until_the_driver_listens(port):
    port.uart.receive(b"0123456789abcdefXYZ")
    # What a driver does before it opens the port.
    port.write(FCR, 1)
    port.write(FCR, 7)
    port.write(FCR, 0)
    for register in (LSR, DATA, IIR, MSR):
        port.read(register)
    port.write(FCR, 1)
    port.write(IER, 1)
    got = bytearray()
    while port.read(LSR) & 1:
        got.append(port.read(DATA))
    assert got == b"0123456789abcdefXYZ"


def test_polling_firmware_that_never_sets_rts_is_served(port):
    port.uart.receive(b"k")
    assert not port.read(LSR) & 1
    for _ in range(4):
        status = port.read(LSR)
    assert status & 1
    assert port.read(DATA) == ord("k")


def test_printing_is_not_mistaken_for_polling(port):
    port.uart.receive(b"k")
    for _ in range(20):
        assert not port.read(LSR) & 1
        port.write(DATA, 0x2E)
    assert port.uart.waiting == 1


def test_reset_keeps_the_line(port):
    port.write(MCR, DTR_RTS_OUT2)
    port.write(IER, 2)
    port.uart.receive(b"ab")
    port.uart.reset()
    assert not port.irq
    assert port.read(MCR) == 0
    # One character was in RBR, the other still on its way.
    port.write(MCR, 2)
    assert port.read(DATA) == ord("b")
