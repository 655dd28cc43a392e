# SPDX-License-Identifier: MIT
"""bzImage: header checks, and each payload format of the kernel's build."""

import bz2
import gzip
import lzma
import struct

import lz4.block
import pytest
import zstandard

from svsmd.host.bzimage import decompress_payload, is_bzimage, parse_bzimage
from svsmd.host.loader_error import LoaderError

KERNEL = b"\x7fELF" + bytes(range(256)) * 500
SIZE = struct.pack("<I", len(KERNEL))


def lz4_legacy(data: bytes, block: int = 40_000) -> bytes:
    result = b"\x02\x21\x4c\x18"
    for start in range(0, len(data), block):
        packed = lz4.block.compress(data[start : start + block], store_size=False)
        result += struct.pack("<I", len(packed)) + packed
    return result


PAYLOADS = {
    "gzip": gzip.compress(KERNEL, mtime=0),
    "bzip2": bz2.compress(KERNEL) + SIZE,
    "LZMA": lzma.compress(KERNEL, lzma.FORMAT_ALONE) + SIZE,
    "XZ": lzma.compress(KERNEL, check=lzma.CHECK_CRC32) + SIZE,
    "zstd": zstandard.ZstdCompressor(write_content_size=False).compress(KERNEL) + SIZE,
    "LZ4": lz4_legacy(KERNEL) + SIZE,
    "none": KERNEL,
}


def bzimage(payload: bytes, **patches: bytes) -> bytes:
    """A file with a setup header and *payload*; *patches* are ``at_0x206=b"…"``."""
    data = bytearray(5 * 512 + 0x100)
    data[0x1F1] = 4
    struct.pack_into("<H", data, 0x1FE, 0xAA55)
    data[0x201] = 0x66
    data[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", data, 0x206, 0x020F)
    struct.pack_into("<I", data, 0x22C, 0x7FFF_FFFF)
    struct.pack_into("<H", data, 0x236, 1)
    struct.pack_into("<I", data, 0x238, 2047)
    struct.pack_into("<II", data, 0x248, 0x100, len(payload))
    for place, value in patches.items():
        offset = int(place.removeprefix("at_"), 16)
        data[offset : offset + len(value)] = value
    return bytes(data) + payload


@pytest.mark.parametrize("name", PAYLOADS)
def test_payload_formats(name):
    image = parse_bzimage(bzimage(PAYLOADS[name]))
    assert decompress_payload(image.payload) == KERNEL
    assert image.version == 0x020F
    assert image.initrd_addr_max == 0x7FFF_FFFF
    assert image.cmdline_size == 2047
    assert len(image.setup_header) == 0x268 - 0x1F1
    assert image.setup_header[0x11:0x15] == b"HdrS"


def test_setup_sectors_of_zero_mean_four():
    image = parse_bzimage(bzimage(KERNEL, at_0x1f1=b"\0"))
    assert decompress_payload(image.payload) == KERNEL


@pytest.mark.parametrize("name", [name for name in PAYLOADS if name != "none"])
def test_truncated_payloads(name):
    with pytest.raises(LoaderError, match=r"corrupt|no ELF"):
        decompress_payload(PAYLOADS[name][: len(PAYLOADS[name]) // 2])


@pytest.mark.parametrize("name", ["gzip", "XZ", "bzip2"])  # the others have no checksum
def test_damaged_payloads(name):
    damaged = bytearray(PAYLOADS[name])
    damaged[len(damaged) // 2] ^= 0xFF
    damaged[20] ^= 0xFF
    with pytest.raises(LoaderError):
        decompress_payload(bytes(damaged))


@pytest.mark.parametrize("name", PAYLOADS)
def test_decompression_bombs(name):
    with pytest.raises(LoaderError, match="larger than"):
        decompress_payload(PAYLOADS[name], limit=1000)


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b"\x89LZO rest", "LZO"),
        (b"what?", "unknown kernel compression"),
        (gzip.compress(b"no kernel", mtime=0), "no ELF"),
    ],
)
def test_unusable_payloads(payload, message):
    with pytest.raises(LoaderError, match=message):
        decompress_payload(parse_bzimage(bzimage(payload)).payload)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a bzImage"),
        (bzimage(KERNEL, at_0x1fe=b"\0"), "not a bzImage"),
        (bzimage(KERNEL, at_0x202=b"h"), "not a bzImage"),
        (bzimage(KERNEL)[:0x210], "truncated in its setup header"),
        (bzimage(KERNEL)[:-1], "truncated: its payload"),
        (bzimage(KERNEL, at_0x1f4=b"\xf0\xff\xff\0"), "truncated: its last 268306940 bytes"),
        (bzimage(KERNEL, at_0x248=b"\xff" * 4), "truncated: its payload"),
        (bzimage(b""), "truncated: its payload"),
        (bzimage(KERNEL, at_0x206=b"\x0b"), "boot protocol 2.11, 2.12 is needed"),
        (bzimage(KERNEL, at_0x236=b"\0"), "no 64-bit kernel"),
        (bzimage(KERNEL, at_0x201=b"\xff"), "impossible length"),
        (bzimage(KERNEL, at_0x201=b"\0"), "impossible length"),
    ],
)
def test_refusals(data, message):
    with pytest.raises(LoaderError, match=message) as caught:
        parse_bzimage(data)
    assert "\n" not in str(caught.value)


def test_is_bzimage():
    assert is_bzimage(bzimage(KERNEL))
    assert not is_bzimage(KERNEL)
    assert not is_bzimage(b"")
