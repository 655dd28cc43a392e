# SPDX-License-Identifier: MIT
"""The loaded context as conditions of breakpoints read it: with no effect on anything."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from svsmd.snp.faults import GuestFault, NestedFault
from svsmd.snp.memory import NotRam
from svsmd.snp.predicate import MASK, NoValue
from svsmd.snp.register_names import GENERAL
from svsmd.snp.types import C_BIT, PAGE_MASK, PAGE_SIZE

if TYPE_CHECKING:
    from svsmd.snp.processor import Processor

_GENERAL: Final = {name: number for number, name in enumerate(GENERAL)}


class HitView:
    """An `Evaluator` for programs that do not call.

    Attributes:
        prepare_read: called with physical address and length before RAM is read, so that registers
            that belong there are there.
        other_register: value of a register that is none of the general ones; raises LookupError.
    """

    def __init__(self, processor: Processor) -> None:
        self._p = processor
        self._cpu = processor.cpu
        self.prepare_read: Callable[[int, int], None] = lambda spa, nbytes: None
        self.other_register: Callable[[str], int] = _no_register

    def register(self, name: str) -> int:
        """See Evaluator."""
        number = _GENERAL.get(name)
        if number is not None:
            return self._cpu.regs[number]
        try:
            return self.other_register(name)
        except LookupError as error:
            raise NoValue(str(error)) from None

    def load(self, address: int, nbytes: int) -> int:
        """See Evaluator."""
        return int.from_bytes(self.read(address, nbytes), "little")

    def read(self, address: int, nbytes: int) -> bytes:
        """Bytes of linear memory, whatever its permissions are. Raises `NoValue`."""
        parts = []
        while nbytes:
            chunk = min(nbytes, PAGE_SIZE - (address & PAGE_MASK))
            try:
                spa = self._p.translate_for_debugger(address) & ~C_BIT
                self.prepare_read(spa, chunk)
                parts.append(self._p.memory.read(spa, chunk))
            except (GuestFault, NestedFault, NotRam):
                raise NoValue(f"cannot read memory at {address:#x}") from None
            address = (address + chunk) & MASK
            nbytes -= chunk
        return b"".join(parts)

    def call(self, index: int, arguments: Sequence[int]) -> None:
        """See Evaluator."""
        raise NoValue("a condition calls no function")


def _no_register(name: str) -> int:
    raise LookupError(f"there is no register {name}")
