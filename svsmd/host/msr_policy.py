# SPDX-License-Identifier: MIT
"""What the hypervisor answers to RDMSR and WRMSR exits of the guest.

Spec: GHCB 56421, section 4.1 (MSR_PROT: the hypervisor answers with data or with #GP); AMD64 APM
vol. 2 (24593), appendix A (MSR cross-reference) and 7.7 (MTRRs); the PPR of family 19h.
MSRs that the silicon owns (EFER, the SYSCALL and segment base MSRs, PAT, GHCB, SEV_STATUS, and with
Secure TSC what is read of the TSC) never come here. An MSR that is in no table raises #GP(0),
reads and writes alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum, auto
from functools import partial
from typing import Final, NamedTuple

from svsmd.host.local_apic import LocalApic, MsrError

TSC_MSR: Final = 0x10
MPERF_MSR: Final = 0xE7
APERF_MSR: Final = 0xE8


class OnWrite(Enum):
    """What a write does."""

    STORE = auto()
    IGNORE = auto()
    FAULT = auto()


class MsrRow(NamedTuple):
    """One MSR: its value after reset, and what writes do."""

    value: int
    on_write: OnWrite


_MTRR_VARIABLE_COUNT: Final = 8
_MTRR_FIXED: Final = (0x250, 0x258, 0x259, *range(0x268, 0x270))
_MTRR_ALL_WRITE_BACK: Final = 0x0606_0606_0606_0606

MSR_TABLE: Final[dict[int, MsrRow]] = {
    0x0000_003A: MsrRow(1, OnWrite.FAULT),  # FEATURE_CONTROL: locked, nothing enabled
    0x0000_003B: MsrRow(0, OnWrite.STORE),  # TSC_ADJUST
    0x0000_0048: MsrRow(0, OnWrite.STORE),  # SPEC_CTRL
    0x0000_008B: MsrRow(0x0100_0065, OnWrite.IGNORE),  # PATCH_LEVEL
    0x0000_00FE: MsrRow(0x500 | _MTRR_VARIABLE_COUNT, OnWrite.FAULT),  # MTRRcap: WC, fixed
    0x0000_01A0: MsrRow(1, OnWrite.STORE),  # MISC_ENABLE: fast strings
    0x0000_01D9: MsrRow(0, OnWrite.STORE),  # DebugCtl
    0x0000_02FF: MsrRow(0xC06, OnWrite.STORE),  # MTRRdefType: enabled, fixed enabled, write-back
    0x0000_0DA0: MsrRow(0, OnWrite.STORE),  # XSS
    0xC001_0010: MsrRow(0, OnWrite.STORE),  # SYSCFG
    0xC001_0015: MsrRow(1 << 24, OnWrite.STORE),  # HWCR: TscFreqSel, the TSC counts at P0
    0xC001_001F: MsrRow(0, OnWrite.STORE),  # NB_CFG
    0xC001_0055: MsrRow(0, OnWrite.STORE),  # interrupt pending
    0xC001_0058: MsrRow(0, OnWrite.STORE),  # MMIO configuration base: none
    0xC001_0117: MsrRow(0, OnWrite.STORE),  # VM_HSAVE_PA
    0xC001_0140: MsrRow(0, OnWrite.STORE),  # OSVW id length
    0xC001_0141: MsrRow(0, OnWrite.STORE),  # OSVW status
    0xC001_1020: MsrRow(0, OnWrite.STORE),  # LS_CFG
    0xC001_1022: MsrRow(0, OnWrite.STORE),  # DC_CFG
    0xC001_1023: MsrRow(0, OnWrite.STORE),  # BU_CFG
    0xC001_1029: MsrRow(1 << 1, OnWrite.STORE),  # DE_CFG: LFENCE is serializing
    0xC001_102C: MsrRow(0, OnWrite.STORE),  # EX_CFG
    **{msr: MsrRow(_MTRR_ALL_WRITE_BACK, OnWrite.STORE) for msr in _MTRR_FIXED},
    **{0x200 + n: MsrRow(0, OnWrite.STORE) for n in range(2 * _MTRR_VARIABLE_COUNT)},
}


class VcpuMsrs:
    """The MSRs of one VMPL of a vCPU: number to bound method, so an exit is one lookup."""

    def __init__(self, apic: LocalApic, now: Callable[[], int]) -> None:
        """:param now: ticks; the TSC, and MPERF and APERF at the nominal frequency."""
        # Volatile state.
        self.values = {msr: row.value for msr, row in MSR_TABLE.items()}
        # Runtime glue.
        self.reads: dict[int, Callable[[], int]] = {
            msr: partial(self.values.__getitem__, msr) for msr in MSR_TABLE
        }
        self.writes: dict[int, Callable[[int], None]] = {}
        for msr, row in MSR_TABLE.items():
            if row.on_write is OnWrite.STORE:
                self.writes[msr] = partial(self.values.__setitem__, msr)
            elif row.on_write is OnWrite.IGNORE:
                self.writes[msr] = _ignore
        for counter in (TSC_MSR, MPERF_MSR, APERF_MSR):
            self.reads[counter] = now
            # The clock of the machine is not the guest's to set.
            self.writes[counter] = _ignore
        self.reads |= apic.msr_reads
        self.writes |= apic.msr_writes

    def read(self, msr: int) -> int | None:
        """RDMSR: 64 bits, or None for #GP(0)."""
        handler = self.reads.get(msr)
        return None if handler is None else handler()

    def write(self, msr: int, value: int) -> bool:
        """WRMSR of a 64-bit *value*: False for #GP(0)."""
        handler = self.writes.get(msr)
        if handler is None:
            return False
        try:
            handler(value)
        except MsrError:
            return False
        return True


class MsrPolicy:
    """The MSRs of the guest's VMPL, of all vCPUs."""

    def __init__(self, vcpus: Sequence[VcpuMsrs]) -> None:
        """:param vcpus: by vCPU number."""
        self.vcpus = tuple(vcpus)

    def read(self, vcpu: int, msr: int) -> int | None:
        """RDMSR at a vCPU."""
        return self.vcpus[vcpu].read(msr)

    def write(self, vcpu: int, msr: int, value: int) -> bool:
        """WRMSR at a vCPU."""
        return self.vcpus[vcpu].write(msr, value)


def _ignore(_value: int) -> None:
    """A write without effect."""
