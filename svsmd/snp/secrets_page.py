# SPDX-License-Identifier: MIT
"""The secrets page: what the security processor, and then the SVSM, tell a guest in private.

Spec: SNP firmware ABI (56860), SNP_LAUNCH_UPDATE, table "Secrets page format", version 3; the SVSM
fields at 140h: SVSM specification (58019), table "Secrets page fields"; the guest area at 0A0h is
laid out as Linux uses it (struct secrets_os_area), 56860 leaves it to the guest.
"""

from __future__ import annotations

from typing import Final

from svsmd.snp.page_view import U8, U32, U64, PageView, Raw
from svsmd.snp.types import PAGE_SIZE, Vmpl

SECRETS_PAGE_VERSION: Final = 3
VMPCK_SIZE: Final = 32
VMPCK_COUNT: Final = 4
SVSM_MAX_VERSION: Final = 1
"""Version of the core protocol that SVSM_MAX_VERSION announces (58019)."""


class SecretsPage(PageView):
    """One secrets page."""

    __slots__ = ()

    SIZE = PAGE_SIZE

    version = U32(0x000)
    imi_en = U32(0x004)
    fms = U32(0x008)
    gosvw = Raw(0x010, 16)
    vmpck0 = Raw(0x020, VMPCK_SIZE)
    vmpck1 = Raw(0x040, VMPCK_SIZE)
    vmpck2 = Raw(0x060, VMPCK_SIZE)
    vmpck3 = Raw(0x080, VMPCK_SIZE)
    msg_seqno_0 = U32(0x0A0)
    msg_seqno_1 = U32(0x0A4)
    msg_seqno_2 = U32(0x0A8)
    msg_seqno_3 = U32(0x0AC)
    ap_jump_table_pa = U64(0x0B0)
    guest_usage = Raw(0x0B8, 0x48)
    vmsa_tweak_bitmap = Raw(0x100, 64)
    svsm_base = U64(0x140)
    svsm_size = U64(0x148)
    svsm_caa = U64(0x150)
    svsm_max_version = U32(0x158)
    svsm_guest_vmpl = U8(0x15C)
    tsc_factor = U32(0x160)

    def vmpck(self, index: int) -> bytes:
        """Return VMPCK`index`; IndexError above 3."""
        start = self._vmpck_offset(index)
        return bytes(self.memory[start : start + VMPCK_SIZE])

    def set_vmpck(self, index: int, key: bytes) -> None:
        """Set VMPCK`index`; IndexError above 3, ValueError unless the key has 32 bytes."""
        if len(key) != VMPCK_SIZE:
            raise ValueError(f"a VMPCK has {VMPCK_SIZE} bytes, not {len(key)}")
        start = self._vmpck_offset(index)
        self.memory[start : start + VMPCK_SIZE] = key

    def clear_vmpcks_below(self, vmpl: Vmpl) -> None:
        """Zero the keys that code at `vmpl` must not have: VMPCK0 to VMPCK`vmpl - 1` (58019)."""
        for index in range(vmpl):
            self.set_vmpck(index, bytes(VMPCK_SIZE))

    @classmethod
    def _vmpck_offset(cls, index: int) -> int:
        if not 0 <= index < VMPCK_COUNT:
            raise IndexError(f"no VMPCK{index}")
        return cls.vmpck0.offset + index * VMPCK_SIZE
