# SPDX-License-Identifier: MIT
"""Loads a segment register for a debugger: with its selector goes its descriptor.

It is what IRET does for CS, which may change the CPL, MOV for the data segments, LLDT and LTR; but
the descriptor in memory stays as it is, not marked accessed or busy. In real and virtual-8086 mode
the base follows from the selector.

Spec: 24593, 4.5 to 4.8 (selectors, descriptors), 4.8.3 (system descriptors in long mode), 4.12
(protection checks), 8.9.3 (null SS in 64-bit mode).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from svsmd.snp.cpu_mode import CpuMode, mode_of
from svsmd.snp.page_walk import EFER_LMA
from svsmd.snp.predicate import NoValue
from svsmd.snp.register_names import SEGMENTS
from svsmd.snp.segment_descriptor import (
    GRANULARITY,
    segment_base,
    segment_flags,
    segment_limit,
)
from svsmd.snp.vmsa_state import mode_flags

if TYPE_CHECKING:
    from svsmd.snp.processor import Processor

# The second word of a descriptor.
_ACCESSED, _WRITABLE, _CONFORMING, _CODE = 1 << 8, 1 << 9, 1 << 10, 1 << 11
_S, _PRESENT, _LONG, _BIG = 1 << 12, 1 << 15, 1 << 21, 1 << 22
_TYPE_SHIFT, _DPL_SHIFT = 8, 13
_LDT, _TSS16, _TSS, _BUSY = 2, 1, 9, 2
_NULL: Final = 0xFFFC
_LOCAL_TABLE: Final = 1 << 2


class _Descriptor(NamedTuple):
    base: int
    limit: int
    attributes: int

    @property
    def dpl(self) -> int:
        return self.attributes >> _DPL_SHIFT & 3

    @property
    def system_type(self) -> int:
        return self.attributes >> _TYPE_SHIFT & 0xF


_UNUSABLE: Final = _Descriptor(0, 0, 0)


def load_segment(processor: Processor, name: str, selector: int) -> None:
    """ES, CS, SS, DS, FS, GS, LDTR or TR becomes `selector`.

    Raises:
        ValueError: the processor would not load it; nothing is changed.
    """
    cpu = processor.cpu
    mode = mode_of(cpu)
    cpl = cpu.cpl
    if selector >> 16:
        raise ValueError(f"a selector has 16 bits, {selector:#x} has more")
    if mode in (CpuMode.REAL, CpuMode.VIRTUAL_8086):
        if name in ("ldtr", "tr"):
            raise ValueError(f"{name} cannot be loaded in real and virtual-8086 mode")
        offset = _offset(processor, name)
        cpu.set_half(offset, selector)
        cpu.set_word(offset + 8, selector << 4)
    else:
        if name in ("ldtr", "tr"):
            descriptor = _system_segment(processor, name, selector)
        elif name == "cs":
            descriptor = _code_segment(processor, selector)
            cpl = selector & 3
        else:
            descriptor = _data_segment(processor, name, selector)
        cpu.set_segment(SEGMENTS.index(name), selector, *descriptor)
    cpu.hflags = mode_flags(cpu, cpl, shadow=cpu.interrupt_shadow)


def set_limit(processor: Processor, name: str, value: int) -> None:
    """Changes a limit, in bytes, and with it the granularity. Raises ValueError."""
    cpu, offset = processor.cpu, _offset(processor, name)
    if name in ("gdtr", "idtr"):
        if value >> 16:
            raise ValueError(f"the limit of {name} has 16 bits")
    else:
        pages = value & 0xFFF == 0xFFF
        if value >> 20 and not pages:
            raise ValueError(f"a limit above 0xfffff counts pages, and ends in fff: {value:#x}")
        attributes = cpu.half(offset + 20)
        if value >> 20:
            attributes |= GRANULARITY
        elif not pages:
            attributes &= ~GRANULARITY
        cpu.set_half(offset + 20, attributes)
    cpu.set_half(offset + 16, value)


def _offset(processor: Processor, name: str) -> int:
    return processor.cpu.layout.segment(SEGMENTS.index(name))


def _is_null(selector: int) -> bool:
    return not selector & _NULL


def _code_segment(processor: Processor, selector: int) -> _Descriptor:
    if _is_null(selector):
        raise ValueError("cs cannot be null")
    found = _descriptor(processor, selector)
    rpl, attributes = selector & 3, found.attributes
    if not attributes & _S or not attributes & _CODE:
        raise ValueError(f"selector {selector:#x} names no code segment")
    if found.dpl > rpl or (found.dpl != rpl and not attributes & _CONFORMING):
        raise ValueError(f"the code segment of {selector:#x} has DPL {found.dpl}, not {rpl}")
    if not processor.cpu.word(processor.cpu.layout.efer) & EFER_LMA or not attributes & _LONG:
        return found
    if attributes & _BIG:
        raise ValueError(f"the code segment of {selector:#x} has both L and D")
    return found._replace(base=0)  # 64-bit code has none


def _data_segment(processor: Processor, name: str, selector: int) -> _Descriptor:
    cpl, rpl = processor.cpu.cpl, selector & 3
    if name == "ss":
        return _stack_segment(processor, selector)
    if _is_null(selector):
        return _UNUSABLE
    found = _descriptor(processor, selector)
    attributes = found.attributes
    code = bool(attributes & _CODE)
    if not attributes & _S or (code and not attributes & _WRITABLE):  # R, for code
        raise ValueError(f"selector {selector:#x} names no segment that can be read")
    if found.dpl < max(cpl, rpl) and not (code and attributes & _CONFORMING):
        raise ValueError(
            f"the segment of {selector:#x} has DPL {found.dpl}, CPL {cpl} and RPL {rpl} need more"
        )
    return found


def _stack_segment(processor: Processor, selector: int) -> _Descriptor:
    cpl = processor.cpu.cpl
    if selector & 3 != cpl:
        raise ValueError(f"RPL of {selector:#x} is not {cpl}, as CPL is")
    if _is_null(selector):
        if cpl == 3 or mode_of(processor.cpu) is not CpuMode.LONG_64:
            raise ValueError("ss can be null in 64-bit mode below CPL 3 only")
        return _UNUSABLE
    found = _descriptor(processor, selector)
    kind = _S | _WRITABLE
    if found.attributes & (kind | _CODE) != kind or found.dpl != cpl:
        raise ValueError(f"selector {selector:#x} names no writable data of DPL {cpl}")
    return found


def _system_segment(processor: Processor, name: str, selector: int) -> _Descriptor:
    if _is_null(selector):
        if name == "tr":
            raise ValueError("tr cannot be null")
        return _UNUSABLE
    if selector & _LOCAL_TABLE:
        raise ValueError(f"selector {selector:#x} is one of the local table")
    found = _descriptor(processor, selector, system=True)
    long_mode = processor.cpu.word(processor.cpu.layout.efer) & EFER_LMA
    kinds = {_LDT} if name == "ldtr" else {_TSS, _TSS | _BUSY}
    if name == "tr" and not long_mode:
        kinds |= {_TSS16, _TSS16 | _BUSY}
    if found.attributes & _S or found.system_type not in kinds:
        what = "LDT" if name == "ldtr" else "TSS"
        raise ValueError(f"selector {selector:#x} names no {what}")
    if name == "tr":
        return found._replace(attributes=found.attributes | _BUSY << _TYPE_SHIFT)
    return found


def _descriptor(processor: Processor, selector: int, *, system: bool = False) -> _Descriptor:
    """What a table has for a selector; it has to be present."""
    cpu, lay = processor.cpu, processor.cpu.layout
    table, title = (lay.ldt, "local") if selector & _LOCAL_TABLE else (lay.gdt, "global")
    size = 16 if system and cpu.word(lay.efer) & EFER_LMA else 8
    base, limit = cpu.word(table + 8), cpu.half(table + 16)
    at = selector & ~7
    if at + size - 1 > limit:
        raise ValueError(f"selector {selector:#x} is beyond the end of the {title} table")
    try:
        data = processor.debug.view.read(base + at, size)
    except NoValue as error:
        raise ValueError(f"the {title} descriptor table: {error}") from None
    low, high = int.from_bytes(data[:8], "little"), int.from_bytes(data[8:], "little")
    attributes = segment_flags(low)
    if not attributes & _PRESENT:
        raise ValueError(f"the segment of {selector:#x} is not present")
    if not system:
        attributes |= _ACCESSED
    base = segment_base(low) | (high & 0xFFFF_FFFF) << 32
    return _Descriptor(base, segment_limit(low), attributes)
