# SPDX-License-Identifier: MIT
"""The server's side of the telnet protocol, without any I/O.

Spec: RFC 854 (protocol), RFC 855 (options), RFC 856 (BINARY), RFC 857 (ECHO), RFC 858
(SUPPRESS-GO-AHEAD), RFC 1143 (negotiation without loops).

The server begins: WILL ECHO and WILL SUPPRESS-GO-AHEAD put a stock client into character mode
without local echo, before its user has typed anything. It agrees to BINARY if the client asks,
refuses every other option, and never begins a second time, so that no peer can draw it into a
loop: each command of the peer is answered by one command at most.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, IntEnum, auto
from typing import Final

MAX_SUBNEGOTIATION: Final = 1024
"""Bytes of a subnegotiation that are skipped; after so many its end must have got lost."""

ARE_YOU_THERE_ANSWER: Final = b"\r\n[svsmd: yes]\r\n"


class Command(IntEnum):
    """The byte after IAC (RFC 854, "TELNET command structure")."""

    SE = 240
    NOP = 241
    DATA_MARK = 242
    BREAK = 243
    INTERRUPT_PROCESS = 244
    ABORT_OUTPUT = 245
    ARE_YOU_THERE = 246
    ERASE_CHARACTER = 247
    ERASE_LINE = 248
    GO_AHEAD = 249
    SB = 250
    WILL = 251
    WONT = 252
    DO = 253
    DONT = 254
    IAC = 255


class Option(IntEnum):
    """The options that this side agrees to."""

    BINARY = 0
    ECHO = 1
    SUPPRESS_GO_AHEAD = 3


@dataclass(frozen=True, slots=True)
class Data:
    """Bytes that the user typed, as the serial line gets them."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Break:
    """The user sent a break."""


@dataclass(frozen=True, slots=True)
class Reply:
    """Bytes to be sent to the client as they are."""

    data: bytes


Event = Data | Break | Reply


class _State(Enum):
    """Where in the peer's byte stream the codec is."""

    DATA = auto()
    COMMAND = auto()
    """After IAC."""
    OPTION = auto()
    """After IAC WILL, WONT, DO or DONT."""
    SUBNEGOTIATION = auto()
    SUBNEGOTIATION_IAC = auto()


class _Side(Enum):
    """State of one option at one side: RFC 1143's, without WANTNO, since nothing is taken back."""

    NO = auto()
    WANT_YES = auto()
    """Asked for, not answered."""
    YES = auto()


_IAC: Final = bytes([Command.IAC])
_CR: Final = 0x0D
_LF: Final = 0x0A
_NUL: Final = 0x00
_INTERRUPT: Final = b"\x03"

_OURS: Final = frozenset(Option)
"""Options that this side performs if the client says DO."""
_THEIRS: Final = frozenset({Option.BINARY, Option.SUPPRESS_GO_AHEAD})
"""Options that the client may perform if it says WILL."""


