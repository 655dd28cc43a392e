# SPDX-License-Identifier: MIT
"""Formats of the `printf` op code: C's printf, with escape sequences as in C source.

Conversions: d i o u x X c s p and %%, with flags, width, precision and the lengths hh h l ll j z t.
Not there: floating point, `*`, `%n`, wide characters.

Spec: GDB manual, F.2 Bytecode Descriptions, printf; ISO C11, 7.21.6.1 and 5.2.2.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Self

MAX_WIDTH: Final = 1024
"""Largest width and precision."""
MAX_STRING: Final = 4096
"""Most bytes of a %s."""

_ESCAPE: Final = re.compile(rb"\\([0-7]{1,3}|.|$)", re.DOTALL)
_ESCAPES: Final = {
    b"a": 7, b"b": 8, b"e": 27, b"f": 12, b"n": 10, b"r": 13, b"t": 9, b"v": 11,
    b'"': 34, b"'": 39, b"?": 63, b"\\": 92,
}  # fmt: skip
_CONVERSION: Final = re.compile(
    rb"%(?P<flags>[-+ #0]*)(?P<width>\d*)(?:\.(?P<precision>\d*))?"
    rb"(?P<length>hh|h|ll|l|j|z|t)?(?P<kind>[diouxXcsp%])",
)
_BITS: Final = {None: 32, b"hh": 8, b"h": 16}

ReadString = Callable[[int, int], bytes]
"""Reads at an address up to a NUL, so many bytes at most."""


class BadFormat(ValueError):
    """A format string that cannot be served; the text says why."""


class _Conversion(NamedTuple):
    kind: str
    flags: str
    width: int
    precision: int | None
    bits: int

    def convert(self, value: int, read_string: ReadString) -> bytes:
        if self.kind == "s":
            most = MAX_STRING if self.precision is None else min(self.precision, MAX_STRING)
            return self._padded(read_string(value, most))
        if self.kind == "c":
            return self._padded(bytes([value & 0xFF]))
        if self.kind == "p":
            return self._padded(b"%#x" % value if value else b"(nil)")
        return self._number(value & (1 << self.bits) - 1)

    def _padded(self, text: bytes) -> bytes:
        return text.ljust(self.width) if "-" in self.flags else text.rjust(self.width)

    def _number(self, value: int) -> bytes:
        sign = prefix = ""
        if self.kind in "di":
            if value >> self.bits - 1:
                value, sign = (1 << self.bits) - value, "-"
            else:
                sign = "+" if "+" in self.flags else " " if " " in self.flags else ""
        digits = format(value, {"o": "o", "x": "x", "X": "X"}.get(self.kind, "d"))
        if self.precision is not None:
            digits = "" if not value and not self.precision else digits.rjust(self.precision, "0")
        if "#" in self.flags:
            if self.kind in "xX" and value:
                prefix = f"0{self.kind}"
            elif self.kind == "o" and not digits.startswith("0"):
                digits = "0" + digits
        if "0" in self.flags and "-" not in self.flags and self.precision is None:
            digits = digits.rjust(self.width - len(sign + prefix), "0")
        return self._padded((sign + prefix + digits).encode())


@dataclass(frozen=True, slots=True)
class Format:
    """A checked format string: text and conversions in their order."""

    pieces: tuple[bytes | _Conversion, ...]

    @property
    def arguments(self) -> int:
        """How many it takes."""
        return sum(not isinstance(piece, bytes) for piece in self.pieces)

    @classmethod
    def parse(cls, source: bytes) -> Self:
        """Raises `BadFormat`."""
        text = _ESCAPE.sub(_escape, source)
        pieces: list[bytes | _Conversion] = []
        at = 0
        while at < len(text):
            percent = text.find(b"%", at)
            if percent < 0:
                percent = len(text)
            if percent > at:
                pieces.append(text[at:percent])
            if percent == len(text):
                break
            match = _CONVERSION.match(text, percent)
            if match is None:
                raise BadFormat("a conversion in the format string that is not supported")
            pieces.append(b"%" if match["kind"] == b"%" else _conversion(match))
            at = match.end()
        return cls(tuple(pieces))

    def print(self, arguments: Sequence[int], read_string: ReadString) -> bytes:
        """The text.

        Args:
            arguments: numbers of 64 bits, as many as it takes.
        """
        values = iter(arguments)
        return b"".join(
            piece if isinstance(piece, bytes) else piece.convert(next(values), read_string)
            for piece in self.pieces
        )


def _escape(match: re.Match[bytes]) -> bytes:
    code = match[1]
    if code[:1].isdigit():
        return bytes([int(code, 8) & 0xFF])
    if code not in _ESCAPES:
        raise BadFormat("an escape sequence in the format string that is not supported")
    return bytes([_ESCAPES[code]])


def _conversion(match: re.Match[bytes]) -> _Conversion:
    # int() of a number of ten thousand digits would raise an error of its own.
    if max(len(match["width"]), len(match["precision"] or b"")) > len(str(MAX_WIDTH)):
        raise BadFormat("a width in the format string that is too large")
    width = int(match["width"] or 0)
    precision = None if match["precision"] is None else int(match["precision"] or 0)
    kind = match["kind"].decode()
    if width > MAX_WIDTH or (kind != "s" and (precision or 0) > MAX_WIDTH):
        raise BadFormat("a width in the format string that is too large")
    if kind in "cs" and match["length"]:
        raise BadFormat("wide characters in the format string are not supported")
    bits = _BITS.get(match["length"], 64)
    return _Conversion(kind, match["flags"].decode(), width, precision, bits)
