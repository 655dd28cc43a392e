# SPDX-License-Identifier: MIT
"""Calls of the core protocol, for tests with FakeVmpl0: their names, and places to use them on."""

from __future__ import annotations

from svsmd.core.protocols.core import SvsmCoreCall
from svsmd.core.result_codes import SvsmCoreResult, SvsmResult
from tests.fake_vmpl0 import GUEST_CAA, MIB, FakeVmpl0

OK = SvsmResult.SVSM_SUCCESS
INCOMPLETE = SvsmResult.SVSM_ERR_INCOMPLETE
ADDRESS = SvsmResult.SVSM_ERR_INVALID_ADDRESS
PARAMETER = SvsmResult.SVSM_ERR_INVALID_PARAMETER
CALL = SvsmResult.SVSM_ERR_UNSUPPORTED_CALL
BUSY = SvsmResult.SVSM_ERR_BUSY
NO_CHANGE = SvsmCoreResult.PVALIDATE_NO_CHANGE
MISMATCH = SvsmCoreResult.FAIL_SIZEMISMATCH

REMAP_CA = SvsmCoreCall.SVSM_CORE_REMAP_CA
PVALIDATE = SvsmCoreCall.SVSM_CORE_PVALIDATE
CREATE_VCPU = SvsmCoreCall.SVSM_CORE_CREATE_VCPU
DELETE_VCPU = SvsmCoreCall.SVSM_CORE_DELETE_VCPU
DEPOSIT_MEM = SvsmCoreCall.SVSM_CORE_DEPOSIT_MEM
WITHDRAW_MEM = SvsmCoreCall.SVSM_CORE_WITHDRAW_MEM

HUGE, VALIDATE, IGNORE_CF = 1, 4, 8
"""Bits of an entry (58019, table 7)."""

LIST = GUEST_CAA + 8
FREE = 8 * MIB
"""A 2 MiB page of the guest, one RMP entry after boot."""
OTHER = 6 * MIB
NEW_CAA = OTHER + 0x3000
VMSA = OTHER + 0x5000
AP_CAA = OTHER + 0x6000


def booted() -> FakeVmpl0:
    """A machine whose guest is about to run, and whose security is checked at every change."""
    machine = FakeVmpl0()
    machine.boot()
    machine.ports[0].log.clear()
    machine.checks.append(machine.check_security)
    return machine


def next_index(machine: FakeVmpl0, gpa: int = LIST) -> int:
    """How far the SVSM got in the list at `gpa`."""
    return int.from_bytes(machine.get(gpa + 2, 2), "little")
