# SPDX-License-Identifier: MIT
"""Live views of structures in memory: every field is a property that reads and writes the bytes.

A structure is declared by the offsets of its manual::

    class SecretsPage(PageView):
        SIZE = 4096
        version = U32(0x000)
        vmpck0 = Raw(0x020, 32)

Nothing is copied: two views of one buffer show the same values, and a view of guest memory shows
what the guest writes. A field costs about 0.2 microseconds.

Spec: none; each structure names its own source. All of them are little-endian.
"""

from __future__ import annotations

import struct
from mmap import mmap
from typing import ClassVar, Final, NamedTuple, Self, TypeAlias, overload

WritableBuffer: TypeAlias = bytearray | memoryview | mmap


class FieldLocation(NamedTuple):
    """Where a field lies in its structure, both in bytes."""

    offset: int
    size: int


class PageField:
    """A field of a `PageView`; read through the class it is this description."""

    __slots__ = ("name", "offset", "size")

    def __init__(self, offset: int, size: int) -> None:
        self.offset: Final = offset
        self.size: Final = size
        self.name = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name


class IntField(PageField):
    """A little-endian unsigned number; a value that does not fit raises struct.error."""

    __slots__ = ("_pack_into", "_unpack_from")

    def __init__(self, offset: int, layout: str) -> None:
        code = struct.Struct(layout)
        super().__init__(offset, code.size)
        self._unpack_from = code.unpack_from
        self._pack_into = code.pack_into

    @overload
    def __get__(self, page: None, owner: type) -> Self: ...
    @overload
    def __get__(self, page: PageView, owner: type) -> int: ...
    def __get__(self, page: PageView | None, owner: type) -> Self | int:
        if page is None:
            return self
        value: int = self._unpack_from(page.memory, self.offset)[0]
        return value

    def __set__(self, page: PageView, value: int) -> None:
        self._pack_into(page.memory, self.offset, value)


class U8(IntField):
    """One byte."""

    __slots__ = ()

    def __init__(self, offset: int) -> None:
        super().__init__(offset, "<B")


class U16(IntField):
    """Two bytes."""

    __slots__ = ()

    def __init__(self, offset: int) -> None:
        super().__init__(offset, "<H")


class U32(IntField):
    """Four bytes."""

    __slots__ = ()

    def __init__(self, offset: int) -> None:
        super().__init__(offset, "<I")


class U64(IntField):
    """Eight bytes."""

    __slots__ = ()

    def __init__(self, offset: int) -> None:
        super().__init__(offset, "<Q")


class Raw(PageField):
    """A run of bytes; ValueError when what is stored has another length."""

    __slots__ = ()

    @overload
    def __get__(self, page: None, owner: type) -> Self: ...
    @overload
    def __get__(self, page: PageView, owner: type) -> bytes: ...
    def __get__(self, page: PageView | None, owner: type) -> Self | bytes:
        if page is None:
            return self
        return bytes(page.memory[self.offset : self.offset + self.size])

    def __set__(self, page: PageView, value: bytes) -> None:
        if len(value) != self.size:
            raise ValueError(f"{self.name} has {self.size} bytes, not {len(value)}")
        page.memory[self.offset : self.offset + self.size] = value


class PageView:
    """Base of the structures; `SIZE` bytes of a writable buffer, shared and not copied."""

    __slots__ = ("memory",)

    SIZE: ClassVar[int] = 0
    """Bytes of the structure."""
    FIELDS: ClassVar[dict[str, FieldLocation]] = {}
    """Every field by name, in the order of the offsets."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        fields = [f for f in vars(cls).values() if isinstance(f, PageField)]
        located = dict(cls.FIELDS) | {f.name: FieldLocation(f.offset, f.size) for f in fields}
        cls.FIELDS = dict(sorted(located.items(), key=lambda item: item[1]))
        end = 0
        for name, (offset, size) in cls.FIELDS.items():
            if offset < end:
                raise TypeError(f"{cls.__name__}.{name} overlaps the field before it")
            end = offset + size
        if end > cls.SIZE:
            raise TypeError(f"{cls.__name__} has {cls.SIZE} bytes, its fields need {end}")

    def __init__(self, memory: WritableBuffer | None = None) -> None:
        """View `memory`, or a new zeroed buffer; ValueError if the length is not `SIZE`."""
        if memory is None:
            memory = bytearray(self.SIZE)
        if len(memory) != self.SIZE:
            raise ValueError(f"{type(self).__name__} has {self.SIZE} bytes, not {len(memory)}")
        self.memory: Final = memory

    @classmethod
    def copy_of(cls, data: bytes | bytearray | memoryview) -> Self:
        """View a private copy of `data`."""
        return cls(bytearray(data))

    def tobytes(self) -> bytes:
        """Return a copy of the whole structure."""
        return bytes(self.memory[: self.SIZE])

    def clear(self) -> None:
        """Set every byte to 0."""
        self.memory[: self.SIZE] = bytes(self.SIZE)
