# SPDX-License-Identifier: MIT
"""Commands of breakpoints: what they print waits here for the debugger's console."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

from svsmd.gdbstub.agent.bytecode import Expression
from svsmd.snp.predicate import NoValue

MAX_OUTPUT: Final = 1 << 18
"""Most bytes that wait; what comes then is dropped, and counted."""
_STRING_CHUNK: Final = 64


class Console:
    """Text for the debugger's user, in the order in which it was printed."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0
        self._dropped = 0

    def write(self, text: bytes) -> None:
        """Adds to it; all of it or, if there is no room, nothing."""
        if self._size + len(text) > MAX_OUTPUT:
            self._dropped += len(text)
            return
        self._parts.append(text)
        self._size += len(text)

    def take(self) -> bytes:
        """All that has come since the last call."""
        if not self._size and not self._dropped:
            return b""
        text = b"".join(self._parts)
        if self._dropped:
            text += b"[%d more bytes were printed, and dropped]\n" % self._dropped
        self._parts.clear()
        self._size = self._dropped = 0
        return text


class View(Protocol):
    """What commands are evaluated against: registers, and memory as the debugger reads it."""

    def register(self, name: str) -> int:
        """Value of a register. Raises `NoValue`."""
        ...

    def load(self, address: int, nbytes: int) -> int:
        """Little-endian number in memory. Raises `NoValue`."""
        ...

    def read(self, address: int, nbytes: int) -> bytes:
        """Bytes of memory. Raises `NoValue`."""
        ...


class _Printer:
    """An `Evaluator` whose calls print."""

    def __init__(self, view: View, expression: Expression, console: Console) -> None:
        self._view = view
        self._formats = expression.formats
        self._console = console
        self.register = view.register
        self.load = view.load

    def call(self, index: int, arguments: Sequence[int]) -> None:
        """See Evaluator."""
        self._console.write(self._formats[index].print(arguments, self._read_string))

    def _read_string(self, address: int, most: int) -> bytes:
        parts: list[bytes] = []
        while most:
            # Not beyond a boundary behind which nothing may be mapped.
            chunk = min(most, _STRING_CHUNK - address % _STRING_CHUNK)
            text, end, _ = self._view.read(address, chunk).partition(b"\0")
            parts.append(text)
            if end:
                break
            address = (address + chunk) & (1 << 64) - 1
            most -= chunk
        return b"".join(parts)


def run_commands(commands: Sequence[Expression], view: View, console: Console) -> None:
    """Evaluates them; one that cannot be evaluated says so, and the others go on."""
    for expression in commands:
        try:
            expression.program.evaluate(_Printer(view, expression, console))
        except NoValue as error:
            console.write(f"a breakpoint's commands failed: {error}\n".encode())
