# SPDX-License-Identifier: MIT
"""CPUID for programs, which the hypervisor intercepts: a #VC that the core answers.

From the CPUID page that the security processor has checked, and with nothing of what a host may
say. What depends on the CPU, or on what CPL 3 may use, is put in: there is no XSAVE state, since
only x87 and SSE are saved for a program.

Spec: 24594, CPUID, appendix E; 56860, 8.14.2.6 (CPUID page); 24593, 15.35.5 (#VC).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from svsmd.snp.cpuid_page import CpuidFunction

VMM_COMMUNICATION: Final = 29
"""Vector of #VC; its error code is the exit code."""
EXIT_CPUID: Final = 0x72
INSTRUCTION: Final = b"\x0f\xa2"

_FEATURES: Final = 1
_APIC_ID_SHIFT: Final = 24
_XSAVE_OSXSAVE_AVX: Final = 1 << 26 | 1 << 27 | 1 << 28 | 1 << 12 | 1 << 29
"""ECX of function 1: XSAVE, OSXSAVE, AVX, FMA, F16C."""
_STRUCTURED: Final = 7
_FSGSBASE_AVX2: Final = 1 << 0 | 1 << 5 | 1 << 16
"""EBX of function 7: FSGSBASE, AVX2, AVX512F."""
_XSTATE: Final = 0xD

Result = tuple[int, int, int, int]
"""EAX, EBX, ECX, EDX."""


class ProgramCpuid:
    """What CPUID says at CPL 3."""

    def __init__(self, functions: Iterable[CpuidFunction] = ()) -> None:
        self._functions: dict[int, dict[int, Result]] = {}
        for each in functions:
            found = self._functions.setdefault(each.eax_in, {})
            found.setdefault(each.ecx_in, (each.eax, each.ebx, each.ecx, each.edx))

    def query(self, function: int, index: int, apic_id: int) -> Result:
        """A function, by EAX and ECX; zeros for one that is not in the table."""
        found = self._functions.get(function, {})
        # Only functions with several entries look at ECX.
        number = index if len(found) > 1 else 0
        eax, ebx, ecx, edx = found.get(number, (0, 0, 0, 0))
        if function == _FEATURES:
            ebx = ebx & (1 << _APIC_ID_SHIFT) - 1 | (apic_id & 0xFF) << _APIC_ID_SHIFT
            ecx &= ~_XSAVE_OSXSAVE_AVX
        elif function == _STRUCTURED:
            ebx &= ~_FSGSBASE_AVX2
        elif function == _XSTATE:
            return 0, 0, 0, 0
        return eax, ebx, ecx, edx
