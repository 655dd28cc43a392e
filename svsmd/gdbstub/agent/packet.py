# SPDX-License-Identifier: MIT
"""Conditions and commands behind the address in packets Z0 and Z1.

`;X LEN,EXPRESSION...` are conditions, and `;cmds:PERSIST,X LEN,EXPRESSION...` commands; lengths and
expressions are in hex. One condition that holds is enough.

Spec: GDB manual, E.2 Packets, Z0. Deviations: PERSIST, which asks for commands to outlive the
connection, has no effect; nobody would read what they print.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from svsmd.gdbstub.agent.bytecode import BadExpression, Expression, parse_expression

MAX_EXPRESSIONS: Final = 64
"""Most conditions, and most commands, of one breakpoint."""

_EXPRESSION: Final = re.compile(rb"X(?P<length>[0-9a-fA-F]{1,8}),")
_COMMANDS: Final = re.compile(rb"cmds:[0-9a-fA-F],")


@dataclass(frozen=True, slots=True)
class Options:
    """What a breakpoint has beside its address.

    Attributes:
        size: bytes of byte code.
    """

    conditions: tuple[Expression, ...] = ()
    commands: tuple[Expression, ...] = ()
    size: int = 0


NO_OPTIONS: Final = Options()


def parse_options(text: bytes, registers: Sequence[str | None]) -> Options:
    """Reads what follows the first semicolon of a Z packet; `registers` as in `parse_expression`.

    Raises:
        BadExpression: it is malformed, or an expression is not one that can be evaluated.
    """
    conditions: list[Expression] = []
    commands: list[Expression] = []
    size = 0
    for part in text.split(b";"):
        match = _COMMANDS.match(part)
        into, at = (conditions, 0) if match is None else (commands, match.end())
        for code in _expressions(part, at):
            if len(into) == MAX_EXPRESSIONS:
                raise BadExpression(f"more than {MAX_EXPRESSIONS} expressions")
            into.append(parse_expression(code, registers))
            size += len(code)
    if any(expression.formats for expression in conditions):
        raise BadExpression("a condition that prints")
    return Options(tuple(conditions), tuple(commands), size)


def _expressions(part: bytes, at: int) -> Iterator[bytes]:
    while at < len(part):
        match = _EXPRESSION.match(part, at)
        if match is None:
            raise BadExpression("malformed conditions or commands")
        end = match.end() + 2 * int(match["length"], 16)
        try:
            code = bytes.fromhex(part[match.end() : end].decode("ascii"))
        except ValueError:
            raise BadExpression("malformed expression") from None
        if end > len(part) or 2 * len(code) != end - match.end():
            raise BadExpression("an expression that is shorter than its length")
        yield code
        at = end
