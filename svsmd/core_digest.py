# SPDX-License-Identifier: MIT
"""The digest of the core's Python sources, as a page that is launched with the SVSM.

The SVSM's policy is Python behind the gate, not code in the guest, so LAUNCH_UPDATE does not
measure it. This page makes the launch digest change with it. What that proves, and to whom:
docs/security-model.md.

Layout, little-endian: magic 'SVSMDCD1', version (u32), number of files (u32), SHA-384 (48 bytes),
zeros. Hashed are all *.py below `svsmd/core/`, in the order of their relative paths (with '/', as
bytes): for each the path, a zero byte, the file's length as u64, and its bytes, with line ends CR
LF and CR as LF.

Spec: none of AMD's; ours.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Final

from svsmd.errors import UserError
from svsmd.snp.types import PAGE_SIZE

CORE_DIGEST_MAGIC: Final = b"SVSMDCD1"
CORE_DIGEST_VERSION: Final = 1

_PAGE: Final = struct.Struct("<8s2I48s")


def read_core_sources(directory: Path | None = None) -> dict[str, bytes]:
    """The sources by relative path; those of the installed core by default.

    Raises:
        UserError: there are none.
    """
    root = directory or Path(str(files("svsmd.core")))
    sources = {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*.py")}
    if not sources:
        raise UserError(
            f"the SVSM's sources are not at {root}", hint="the launch digest covers them"
        )
    return sources


def core_digest(sources: Mapping[str, bytes]) -> bytes:
    """SHA-384 of these sources, 48 bytes."""
    digest = hashlib.sha384()
    for name in sorted(sources, key=str.encode):
        text = sources[name].replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        digest.update(name.encode() + b"\0" + len(text).to_bytes(8, "little") + text)
    return digest.digest()


def core_digest_page(sources: Mapping[str, bytes]) -> bytes:
    """The page, 4096 bytes."""
    header = _PAGE.pack(CORE_DIGEST_MAGIC, CORE_DIGEST_VERSION, len(sources), core_digest(sources))
    return header.ljust(PAGE_SIZE, b"\0")
