# SPDX-License-Identifier: MIT
"""Named bits of registers, table entries and request words.

A register is an `int` with names for its bits::

    class Pte(Register64):
        P = Bit(0)
        NX = Bit(63)
        ADDR = AddressBits(51, 12)

    pte = Pte.of(P=True, ADDR=0x1000)
    pte.NX                       # False
    pte.replace(NX=True)         # a new Pte
    struct.pack("<Q", pte)       # it is an int
    str(pte)                     # "Pte(P ADDR=0x1000)"

Bits that no field names are kept by `replace`, so that a register read from hostile memory can be
looked at, changed and written back.

Spec: none; bit numbers are written as in AMD's manuals, most significant first.
"""

from __future__ import annotations

from typing import ClassVar, Final, Self, overload


class Field:
    """Bits `high` down to `low` of a register; the value is shifted down to bit 0."""

    __slots__ = ("high", "low", "mask", "name", "value_shift")

    def __init__(self, high: int, low: int) -> None:
        if not 0 <= low <= high:
            raise ValueError(f"no such bits: {high}:{low}")
        self.high: Final = high
        self.low: Final = low
        self.mask: Final = ((1 << (high - low + 1)) - 1) << low
        self.value_shift = low
        self.name = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def insert(self, register: int, value: int) -> int:
        """Return `register` with this field set to `value`; ValueError if it does not fit."""
        raw = int(value) << self.value_shift
        if raw & ~self.mask:
            raise ValueError(
                f"{self.name} has bits {self.high}:{self.low}: {value:#x} does not fit"
            )
        return (register & ~self.mask) | raw


class Bit(Field):
    """One bit; reads as a bool."""

    __slots__ = ()

    def __init__(self, position: int) -> None:
        super().__init__(position, position)

    @overload
    def __get__(self, register: None, owner: type) -> Self: ...
    @overload
    def __get__(self, register: Register, owner: type) -> bool: ...
    def __get__(self, register: Register | None, owner: type) -> Self | bool:
        if register is None:
            return self
        return bool(register & self.mask)


class Bits(Field):
    """Several bits; reads as the number that they hold."""

    __slots__ = ()

    @overload
    def __get__(self, register: None, owner: type) -> Self: ...
    @overload
    def __get__(self, register: Register, owner: type) -> int: ...
    def __get__(self, register: Register | None, owner: type) -> Self | int:
        if register is None:
            return self
        return (register & self.mask) >> self.low


class AddressBits(Field):
    """The bits of an address that lie in their place (a page table entry's 51:12)."""

    __slots__ = ()

    def __init__(self, high: int, low: int) -> None:
        super().__init__(high, low)
        self.value_shift = 0

    @overload
    def __get__(self, register: None, owner: type) -> Self: ...
    @overload
    def __get__(self, register: Register, owner: type) -> int: ...
    def __get__(self, register: Register | None, owner: type) -> Self | int:
        if register is None:
            return self
        return register & self.mask


class Register(int):
    """Base of the registers; subclass one of the sized ones below."""

    WIDTH: ClassVar[int] = 0
    """Bits of the register."""
    FIELDS: ClassVar[dict[str, Field]] = {}
    """The named fields, in the order of their declaration."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.FIELDS = dict(cls.FIELDS)
        taken = 0
        for field in cls.FIELDS.values():
            taken |= field.mask
        for name, field in vars(cls).items():
            if not isinstance(field, Field):
                continue
            if field.high >= cls.WIDTH:
                raise TypeError(f"{cls.__name__}.{name}: bit {field.high} of {cls.WIDTH}")
            if taken & field.mask:
                raise TypeError(f"{cls.__name__}.{name} overlaps another field")
            taken |= field.mask
            cls.FIELDS[name] = field

    def __new__(cls, value: int = 0) -> Self:
        if value < 0 or value >> cls.WIDTH:
            raise ValueError(f"{cls.__name__} has {cls.WIDTH} bits: {value:#x}")
        return super().__new__(cls, value)

    @classmethod
    def of(cls, **fields: int) -> Self:
        """Build a register from field values; all other bits are 0."""
        return cls(0).replace(**fields)

    def replace(self, **fields: int) -> Self:
        """Return a copy with some fields changed; ValueError if a value does not fit."""
        value = int(self)
        for name, field_value in fields.items():
            value = self.FIELDS[name].insert(value, field_value)
        return type(self)(value)

    @property
    def unnamed(self) -> int:
        """The bits that no field covers, in place: what a manual calls reserved or MBZ."""
        value = int(self)
        for field in self.FIELDS.values():
            value &= ~field.mask
        return value

    def __repr__(self) -> str:
        words = []
        for name, field in self.FIELDS.items():
            raw = int(self) & field.mask
            if not raw:
                continue
            words.append(
                name if isinstance(field, Bit) else f"{name}={raw >> field.value_shift:#x}"
            )
        if self.unnamed:
            words.append(f"+{self.unnamed:#x}")
        return f"{type(self).__name__}({' '.join(words)})"

    __str__ = __repr__


class Register8(Register):
    """A register of 8 bits."""

    WIDTH = 8


class Register16(Register):
    """A register of 16 bits."""

    WIDTH = 16


class Register32(Register):
    """A register of 32 bits."""

    WIDTH = 32


class Register64(Register):
    """A register of 64 bits."""

    WIDTH = 64
