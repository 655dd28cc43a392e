# SPDX-License-Identifier: MIT
"""The guest's context, GCTX: what the security processor remembers of its one guest.

Spec: SNP firmware ABI (56860), chapter 4: tables "Guest policy structure", "Guest states" and
"Fields of the guest context". Deviations: no ID block, so that family ID, image ID, the digests of
ID and author key and the guest's SVN are zero; no migration agent.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from svsmd.snp.bits import Bit, Bits, Register64
from svsmd.snp.launch_digest import LaunchDigest
from svsmd.snp.secrets_page import VMPCK_COUNT

REPORT_ID_SIZE: Final = 32
HOST_DATA_SIZE: Final = 32
GOSVW_SIZE: Final = 16
VMRK_SIZE: Final = 32


class GuestPolicy(Register64):
    """Guest policy (56860, table "Guest policy structure")."""

    ABI_MINOR = Bits(7, 0)
    ABI_MAJOR = Bits(15, 8)
    SMT = Bit(16)
    RESERVED_ONE = Bit(17)
    MIGRATE_MA = Bit(18)
    DEBUG = Bit(19)
    SINGLE_SOCKET = Bit(20)


DEFAULT_POLICY: Final = GuestPolicy.of(SMT=1, RESERVED_ONE=1)


class GuestState(Enum):
    """State of the guest's context (56860, table "Guest states")."""

    INIT = "init"
    LAUNCH = "launch"
    RUNNING = "running"


@dataclass(slots=True)
class GuestContext:
    """What the firmware keeps in the guest's context page.

    Attributes:
        gosvw: the workarounds that a guest OS sees, 16 bytes.
        desired_tsc_khz: DESIRED_TSC_FREQ, the frequency of a Secure TSC.
        message_counts: the sequence number that the last message of each VMPCK had, its response
            included.
        vmrk: root key of the guest that is independent of the chip.
        host_data: 32 bytes of the host's choice.
    """

    state: GuestState = GuestState.INIT
    policy: GuestPolicy = DEFAULT_POLICY
    gosvw: bytes = bytes(GOSVW_SIZE)
    desired_tsc_khz: int = 0
    digest: LaunchDigest = field(default_factory=LaunchDigest)
    vmpcks: list[bytes] = field(default_factory=list)
    message_counts: list[int] = field(default_factory=lambda: [0] * VMPCK_COUNT)
    report_id: bytes = bytes(REPORT_ID_SIZE)
    vmrk: bytes = bytes(VMRK_SIZE)
    host_data: bytes = bytes(HOST_DATA_SIZE)
