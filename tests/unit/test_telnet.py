# SPDX-License-Identifier: MIT
"""The telnet codec, case by case; tests/property/test_telnet.py has what holds for all bytes."""

import pytest

from svsmd.console.telnet import (
    ARE_YOU_THERE_ANSWER,
    MAX_SUBNEGOTIATION,
    Break,
    Data,
    Reply,
    TelnetCodec,
)

IAC, SE, BRK, IP, AYT, SB = 255, 240, 243, 244, 246, 250
WILL, WONT, DO, DONT = 251, 252, 253, 254
BINARY, ECHO, SGA, TIMING_MARK, NAWS, LINEMODE = 0, 1, 3, 6, 31, 34


def events(*chunks: bytes) -> list[object]:
    codec = TelnetCodec()
    return [event for chunk in chunks for event in codec.receive_data(chunk)]


def typed(*chunks: bytes) -> bytes:
    found = events(*chunks)
    assert all(isinstance(event, Data) for event in found)
    return b"".join(event.data for event in found if isinstance(event, Data))


def test_the_server_asks_for_character_mode_at_once():
    assert TelnetCodec().greeting() == bytes([IAC, WILL, ECHO, IAC, WILL, SGA, IAC, DO, SGA])


def test_the_answers_of_a_stock_client_are_not_answered():
    assert events(bytes([IAC, DO, ECHO, IAC, DO, SGA, IAC, WILL, SGA])) == []


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        ([WILL, BINARY], [DO, BINARY]),
        ([DO, BINARY], [WILL, BINARY]),
        ([WILL, ECHO], [DONT, ECHO]),
        ([WILL, NAWS], [DONT, NAWS]),
        ([DO, LINEMODE], [WONT, LINEMODE]),
        ([DO, TIMING_MARK], [WONT, TIMING_MARK]),
        ([DO, 255], [WONT, 255]),
        ([WONT, NAWS], None),
        ([DONT, NAWS], None),
        ([DONT, BINARY], None),
        ([DONT, ECHO], None),  # refuses what we asked for
        ([WONT, SGA], None),
    ],
)
def test_one_command_has_at_most_one_answer(command, answer):
    expected = [] if answer is None else [Reply(bytes([IAC, *answer]))]
    assert events(bytes([IAC, *command])) == expected


def test_only_changes_are_answered():
    will, wont = bytes([IAC, WILL, BINARY]), bytes([IAC, WONT, BINARY])
    do, dont = Reply(bytes([IAC, DO, BINARY])), Reply(bytes([IAC, DONT, BINARY]))
    assert events(will, will, wont, wont, will) == [do, dont, do]


@pytest.mark.parametrize(
    ("sent", "received"),
    [
        (b"ls", b"ls"),
        (b"ls\r\0", b"ls\r"),
        (b"ls\r\n", b"ls\r"),
        (b"ls\n", b"ls\n"),
        (b"a\rb", b"a\rb"),
        (b"\r\r\0\r\n\r", b"\r\r\r\r"),
        (b"\r\0\0", b"\r\0"),
        (b"\r\n\n", b"\r\n"),
        (b"\xff\xff", b"\xff"),
        (b"\r\xff\xff\n", b"\r\xff\n"),
        (b"\x03\x1b[A", b"\x03\x1b[A"),
    ],
)
def test_what_is_typed(sent, received):
    assert typed(sent) == received
    assert typed(*(bytes([byte]) for byte in sent)) == received


def test_enter_is_not_delayed():
    codec = TelnetCodec()
    assert list(codec.receive_data(b"\r")) == [Data(b"\r")]
    assert list(codec.receive_data(b"\0")) == []


def test_binary_input_is_untouched():
    codec = TelnetCodec()
    list(codec.receive_data(bytes([IAC, WILL, BINARY])))
    assert list(codec.receive_data(b"\r\0\r\n\xff\xff")) == [Data(b"\r\0\r\n\xff")]


def test_break_keeps_its_place():
    assert events(b"a" + bytes([IAC, BRK]) + b"b") == [Data(b"a"), Break(), Data(b"b")]


def test_interrupt_process_is_ctrl_c():
    assert events(bytes([IAC, IP])) == [Data(b"\x03")]


def test_are_you_there():
    assert events(bytes([IAC, AYT])) == [Reply(ARE_YOU_THERE_ANSWER)]


@pytest.mark.parametrize("command", [SE, 241, 242, 245, 247, 248, 249, 0, 7])
def test_other_commands_are_skipped(command):
    assert typed(b"a" + bytes([IAC, command]) + b"b") == b"ab"


class TestSubnegotiation:
    def test_is_skipped(self):
        assert typed(b"a" + bytes([IAC, SB, NAWS, 0, 80, IAC, IAC, 24, IAC, SE]) + b"b") == b"ab"

    def test_a_command_ends_it(self):
        assert events(bytes([IAC, SB, NAWS, 0, IAC, BRK]) + b"b") == [Break(), Data(b"b")]

    def test_one_without_an_end_does_not_swallow_all(self):
        assert typed(bytes([IAC, SB]) + b"x" * MAX_SUBNEGOTIATION + b"b") == b"b"

    def test_nor_does_one_full_of_escapes(self):
        flood = bytes([IAC, IAC]) * MAX_SUBNEGOTIATION
        assert len(typed(bytes([IAC, SB]) + flood + b"xb")) <= 2


class TestOutput:
    @pytest.mark.parametrize(
        ("printed", "sent"),
        [
            (b"text", b"text"),
            (b"line\r\n", b"line\r\n"),
            (b"50%\r", b"50%\r\0"),
            (b"a\rb", b"a\r\0b"),
            (b"\n", b"\n"),
            (b"\r\r\n", b"\r\0\r\n"),
            (b"\xff", b"\xff\xff"),
            (b"\r\xff", b"\r\0\xff\xff"),
        ],
    )
    def test_is_escaped(self, printed, sent):
        assert TelnetCodec().encode(printed) == sent

    def test_binary_output_keeps_its_line_ends(self):
        codec = TelnetCodec()
        list(codec.receive_data(bytes([IAC, DO, BINARY])))
        assert codec.encode(b"\r\xff\n") == b"\r\xff\xff\n"
