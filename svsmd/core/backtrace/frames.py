# SPDX-License-Identifier: MIT
"""What a backtrace is made of. Values only: they can be kept, compared and printed.

A frame says where the code is, never what it works on: the log is read by the host.

Spec: none.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

MAX_FRAMES: Final = 64
"""Frames of one backtrace; the outer ones are left out."""


class FrameKind(StrEnum):
    """What kind of code a frame is of, or what happened there."""

    NATIVE = "native"
    """Code of the SVSM's native image."""
    EXCEPTION = "exception"
    """Not a function: an exception or an interrupt came between the frames on either side."""
    SYSTEM_CALL = "system call"
    """Likewise: a module called the kernel."""
    MODULE = "module"
    """Code at CPL 3."""
    HANDLER = "handler"
    """Code of the core."""


@dataclass(frozen=True, slots=True)
class Location:
    """Where an address lies. Empty strings and 0 stand for what is not known.

    Attributes:
        symbol: function, or the label in front of the address.
        offset: bytes from there.
        file: source file, as the compiler was given it; `line` is counted from 1.
    """

    symbol: str = ""
    offset: int = 0
    file: str = ""
    line: int = 0


@dataclass(frozen=True, slots=True)
class Frame:
    """One line of a backtrace.

    Attributes:
        symbol: function; of EXCEPTION and SYSTEM_CALL what came, such as "#PF, error 0x2".
        address: GVA of the code; of EXCEPTION and SYSTEM_CALL that of the saved registers; 0 for
            HANDLER. In a frame that has called another, the address that it returns to.
        offset: bytes from the symbol to the address.
        file: source file, or empty; `line` is counted from 1, or 0.
    """

    kind: FrameKind
    symbol: str = ""
    address: int = 0
    offset: int = 0
    file: str = ""
    line: int = 0

    def __str__(self) -> str:
        text = f"[{self.kind}]"
        if self.address and self.kind in (FrameKind.NATIVE, FrameKind.MODULE):
            text += f" {self.address:#x}"
        if self.symbol:
            text += f" {self.symbol}"
            if self.offset:
                text += f"+{self.offset:#x}"
        elif not self.address:
            text += " 0x0"
        if self.file:
            text += f" at {self.file}:{self.line}"
        return text


@dataclass(frozen=True, slots=True)
class Backtrace:
    """Frames, innermost first, and why there are no more of them (empty if there are none)."""

    frames: tuple[Frame, ...] = ()
    end: str = ""

    def before(self, outer: Backtrace) -> Backtrace:
        """This one, and then one that goes on where it ends."""
        frames = self.frames
        if self.end:
            return Backtrace(frames + outer.frames, f"{self.end}; {outer.end}".rstrip("; "))
        return Backtrace(frames + outer.frames, outer.end)

    def lines(self) -> list[str]:
        """As it is printed: "#0 [native] 0xffffffff80000042 name+0x2 at file:3", then #1 ..."""
        lines = [f"#{number} {frame}" for number, frame in enumerate(self.frames)]
        if self.end:
            lines.append(f"({self.end})")
        return lines

    def __str__(self) -> str:
        return "\n".join(self.lines())
