# SPDX-License-Identifier: MIT
"""`monitor xp` and `monitor x`: memory by physical and by linear address, as QEMU prints it.

Formats: QEMU, monitor/hmp-cmds-target.c. What differs: a size once given is not remembered, and
`c` is one byte.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from svsmd.gdbstub.machine_view import MachineView, number
from svsmd.gdbstub.physical_memory import read_physical
from svsmd.gdbstub.target import MonitorCommand, TargetError

MAX_BYTES: Final = 0x10000
"""Of memory in one answer."""
_SIZES: Final = {"b": 1, "h": 2, "w": 4, "g": 8}
_FORMAT: Final = re.compile(r"/(\d*)([a-z]*)")
_MAX_INSTRUCTION: Final = 15
_BYTES_A_LINE: Final = 8
"""Of an instruction."""

Read = Callable[[int, int], bytes]


class _Format(NamedTuple):
    repeat: int = 1
    form: str = "x"
    size: int = 4


def commands(view: MachineView) -> Mapping[str, MonitorCommand]:
    """See the package."""

    def physical(address: int, length: int) -> bytes:
        return read_physical(view.machine.silicon, address, length)

    def xp(arguments: Sequence[str]) -> str:
        return _dump(view, "xp", arguments, physical)

    def x(arguments: Sequence[str]) -> str:
        return _dump(view, "x", arguments, view.read_linear)

    return {
        "xp": MonitorCommand("[/FMT] ADDR", "memory at a guest-physical address", xp),
        "x": MonitorCommand("[/FMT] ADDR", "memory at a linear address", x),
    }


def _dump(view: MachineView, name: str, arguments: Sequence[str], read: Read) -> str:
    rest = list(arguments)
    form = _parse(rest.pop(0)) if rest and rest[0].startswith("/") else _Format()
    if len(rest) != 1:
        raise TargetError(f"usage: {name} [/FMT] ADDR")
    address = number(rest[0])
    if form.repeat * form.size > MAX_BYTES:
        raise TargetError(f"{MAX_BYTES} bytes are the most that is shown at once")
    if form.form == "i":
        return "".join(line + "\n" for line in _instructions(view, address, form.repeat, read))
    return "".join(line + "\n" for line in _values(address, form, read))


def _parse(text: str) -> _Format:
    """/NNNfs: a count, one of the letters x d u o c i, and one of b h w g, in any order."""
    match = _FORMAT.fullmatch(text)
    if match is None:
        raise TargetError(f"{text!r} is not a format such as /16xg")
    form = _Format(repeat=int(match[1][:9] or 1))
    if len(match[1]) > 9:
        raise TargetError(f"{match[1]} is too many")
    for letter in match[2]:
        if letter in _SIZES:
            form = form._replace(size=_SIZES[letter])
        elif letter in "xduoci":
            form = form._replace(form=letter)
        else:
            raise TargetError(f"invalid char in format: {letter!r}")
    return form._replace(size=1) if form.form == "c" else form


def _values(address: int, form: _Format, read: Read) -> Iterator[str]:
    size, left = form.size, form.repeat * form.size
    line = 8 if size == 1 else 16
    while left:
        length = min(left, line)
        head = f"{address & (1 << 64) - 1:016x}:"
        try:
            data = read(address, length)
        except TargetError:
            data = b""
        if len(data) < length:
            yield f"{head} Cannot access memory"
            return
        values = (int.from_bytes(data[at : at + size], "little") for at in range(0, length, size))
        yield head + "".join(f" {_value(value, form)}" for value in values)
        address += length
        left -= length


def _value(value: int, form: _Format) -> str:
    bits = form.size * 8
    match form.form:
        case "o":
            # C's %#o: a zero in front, unless the number begins with one.
            text = f"0{value:o}" if value else "0"
            return text.rjust(-(-bits // 3))
        case "x":
            return f"0x{value:0{bits // 4}x}"
        case "u":
            return str(value).rjust(-(-bits * 10 // 33))
        case "d":
            signed = value - (1 << 64) if bits == 64 and value >> 63 else value
            return str(signed).rjust(-(-bits * 10 // 33))
        case _:
            return _character(value)


def _character(value: int) -> str:
    escapes = {0x27: "\\'", 0x5C: "\\\\", 0x0A: "\\n", 0x0D: "\\r"}
    if value in escapes:
        return f"'{escapes[value]}'"
    return f"'{chr(value)}'" if 32 <= value <= 126 else f"'\\x{value:02x}'"


def _instructions(view: MachineView, address: int, count: int, read: Read) -> Iterator[str]:
    # Takes 20 ms to import, which most sessions never need.
    import capstone

    bits = view.code_bits()
    mode = {16: capstone.CS_MODE_16, 32: capstone.CS_MODE_32, 64: capstone.CS_MODE_64}[bits]
    engine = capstone.Cs(capstone.CS_ARCH_X86, mode)
    engine.syntax = capstone.CS_OPT_SYNTAX_ATT
    for _ in range(min(count, MAX_BYTES // _MAX_INSTRUCTION)):
        try:
            code = read(address, _MAX_INSTRUCTION)
        except TargetError:
            code = b""
        found = next(engine.disasm(code, address, 1), None)
        if found is None:
            text = ".byte" if code else "Cannot access memory"
            yield f"0x{address:08x}:  {text} {code[:1].hex()}".rstrip()
            if not code:
                return
            address += 1
            continue
        data = bytes(found.bytes)
        for at in range(0, len(data), _BYTES_A_LINE):
            part = " ".join(f"{byte:02x}" for byte in data[at : at + _BYTES_A_LINE])
            head = f"0x{address + at:08x}:  {part:{3 * _BYTES_A_LINE}} "
            yield f"{head}{found.mnemonic:8} {found.op_str}" if not at else head.rstrip()
        address += len(data)
