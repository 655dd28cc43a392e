# SPDX-License-Identifier: MIT
"""Conditions on the fields of an event: `gpa >= 0x8000 and gpa < 0x9000 or not vmpl == 2`.

    or       = and { "or" and }
    and      = not { "and" not }
    not      = "not" not | relation
    relation = masked [ ( "==" | "!=" | "<" | "<=" | ">" | ">=" ) masked ]
    masked   = atom { "&" atom }
    atom     = NUMBER | NAME | "(" or ")"

Numbers are unsigned with up to 64 bits, in decimal or hex. A NAME is a field of the class, or
a name that the manuals have for a value of it. What comparisons and the words give is 1 or 0; a
condition holds if it is not 0.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from svsmd.snp.events.classes import CLASSES, EventClass, SnpEvent

MAX_CONDITION: Final = 1000
"""Characters of a condition."""
MAX_DEPTH: Final = 20
"""Parentheses and `not` within each other."""
MAX_SHOWN: Final = 40
"""Characters of the user's text that an error repeats."""

_TOKEN: Final = re.compile(
    r"\s*(?:(?P<number>[0-9][0-9A-Za-z_]*)|(?P<name>[A-Za-z_][A-Za-z_0-9]*)"
    r"|(?P<operator>==|!=|<=|>=|<|>|&|\(|\)))",
    re.ASCII,
)
_NUMBER: Final = re.compile(r"0[xX][0-9a-fA-F]+|[0-9]+")
_WORDS: Final = frozenset({"and", "or", "not"})
_RELATIONS: Final[Mapping[str, Callable[[int, int], bool]]] = {
    "==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le,
    ">": operator.gt, ">=": operator.ge,
}  # fmt: skip

_Value = Callable[[SnpEvent], int]


class ConditionError(Exception):
    """The text is no condition for this class; says why, and what the class has. One line."""


@dataclass(frozen=True, slots=True)
class Condition:
    """A condition as it was written, and what it says of an event."""

    text: str
    holds: Callable[[SnpEvent], int]


def parse_condition(kind: EventClass, text: str) -> Condition:
    """Make a condition on events of a class; an empty text holds for all. Raises ConditionError."""
    if len(text) > MAX_CONDITION:
        raise ConditionError(f"the condition has more than {MAX_CONDITION} characters")
    text = text.strip()
    return Condition(text, _Parser(kind, text).parse() if text else lambda event: 1)


class _Parser:
    def __init__(self, kind: EventClass, text: str) -> None:
        self._spec = CLASSES[kind]
        self._tokens = self._split(text)
        self._next = 0
        self._depth = 0

    def parse(self) -> _Value:
        value = self._or()
        if self._token:
            raise self._error(f"{self._token[:MAX_SHOWN]!r} is too much, from there on")
        return value

    def _error(self, what: str) -> ConditionError:
        fields = ", ".join(self._spec.field_names)
        return ConditionError(f"{what}; fields of {self._spec.name}: {fields}")

    def _split(self, text: str) -> list[str]:
        tokens = []
        at = 0
        while at < len(text):
            match = _TOKEN.match(text, at)
            if match is None:
                shown = text[at : at + MAX_SHOWN].strip()
                raise self._error(f"{shown!r} is not understood")
            tokens.append(match[0].strip())
            at = match.end()
        return [*tokens, ""]

    @property
    def _token(self) -> str:
        return self._tokens[self._next]

    def _accept(self, token: str) -> bool:
        if self._token != token:
            return False
        self._next += 1
        return True

    def _or(self) -> _Value:
        parts = [self._and()]
        while self._accept("or"):
            parts.append(self._and())
        if len(parts) == 1:
            return parts[0]
        return lambda event: int(any(part(event) for part in parts))

    def _and(self) -> _Value:
        parts = [self._not()]
        while self._accept("and"):
            parts.append(self._not())
        if len(parts) == 1:
            return parts[0]
        return lambda event: int(all(part(event) for part in parts))

    def _not(self) -> _Value:
        if not self._accept("not"):
            return self._relation()
        self._deeper()
        value = self._not()
        self._depth -= 1
        return lambda event: int(not value(event))

    def _relation(self) -> _Value:
        left = self._masked()
        compare = _RELATIONS.get(self._token)
        if compare is None:
            return left
        self._next += 1
        right = self._masked()
        if self._token in _RELATIONS:
            raise self._error("join comparisons by `and`")
        return lambda event: int(compare(left(event), right(event)))

    def _masked(self) -> _Value:
        parts = [self._atom()]
        while self._accept("&"):
            parts.append(self._atom())
        if len(parts) == 1:
            return parts[0]

        def masked(event: SnpEvent) -> int:
            value = parts[0](event)
            for part in parts[1:]:
                value &= part(event)
            return value

        return masked

    def _atom(self) -> _Value:
        if self._accept("("):
            self._deeper()
            value = self._or()
            self._depth -= 1
            if not self._accept(")"):
                raise self._error("a `)` is missing")
            return value
        token = self._token
        if not token:
            raise self._error("the condition ends too early")
        self._next += 1
        if token[0].isdigit():
            return self._number(token)
        if token in self._spec.field_names:
            return lambda event: event.field(token)
        if token in self._spec.constants:
            constant = self._spec.constants[token]
            return lambda event: constant
        if token in _WORDS or not token.isidentifier():
            raise self._error(f"{token!r} where a field or a number has to be")
        raise self._error(f"there is no field {token[:MAX_SHOWN]!r}")

    def _number(self, token: str) -> _Value:
        if not _NUMBER.fullmatch(token):
            raise self._error(f"{token[:MAX_SHOWN]!r} is no number")
        value = int(token, 16) if token[:2] in ("0x", "0X") else int(token)
        if value >> 64:
            raise self._error(f"{token[:MAX_SHOWN]} has more than 64 bits")
        return lambda event: value

    def _deeper(self) -> None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self._error(f"more than {MAX_DEPTH} levels of parentheses and `not`")
