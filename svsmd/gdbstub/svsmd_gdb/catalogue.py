# SPDX-License-Identifier: MIT
"""What svsmd says of its structures and events: the tables that it sends along.

There is no second copy of them here; `svsmd/gdbstub/extension.py` makes them of svsmd's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Field:
    """A field of a structure, which is little-endian; offset and size in bytes."""

    name: str
    offset: int
    size: int

    def read(self, data: bytes) -> bytes:
        """Its bytes."""
        return data[self.offset : self.offset + self.size]

    def number(self, data: bytes) -> int:
        """Its value."""
        return int.from_bytes(self.read(data), "little")


@dataclass(frozen=True)
class EventClass:
    """A class of events: its name for `monitor catch`, its signal, what conditions may say."""

    name: str
    signal: str
    doc: str
    stop: str
    fields: Mapping[str, str]
    constants: Mapping[str, int]


@dataclass(frozen=True)
class Kernel:
    """Addresses of the SVSM's kernel: of its core gate, and where it has saved registers."""

    gate: int
    gate_end: int
    saved: int

    def is_gate(self, pc: int) -> bool:
        """Whether the code at the gate is there."""
        return self.gate <= pc < self.gate_end


@dataclass(frozen=True)
class Catalogue:
    """Structures by name, names of bits by register, names of exit codes, classes of events.

    `c_bit` is that bit of a guest-physical address, `error_codes` are the vectors that push one.
    """

    c_bit: int
    error_codes: frozenset[int]
    kernel: Kernel
    structures: Mapping[str, tuple[Field, ...]]
    flags: Mapping[str, Mapping[str, int]]
    exits: Mapping[int, str]
    classes: Mapping[str, EventClass]

    @classmethod
    def load(cls, data: Mapping[str, Any]) -> Catalogue:
        """From what svsmd has sent."""
        structures = {
            name: tuple(Field(*field) for field in fields)
            for name, fields in data["structures"].items()
        }
        classes: dict[str, EventClass] = {
            name: EventClass(name=name, **each) for name, each in data["classes"].items()
        }
        return cls(
            data["c_bit"],
            frozenset(data["error_codes"]),
            Kernel(**data["kernel"]),
            structures,
            data["flags"],
            data["exits"],
            classes,
        )

    def page(self, address: int) -> int:
        """The page of a guest-physical address."""
        return address & ~self.c_bit & ~0xFFF

    def flag_names(self, register: str, value: int) -> str:
        """Names of the bits that are set, such as "PE WP PG"; "" if none has a name."""
        flags = self.flags.get(register, {})
        return " ".join(name for name, mask in flags.items() if value & mask)
