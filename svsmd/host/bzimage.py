# SPDX-License-Identifier: MIT
"""Takes a Linux bzImage apart: its setup header, its protected-mode code, the ELF kernel inside.

Spec: Linux Documentation/arch/x86/boot.rst: setup header, `payload_offset`, `payload_length`
(protocol 2.08), `pref_address`, `init_size` (2.10), `xloadflags` (2.12). The payload formats are
those of scripts/Makefile.lib: gzip, bzip2, LZMA, XZ, LZ4 (legacy frames) and zstd, all but gzip
followed by the size as 32 bits.
Deviations: LZO payloads are refused (no decompressor in the dependencies).
"""

from __future__ import annotations

import bz2
import lzma
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple

import lz4.block
import zstandard

from svsmd.host.boot_params import (
    BOOT_FLAG,
    BOOT_FLAG_MAGIC,
    CMDLINE_SIZE,
    HDRS_MAGIC,
    HEADER_MAGIC,
    INITRD_ADDR_MAX,
    PREF_ADDRESS,
    SETUP_HEADER,
    VERSION,
)
from svsmd.host.loader_error import LoaderError

ELF_MAGIC: Final = b"\x7fELF"
SECTOR: Final = 512
MIN_VERSION: Final = 0x020C
"""2.12: `xloadflags` says whether there is a 64-bit kernel inside."""
XLF_KERNEL_64: Final = 1 << 0
ENTRY_64: Final = 0x200
"""Offset of the 64-bit entry in the protected-mode code."""
DEFAULT_SETUP_SECTORS: Final = 4
"""What setup_sects = 0 means, for compatibility with kernels of the last century."""
MAX_KERNEL_SIZE: Final = 1 << 30
"""Largest decompressed kernel: a bound against decompression bombs."""

_SETUP_SECTS: Final = 0x1F1
_SYSSIZE: Final = 0x1F4
_PARAGRAPH: Final = 16
"""Unit of syssize in bytes."""
_JUMP_OFFSET_END: Final = 0x201
_XLOADFLAGS: Final = 0x236
_PAYLOAD_OFFSET: Final = 0x248
_PAYLOAD_LENGTH: Final = 0x24C
_MIN_FILE_SIZE: Final = 0x268
_MAX_HEADER_END: Final = 0x290
"""End of the room for the header in boot_params."""
KINDS: Final = "a bzImage (vmlinuz) or an ELF executable (vmlinux) can be booted"
AGAIN: Final = "is the file complete? copy or download it again"
_LZ4_LEGACY_MAGIC: Final = b"\x02\x21\x4c\x18"
_LZ4_LEGACY_BLOCK: Final = 8 << 20


@dataclass(frozen=True, slots=True)
class BzImage:
    """What a direct boot needs of a bzImage."""

    version: int
    """Boot protocol, for example 0x020F."""
    setup_header: bytes
    """The header from offset 0x1F1 on, to be copied into boot_params."""
    initrd_addr_max: int
    """Highest address that a byte of the initrd may have."""
    cmdline_size: int
    """Longest command line, without its final NUL."""
    pref_address: int
    """Where the protected-mode code likes to run."""
    init_size: int
    """Bytes that it needs from there on until the kernel knows its memory map."""
    protected_mode: bytes
    """Decompressor and payload; its 64-bit entry is at `ENTRY_64`."""
    payload: bytes
    """The compressed kernel, for `decompress_payload`."""


def is_bzimage(data: bytes) -> bool:
    """Whether *data* carries the magic numbers of a bzImage."""
    return (
        len(data) >= HEADER_MAGIC + 4
        and struct.unpack_from("<H", data, BOOT_FLAG)[0] == BOOT_FLAG_MAGIC
        and data[HEADER_MAGIC : HEADER_MAGIC + 4] == HDRS_MAGIC
    )


def parse_bzimage(data: bytes) -> BzImage:
    """Checks the header.

    :raises LoaderError: not a bzImage, too old, not 64-bit, or truncated.
    """
    if not is_bzimage(data):
        raise LoaderError("the kernel is not a bzImage: boot flag or HdrS magic is missing", KINDS)
    if len(data) < _MIN_FILE_SIZE:
        raise LoaderError("the bzImage is truncated in its setup header", AGAIN)
    version: int = struct.unpack_from("<H", data, VERSION)[0]
    if version < MIN_VERSION:
        raise LoaderError(
            f"the bzImage has boot protocol {version >> 8}.{version & 0xFF:02d}, 2.12 is needed",
            "Linux has it since 3.8",
        )
    if not struct.unpack_from("<H", data, _XLOADFLAGS)[0] & XLF_KERNEL_64:
        raise LoaderError(
            "the bzImage holds no 64-bit kernel (XLF_KERNEL_64 is clear)",
            "take a kernel for x86-64 (amd64)",
        )
    header_end = 0x202 + data[_JUMP_OFFSET_END]
    if not _XLOADFLAGS < header_end <= min(len(data), _MAX_HEADER_END):
        raise LoaderError("the bzImage has a setup header of impossible length", AGAIN)

    setup_size = ((data[_SETUP_SECTS] or DEFAULT_SETUP_SECTORS) + 1) * SECTOR
    (syssize,) = struct.unpack_from("<I", data, _SYSSIZE)
    missing = setup_size + syssize * _PARAGRAPH - len(data)
    if missing > 0:
        raise LoaderError(f"the bzImage is truncated: its last {missing} bytes are missing", AGAIN)
    offset, length = struct.unpack_from("<II", data, _PAYLOAD_OFFSET)
    start = setup_size + offset
    if length == 0 or start + length > len(data):
        raise LoaderError("the bzImage is truncated: its payload ends behind the file", AGAIN)
    (initrd_addr_max,) = struct.unpack_from("<I", data, INITRD_ADDR_MAX)
    (cmdline_size,) = struct.unpack_from("<I", data, CMDLINE_SIZE)
    pref_address, init_size = struct.unpack_from("<QI", data, PREF_ADDRESS)
    return BzImage(
        version=version,
        setup_header=data[SETUP_HEADER:header_end],
        initrd_addr_max=initrd_addr_max,
        cmdline_size=cmdline_size,
        pref_address=pref_address,
        init_size=init_size,
        protected_mode=data[setup_size:],
        payload=data[start : start + length],
    )


