# SPDX-License-Identifier: MIT
"""The launch digest: a chain of SHA-384 over everything that the guest starts with.

Spec: SNP firmware ABI (56860), SNP_LAUNCH_UPDATE, table "Layout of the PAGE_INFO structure".
"""

from __future__ import annotations

import hashlib
import struct
from enum import IntEnum
from typing import Final

from svsmd.snp.types import PAGE_SIZE

LAUNCH_DIGEST_SIZE: Final = 48

PAGE_INFO: Final = struct.Struct("<48s48sHBBxBBBQ")
"""DIGEST_CUR, CONTENTS, LENGTH, PAGE_TYPE, IMI_PAGE, VMPL1_PERMS to VMPL3_PERMS, GPA."""
PAGE_INFO_SIZE: Final = 0x70

_NO_CONTENTS: Final = bytes(LAUNCH_DIGEST_SIZE)
_ZERO_PAGE: Final = bytes(PAGE_SIZE)
_ZERO_PAGE_DIGEST: Final = hashlib.sha384(_ZERO_PAGE).digest()
"""A quarter of a kernel's pages are zero, and looking costs a fiftieth of hashing."""


class PageType(IntEnum):
    """PAGE_TYPE of SNP_LAUNCH_UPDATE (56860, table "Encodings for the PAGE_TYPE field")."""

    NORMAL = 1
    VMSA = 2
    ZERO = 3
    UNMEASURED = 4
    SECRETS = 5
    CPUID = 6


_MEASURED_CONTENTS: Final = frozenset((PageType.NORMAL, PageType.VMSA))


class LaunchDigest:
    """GCTX.LD of a guest that is being launched."""

    def __init__(self) -> None:
        self._value = _NO_CONTENTS

    @property
    def value(self) -> bytes:
        """The 48 bytes of the digest so far."""
        return self._value

    def update(
        self,
        page_type: PageType,
        gpa: int,
        contents: bytes | memoryview = b"",
        *,
        imi_page: bool = False,
        vmpl_permissions: tuple[int, int, int] = (0, 0, 0),
    ) -> None:
        """Add one 4 KiB page at `gpa`; `vmpl_permissions` are those of VMPL1 to VMPL3.

        Only NORMAL and VMSA pages have their contents measured, for the others just their place
        counts. A VMSA is passed with GUEST_TSC_SCALE and GUEST_TSC_OFFSET as zero.
        """
        digest = _NO_CONTENTS
        if page_type in _MEASURED_CONTENTS:
            if len(contents) != PAGE_SIZE:
                raise ValueError(f"a page has {PAGE_SIZE} bytes, not {len(contents)}")
            page = bytes(contents)
            digest = _ZERO_PAGE_DIGEST if page == _ZERO_PAGE else hashlib.sha384(page).digest()
        page_info = PAGE_INFO.pack(
            self._value, digest, PAGE_INFO_SIZE, page_type, imi_page, *vmpl_permissions, gpa
        )
        self._value = hashlib.sha384(page_info).digest()
