# SPDX-License-Identifier: MIT
"""The native image of the SVSM: its pages, and the addresses that silicon and core need of it."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Final

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from svsmd.core.port import IMAGE_MAP
from svsmd.errors import UserError
from svsmd.snp.types import PAGE_SIZE

_SYMBOLS: Final = (
    "svsm_start32", "svsm_core_gate", "svsm_exception_gate", "svsm_panic_gate", "svsm_cpu_start",
    "svsm_text_end", "svsm_rodata_end", "svsm_end",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class SvsmImage:
    """The image as it lies in memory from the start of the SVSM region on.

    Attributes:
        elf: the file, with symbols and DWARF.
        data: whole pages, the zeroed part included.
        start32: linear address of the first instruction; the others likewise.
    """

    elf: bytes
    data: bytes
    start32: int
    core_gate: int
    exception_gate: int
    panic_gate: int
    cpu_start: int
    text_end: int
    rodata_end: int
    end: int


def load_svsm_image(elf: bytes) -> SvsmImage:
    """Reads the ELF that tools/build_images.py makes.

    Raises:
        UserError: it is not that file.
    """
    try:
        file = ELFFile(io.BytesIO(elf))
        segments = [s for s in file.iter_segments() if s["p_type"] == "PT_LOAD"]
        end = max(s["p_vaddr"] + s["p_memsz"] for s in segments) - IMAGE_MAP
        data = bytearray(-(-end // PAGE_SIZE) * PAGE_SIZE)
        for segment in segments:
            offset = segment["p_vaddr"] - IMAGE_MAP
            if offset < 0:
                raise UserError("the SVSM image is linked at the wrong address")
            data[offset : offset + segment["p_filesz"]] = segment.data()
        symbols = {
            symbol.name: symbol["st_value"]
            for section in file.iter_sections()
            if isinstance(section, SymbolTableSection)
            for symbol in section.iter_symbols()
        }
        addresses = [symbols[name] for name in _SYMBOLS]
    except (ELFError, KeyError, ValueError) as error:
        raise UserError(
            f"the SVSM image is damaged: {error}", hint="run `make env` again"
        ) from None
    return SvsmImage(elf, bytes(data), *addresses)
