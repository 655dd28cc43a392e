# SPDX-License-Identifier: MIT
"""Registers: packets g, G, p, P.

Spec: GDB manual, E.2 Packets.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Final

from svsmd.gdbstub.packets.context import (
    OK,
    Context,
    Errno,
    Handler,
    PacketError,
    parse_hex,
    parse_hex_data,
)
from svsmd.gdbstub.target import G_LAYOUT, TargetError
from svsmd.gdbstub.target_xml import G_REGISTERS, G_SPANS, REGISTERS, Register

MAX_TOLD: Final = 64
"""So many values of a register that cannot be written are known again: of calls in calls."""


def read_all(ctx: Context, args: bytes) -> bytes:
    """`g`: the registers of `G_LAYOUT`."""
    return ctx.target.read_registers(ctx.general).hex().encode()


def write_all(ctx: Context, args: bytes) -> bytes:
    """`G DATA`: only the registers whose value changes are written; all of them, or none."""
    new = parse_hex_data(args)
    if len(new) != G_LAYOUT.size:
        raise PacketError(Errno.INVALID, f"need {G_LAYOUT.size} bytes of registers")
    old = ctx.target.read_registers(ctx.general)
    try:
        _put(ctx, new)
    except TargetError:
        _put(ctx, old)
        raise
    return OK


def _put(ctx: Context, new: bytes) -> None:
    # A selector that is written brings a base with it, so the second time round all are right.
    for _ in range(2):
        old = ctx.target.read_registers(ctx.general)
        for register, span in zip(REGISTERS, G_SPANS, strict=False):  # G_SPANS is the shorter one
            if new[span] != old[span]:
                _write(ctx, register, new[span])


def read_one(ctx: Context, args: bytes) -> bytes:
    """`p NUMBER`."""
    number, register = _register(args)
    if number < G_REGISTERS:
        return ctx.target.read_registers(ctx.general)[G_SPANS[number]].hex().encode()
    value = ctx.target.read_register(ctx.general, register.name)
    if value is None:  # unavailable
        return b"xx" * register.nbytes
    text = value.to_bytes(register.nbytes, "little").hex().encode()
    if not register.saved:
        told = ctx.told.setdefault(number, deque(maxlen=MAX_TOLD))
        if text not in told:
            told.append(text)
    return text


def write_one(ctx: Context, args: bytes) -> bytes:
    """`P NUMBER=DATA`; a value that is there already can be written to any register.

    gdb for x86 puts all registers back when it has called a function, even those that cannot be
    written and have changed by themselves, such as the clock: that changes nothing.
    """
    digits, _, text = args.partition(b"=")
    number, register = _register(digits)
    data = parse_hex_data(text)
    if len(data) != register.nbytes:
        raise PacketError(Errno.INVALID, f"{register.name} has {register.nbytes} bytes")
    value = data.hex().encode()
    if value not in ctx.told.get(number, ()) and read_one(ctx, digits) != value:
        try:
            _write(ctx, register, data)
        except TargetError as error:
            # gdb shows what comes behind "E." here long before it announces error-message+.
            return b"E." + str(error).encode()
    return OK


def _register(text: bytes) -> tuple[int, Register]:
    number = parse_hex(text)
    if number >= len(REGISTERS):
        raise PacketError(Errno.INVALID, f"no register {number}")
    return number, REGISTERS[number]


def _write(ctx: Context, register: Register, data: bytes) -> None:
    # gdb for Linux writes orig_rax = -1 whenever it sets the PC, to keep the kernel from restarting
    # a system call. There is no such register in the machine: it keeps its value.
    if register.name != "orig_rax":
        value = int.from_bytes(data, "little")
        ctx.target.write_register(ctx.general, register.name, value)


HANDLERS: Final[Mapping[bytes, Handler]] = {
    b"g": read_all,
    b"G": write_all,
    b"p": read_one,
    b"P": write_one,
}