def decompress_payload(payload: bytes, limit: int = MAX_KERNEL_SIZE) -> bytes:
    """The kernel in *payload*, whose format is told by its magic number.

    It is an ELF file with the relocation table behind it.

    :raises LoaderError: unknown format, corrupt data, more than *limit* bytes, or no ELF inside.
    """
    found = next((row for row in _FORMATS if payload.startswith(row.magic)), None)
    if found is None:
        raise LoaderError(
            f"unknown kernel compression (payload starts with {payload[:6].hex(' ')})",
            "--decompress guest lets the kernel unpack itself",
        )
    name = found.name
    try:
        kernel = found.decompress(payload, limit)
    except LoaderError:
        raise
    except (OSError, ValueError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise LoaderError(f"the kernel's {name} payload is corrupt: {error}", AGAIN) from None
    except (zstandard.ZstdError, lz4.block.LZ4BlockError, MemoryError) as error:
        raise LoaderError(f"the kernel's {name} payload is corrupt: {error}", AGAIN) from None
    if not kernel.startswith(ELF_MAGIC):
        raise LoaderError(f"the kernel's {name} payload holds no ELF file")
    return kernel


def _too_large(limit: int) -> LoaderError:
    return LoaderError(f"the decompressed kernel is larger than {limit >> 20} MiB")


def _plain(payload: bytes, limit: int) -> bytes:
    if len(payload) > limit:
        raise _too_large(limit)
    return payload


def _gzip(payload: bytes, limit: int) -> bytes:
    stream = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    kernel = stream.decompress(payload, limit)
    if not stream.eof:
        if stream.unconsumed_tail:
            raise _too_large(limit)
        raise EOFError("it ends too early")
    return kernel


def _bzip2(payload: bytes, limit: int) -> bytes:
    stream = bz2.BZ2Decompressor()
    kernel = stream.decompress(payload, limit)
    return _complete(kernel, stream.eof, limit)


def _lzma(payload: bytes, limit: int) -> bytes:
    stream = lzma.LZMADecompressor()
    kernel = stream.decompress(payload, limit)
    return _complete(kernel, stream.eof, limit)


def _complete(kernel: bytes, eof: bool, limit: int) -> bytes:
    if eof:
        return kernel
    if len(kernel) >= limit:
        raise _too_large(limit)
    raise EOFError("it ends too early")


def _zstd(payload: bytes, limit: int) -> bytes:
    stream = zstandard.ZstdDecompressor().decompressobj()
    pieces, size = [], 0
    # In pieces: the stream object takes no output limit.
    for start in range(0, len(payload), 1 << 16):
        pieces.append(stream.decompress(payload[start : start + (1 << 16)]))
        size += len(pieces[-1])
        if size > limit:
            raise _too_large(limit)
        if stream.eof:
            return b"".join(pieces)
    raise EOFError("it ends too early")


def _lz4_legacy(payload: bytes, limit: int) -> bytes:
    kernel = bytearray()
    position = len(_LZ4_LEGACY_MAGIC)
    # The last four bytes are the size that the kernel's build appends.
    end = len(payload) - 4
    while position + 4 <= end:
        (size,) = struct.unpack_from("<I", payload, position)
        position += 4
        if position + size > end:
            raise EOFError("it ends too early")
        kernel += lz4.block.decompress(
            payload[position : position + size], uncompressed_size=_LZ4_LEGACY_BLOCK
        )
        position += size
        if len(kernel) > limit:
            raise _too_large(limit)
    return bytes(kernel)


def _lzo(_payload: bytes, _limit: int) -> bytes:
    raise LoaderError(
        "LZO-compressed kernels are not supported",
        "give the vmlinux ELF, or let the kernel unpack itself (--decompress guest)",
    )


class _Format(NamedTuple):
    magic: bytes
    name: str
    decompress: Callable[[bytes, int], bytes]


_FORMATS: Final = (
    _Format(b"\x28\xb5\x2f\xfd", "zstd", _zstd),
    _Format(_LZ4_LEGACY_MAGIC, "LZ4", _lz4_legacy),
    _Format(b"\x1f\x8b", "gzip", _gzip),
    _Format(b"\xfd7zXZ\0", "XZ", _lzma),
    _Format(b"\x5d\0\0", "LZMA", _lzma),
    _Format(b"BZh", "bzip2", _bzip2),
    _Format(b"\x89LZO", "LZO", _lzo),
    _Format(ELF_MAGIC, "uncompressed", _plain),
)
