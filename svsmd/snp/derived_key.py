# SPDX-License-Identifier: MIT
"""MSG_KEY_REQ: keys that the security processor derives for a guest.

The same guest with the same request gets the same key, on this chip and at this or a later TCB; any
difference in what is mixed in gives another one. Two machines with one seed are one chip.

Spec: SNP firmware ABI (56860), "Key Derivation": tables "MSG_KEY_REQ message structure", "Structure
of the GUEST_FIELD_SELECT field" and "MSG_KEY_RSP message structure", version 1. The ABI leaves the
derivation itself open: here it is NIST SP 800-108 in counter mode with HMAC-SHA-256, over the
selected fields and, always, root key, selection, VMPL and host data.
"""

from __future__ import annotations

import struct
from enum import IntFlag
from typing import Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.kbkdf import KBKDFHMAC, CounterLocation, Mode

from svsmd.snp.bits import Bit, Bits, Register32
from svsmd.snp.chip_keys import ChipKeys
from svsmd.snp.firmware_status import FirmwareStatus
from svsmd.snp.firmware_version import TCB_VERSION, TcbVersion
from svsmd.snp.guest_context import GuestContext
from svsmd.snp.guest_message import KeySelect
from svsmd.snp.page_view import U32, U64, PageView, Raw
from svsmd.snp.types import Vmpl

DERIVED_KEY_SIZE: Final = 32

_LABEL: Final = b"MSG_KEY_REQ"
_MIXED: Final = struct.Struct("<IIQQQ48s32s")
"""Root, VMPL, GUEST_FIELD_SELECT, TCB, policy, measurement, host data; zero where not selected.

Image ID, family ID and SVN are zero without an ID block; that they were selected is mixed in."""


class KeyRootSelect(Register32):
    """The first word of a request: which root key is used."""

    ROOT_KEY_SELECT = Bit(0)
    """0: an endorsement key of the chip. 1: the guest's VMRK."""
    KEY_SEL = Bits(2, 1)
    """Which endorsement key, as in a report request (`KeySelect`)."""


class GuestField(IntFlag):
    """GUEST_FIELD_SELECT: what else is mixed into the key."""

    GUEST_POLICY = 1 << 0
    IMAGE_ID = 1 << 1
    FAMILY_ID = 1 << 2
    MEASUREMENT = 1 << 3
    GUEST_SVN = 1 << 4
    TCB_VERSION = 1 << 5


_ALL_FIELDS: Final = sum(GuestField)


class KeyRequest(PageView):
    """Payload of MSG_KEY_REQ."""

    __slots__ = ()

    SIZE = 0x20

    root_select = U32(0x00)
    reserved = U32(0x04)
    guest_field_select = U64(0x08)
    vmpl = U32(0x10)
    guest_svn = U32(0x14)
    tcb_version = U64(0x18)


class KeyResponse(PageView):
    """Payload of MSG_KEY_RSP."""

    __slots__ = ()

    SIZE = 0x40

    status = U32(0x00)
    derived_key = Raw(0x20, DERIVED_KEY_SIZE)


def key_response(
    request: KeyRequest, sender: int, context: GuestContext, chip: ChipKeys
) -> KeyResponse:
    """Answer a request that came under VMPCK`sender`.

    STATUS is INVALID_PARAM for reserved bits, a VMPL that is more privileged than the sender's or
    none, a guest SVN above that of the ID block (there is none: 0) or a TCB above the committed
    one; INVALID_KEY for a VLEK, which was not loaded, or no such key.
    """
    response = KeyResponse()
    response.status = _check(request, sender)
    if response.status == FirmwareStatus.SUCCESS:
        response.derived_key = _derive(request, context, chip)
    return response


def _check(request: KeyRequest, sender: int) -> FirmwareStatus:
    select = KeyRootSelect(request.root_select)
    if select.unnamed or request.reserved or request.guest_field_select & ~_ALL_FIELDS:
        return FirmwareStatus.INVALID_PARAM
    if not select.ROOT_KEY_SELECT and select.KEY_SEL not in (
        KeySelect.VLEK_OR_VCEK,
        KeySelect.VCEK,
    ):
        return FirmwareStatus.INVALID_KEY
    if (
        not sender <= request.vmpl <= max(Vmpl)
        or request.guest_svn
        or TcbVersion(request.tcb_version).exceeds(TCB_VERSION)
    ):
        return FirmwareStatus.INVALID_PARAM
    return FirmwareStatus.SUCCESS


def _derive(request: KeyRequest, context: GuestContext, chip: ChipKeys) -> bytes:
    from_vmrk = KeyRootSelect(request.root_select).ROOT_KEY_SELECT
    fields = GuestField(request.guest_field_select)
    tcb = TcbVersion(request.tcb_version) if fields & GuestField.TCB_VERSION else TCB_VERSION
    mixed = _MIXED.pack(
        from_vmrk,
        request.vmpl,
        fields,
        tcb if fields & GuestField.TCB_VERSION else 0,
        context.policy if fields & GuestField.GUEST_POLICY else 0,
        context.digest.value if fields & GuestField.MEASUREMENT else b"",
        context.host_data,
    )
    return KBKDFHMAC(
        algorithm=hashes.SHA256(),
        mode=Mode.CounterMode,
        length=DERIVED_KEY_SIZE,
        rlen=4,
        llen=4,
        location=CounterLocation.BeforeFixed,
        label=_LABEL,
        context=mixed,
        fixed=None,
    ).derive(context.vmrk if from_vmrk else chip.derivation_root(tcb))
