# SPDX-License-Identifier: MIT
"""The native image of the SVSM: its pages, and the addresses that silicon and core need of it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile

from svsmd.elf_symbols import elf_symbols
from svsmd.errors import UserError
from svsmd.snp.types import PAGE_SIZE

_STAGES_SYMBOLS: Final = ("stage1_start",)
_KERNEL_SYMBOLS: Final = (
    "svsm_core_gate", "svsm_exception_gate", "svsm_panic_gate", "svsm_cpu_start",
)  # fmt: skip
_DAMAGED_HINT: Final = "run `make env` again"


@dataclass(frozen=True, slots=True)
class SvsmImage:
    """The image as it lies in memory from the start of the SVSM region on, and the kernel's gates.

    Attributes:
        data: whole pages: the stages with their zeroed part, the kernel's file, the digest page.
        start: offset of the first instruction.
        kernel: offset of the kernel's ELF file.
        kernel_size: its bytes.
        core_digest: offset of the page with the digest of the core's sources.
        core_gate: GVA; the others likewise. Stage 2 maps the kernel where it is linked.
        text_end: where its text ends, in whole pages; then read-only data, then all of it.
    """

    data: bytes
    start: int
    kernel: int
    kernel_size: int
    core_digest: int
    core_gate: int
    exception_gate: int
    panic_gate: int
    cpu_start: int
    text_end: int
    rodata_end: int
    end: int


def load_svsm_image(stages: bytes, kernel: bytes, core_digest_page: bytes) -> SvsmImage:
    """Puts together the ELFs that tools/build_images.py makes, and the page of `core_digest_page`.

    The kernel's file is not loaded: that is stage 2's work, in the machine.

    Raises:
        UserError: they are not those files.
    """
    try:
        memory, (start,) = _flat(ELFFile(io.BytesIO(stages))), _symbols(stages, _STAGES_SYMBOLS)
        core_gate, exception_gate, panic_gate, cpu_start = _symbols(kernel, _KERNEL_SYMBOLS)
        text_end, rodata_end, end = _segment_ends(ELFFile(io.BytesIO(kernel)))
    except (ELFError, KeyError, ValueError) as error:
        raise UserError(f"the SVSM image is damaged: {error}", hint=_DAMAGED_HINT) from None
    file = kernel.ljust(-(-len(kernel) // PAGE_SIZE) * PAGE_SIZE, b"\0")
    return SvsmImage(
        memory + file + core_digest_page,
        start,
        len(memory),
        len(kernel),
        len(memory) + len(file),
        core_gate,
        exception_gate,
        panic_gate,
        cpu_start,
        text_end,
        rodata_end,
        end,
    )


def _segment_ends(file: ELFFile) -> tuple[int, int, int]:
    """Where text, read-only data and data of the kernel end, in whole pages."""
    text, rodata, data = (
        -(-(s["p_vaddr"] + s["p_memsz"]) // PAGE_SIZE) * PAGE_SIZE
        for s in file.iter_segments()
        if s["p_type"] == "PT_LOAD"
    )
    return text, rodata, data


def _flat(file: ELFFile) -> bytes:
    """The memory of an image that is linked at 0."""
    segments = [s for s in file.iter_segments() if s["p_type"] == "PT_LOAD"]
    end = max(s["p_vaddr"] + s["p_memsz"] for s in segments)
    data = bytearray(-(-end // PAGE_SIZE) * PAGE_SIZE)
    for segment in segments:
        data[segment["p_vaddr"] : segment["p_vaddr"] + segment["p_filesz"]] = segment.data()
    return bytes(data)


def _symbols(elf: bytes, names: Sequence[str]) -> list[int]:
    found = elf_symbols(elf)
    return [found[name].start for name in names]
