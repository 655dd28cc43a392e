# SPDX-License-Identifier: MIT
"""Tells of PVALIDATE and RMPADJUST, whoever executed them.

Spec: 24594 (RMPADJUST: RDX holds VMPL, permissions and the VMSA bit).
"""

from __future__ import annotations

from typing import Final

from svsmd.snp.events.classes import EventClass
from svsmd.snp.events.hub import SnpEvents

PVALIDATE: Final = EventClass.PVALIDATE.bit
RMPADJUST: Final = EventClass.RMPADJUST.bit | EventClass.VMSA.bit
"""What `SnpEvents.armed` has to have for somebody to be told of an instruction."""

_TARGET: Final = 0xFF
_PERMS_SHIFT: Final = 8
_PERMS: Final = 0xF
_VMSA: Final = 1 << 16


def tell_pvalidate(
    events: SnpEvents, gpa: int, gva: int, size: int, *, validate: bool, result: int, carry: bool
) -> None:
    """PVALIDATE gave `result` and CF `carry`; `size` is in bytes."""
    values = {
        "gpa": gpa, "gva": gva, "size": size, "validate": int(validate),
        "result": result, "carry": int(carry),
    }  # fmt: skip
    events.note(EventClass.PVALIDATE, values)


def tell_rmpadjust(
    events: SnpEvents, gpa: int, gva: int, size: int, attributes: int, result: int, vmpl: int
) -> None:
    """RMPADJUST with RDX = `attributes`, executed at `vmpl`, gave `result`; `size` is in bytes.

    The VMSA bit of a caller other than VMPL0 is ignored, and so it makes no VMSA.
    """
    target = attributes & _TARGET
    vmsa = bool(attributes & _VMSA)
    if events.armed & EventClass.RMPADJUST.bit:
        values = {
            "gpa": gpa, "gva": gva, "size": size, "target": target,
            "perms": attributes >> _PERMS_SHIFT & _PERMS, "vmsa": int(vmsa), "result": result,
        }  # fmt: skip
        events.note(EventClass.RMPADJUST, values)
    if events.armed & EventClass.VMSA.bit and vmsa and vmpl == 0 and result == 0:
        events.note(EventClass.VMSA, {"gpa": gpa, "gva": gva, "target": target})