class TelnetCodec:
    """One client's connection: bytes in, events out; guest output in, bytes to be sent out.

    Any bytes are acceptable, in any pieces; where they make no sense they are skipped.
    """

    def __init__(self) -> None:
        self._state = _State.DATA
        self._negotiation = Command.NOP
        self._skipped = 0
        self._after_cr = False
        self._ours = {Option.ECHO: _Side.WANT_YES, Option.SUPPRESS_GO_AHEAD: _Side.WANT_YES}
        self._theirs = {Option.SUPPRESS_GO_AHEAD: _Side.WANT_YES}

    def greeting(self) -> bytes:
        """What is sent first."""
        return (
            _command(Command.WILL, Option.ECHO)
            + _command(Command.WILL, Option.SUPPRESS_GO_AHEAD)
            + _command(Command.DO, Option.SUPPRESS_GO_AHEAD)
        )

    def encode(self, data: bytes) -> bytes:
        """Guest output as the client must get it.

        IAC is doubled. Outside BINARY, a CR that no LF follows becomes CR NUL (RFC 854, "The NVT
        printer and keyboard"); one at the end of `data` too, since CR NUL LF prints the same as
        CR LF and the client need not wait for what comes.
        """
        data = data.replace(_IAC, _IAC + _IAC)
        if self._is_on(self._ours, Option.BINARY):
            return data
        return data.replace(b"\r", b"\r\0").replace(b"\r\0\n", b"\r\n")

    def receive_data(self, data: bytes) -> Iterator[Event]:
        """The events that `data` completes, in their order."""
        typed = bytearray()
        for byte in data:
            event = self._step(byte, typed)
            if event is not None:
                if typed:
                    yield Data(bytes(typed))
                    typed.clear()
                yield event
        if typed:
            yield Data(bytes(typed))

    def _step(self, byte: int, typed: bytearray) -> Event | None:
        """Take one byte: it adds to `typed`, or makes an event that comes after `typed`."""
        match self._state:
            case _State.DATA:
                if byte == Command.IAC:
                    self._state = _State.COMMAND
                else:
                    self._type(byte, typed)
            case _State.COMMAND:
                self._state = _State.DATA
                return self._command(byte, typed)
            case _State.OPTION:
                self._state = _State.DATA
                return self._negotiate(self._negotiation, byte)
            case _State.SUBNEGOTIATION:
                self._skipped += 1
                if byte == Command.IAC:
                    self._state = _State.SUBNEGOTIATION_IAC
                elif self._skipped >= MAX_SUBNEGOTIATION:
                    self._state = _State.DATA
            case _State.SUBNEGOTIATION_IAC:
                if byte == Command.IAC:  # a 255 among the parameters
                    self._state = _State.SUBNEGOTIATION
                elif byte == Command.SE:
                    self._state = _State.DATA
                else:  # the end got lost, and this is the next command (as BSD's telnetd does)
                    self._state = _State.DATA
                    return self._command(byte, typed)
        return None

    def _type(self, byte: int, typed: bytearray) -> None:
        """One byte of the keyboard: Enter is CR NUL or CR LF there, and CR on the serial line."""
        if self._after_cr and byte in (_NUL, _LF):
            self._after_cr = False
            return
        self._after_cr = byte == _CR and not self._is_on(self._theirs, Option.BINARY)
        typed.append(byte)

    def _command(self, byte: int, typed: bytearray) -> Event | None:
        match byte:
            case Command.IAC:
                self._type(byte, typed)
            case Command.WILL | Command.WONT | Command.DO | Command.DONT:
                self._negotiation = Command(byte)
                self._state = _State.OPTION
            case Command.SB:
                self._skipped = 0
                self._state = _State.SUBNEGOTIATION
            case Command.BREAK:
                return Break()
            case Command.INTERRUPT_PROCESS:  # what a client in line mode makes of Ctrl-C
                return Data(_INTERRUPT)
            case Command.ARE_YOU_THERE:
                return Reply(ARE_YOU_THERE_ANSWER)
        return None

    def _negotiate(self, command: Command, option: int) -> Reply | None:
        """The answer, if any. Only a change of state, or a refusal, is answered (RFC 1143)."""
        if command in (Command.DO, Command.DONT):
            sides, allowed, yes, no = self._ours, _OURS, Command.WILL, Command.WONT
        else:
            sides, allowed, yes, no = self._theirs, _THEIRS, Command.DO, Command.DONT
        positive = command in (Command.DO, Command.WILL)
        if option not in allowed:
            return Reply(_command(no, option)) if positive else None
        known = Option(option)
        before = sides.get(known, _Side.NO)
        sides[known] = _Side.YES if positive else _Side.NO
        match before, positive:
            case (_Side.NO, True):
                return Reply(_command(yes, option))
            case (_Side.YES, False):
                return Reply(_command(no, option))
        return None  # the answer to what we asked for, or nothing new

    @staticmethod
    def _is_on(sides: dict[Option, _Side], option: Option) -> bool:
        return sides.get(option) is _Side.YES


def _command(command: Command, option: int) -> bytes:
    return bytes([Command.IAC, command, option])
