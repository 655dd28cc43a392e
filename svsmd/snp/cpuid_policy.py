# SPDX-License-Identifier: MIT
"""The CPUID of this machine: what the silicon has, and what the security processor lets pass.

The processor calls itself a Milan (family 19h, model 1, stepping 1). What the CPU engine does not
execute is not announced: no AVX, no BMI1, BMI2 and ADX, no XSAVE, no PCID, no RDPID. INVLPGB, which
an SVSM takes for granted, is not announced either: to Linux it is a feature of a CPU with PCIDs.
TSC-deadline and the x2APIC, which that Milan has through its hypervisor, are announced as a guest
sees them. Nothing is executed speculatively here, and CPUID says of each attack on that for which
it has a bit that it does not work: kernels need no defence.

Spec: AMD64 APM volume 3 (24594), appendix E; the policy for a CPUID page: SNP firmware ABI
(56860), SNP_LAUNCH_UPDATE and MSG_CPUID_REQ, and AMD's Processor Programming Reference for family
19h (55898), "CPUID Policy Enforcement". Deviation: only the leaves that this machine has are in the
policy, TSC-deadline and HTT may be offered.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from functools import lru_cache
from typing import Final, NamedTuple

from svsmd.snp.bits import Bit, Bits, Register32
from svsmd.snp.types import C_BIT_POSITION

CPUID_SIGNATURE: Final = 0x00A0_0F11
"""CPUID 1:EAX: stepping 1, model 01h, family 19h."""
CPUID_FAMILY: Final = 0x19
CPUID_MODEL: Final = 0x01
CPUID_STEPPING: Final = 0x1

PHYSICAL_ADDRESS_BITS: Final = 40
LINEAR_ADDRESS_BITS: Final = 48
NUM_VMPLS: Final = 4
MAX_GUESTS: Final = 0x1FF
"""CPUID 8000_001F:ECX: ASIDs."""
MIN_SEV_NO_ES_ASID: Final = 1
"""CPUID 8000_001F:EDX: every ASID may run SEV-ES guests."""

VENDOR: Final = b"AuthenticAMD"
HYPERVISOR_SIGNATURE: Final = b"KVMKVMKVM\0\0\0"
"""Linux keeps the x2APIC without interrupt remapping only under a hypervisor that it knows."""
BRAND: Final = b"svsmd emulated EPYC"


class CpuidLeaf(IntEnum):
    """Functions that this machine has (24594, appendix E.3 and E.4)."""

    VENDOR = 0x0000_0000
    FEATURES = 0x0000_0001
    POWER = 0x0000_0006
    STRUCTURED_FEATURES = 0x0000_0007
    TOPOLOGY = 0x0000_000B
    HYPERVISOR_VENDOR = 0x4000_0000
    HYPERVISOR_FEATURES = 0x4000_0001
    EXTENDED_VENDOR = 0x8000_0000
    EXTENDED_FEATURES = 0x8000_0001
    BRAND_0 = 0x8000_0002
    BRAND_1 = 0x8000_0003
    BRAND_2 = 0x8000_0004
    L1_CACHE = 0x8000_0005
    L2_CACHE = 0x8000_0006
    ADVANCED_POWER = 0x8000_0007
    ADDRESS_SIZES = 0x8000_0008
    CACHE_TOPOLOGY = 0x8000_001D
    EXTENDED_APIC_ID = 0x8000_001E
    SECURE_ENCRYPTION = 0x8000_001F
    EXTENDED_FEATURES_2 = 0x8000_0021


class Fn1Ecx(IntFlag):
    """CPUID 1:ECX."""

    SSE3 = 1 << 0
    SSSE3 = 1 << 9
    CMPXCHG16B = 1 << 13
    SSE41 = 1 << 19
    SSE42 = 1 << 20
    X2APIC = 1 << 21
    MOVBE = 1 << 22
    POPCNT = 1 << 23
    TSC_DEADLINE = 1 << 24
    OSXSAVE = 1 << 27
    RDRAND = 1 << 30
    HYPERVISOR = 1 << 31


class Fn1Edx(IntFlag):
    """CPUID 1:EDX; 8000_0001:EDX repeats those of `FN1_EDX_REPEATED`."""

    FPU = 1 << 0
    DE = 1 << 2
    PSE = 1 << 3
    TSC = 1 << 4
    MSR = 1 << 5
    PAE = 1 << 6
    CMPXCHG8B = 1 << 8
    APIC = 1 << 9
    SYSENTER = 1 << 11
    MTRR = 1 << 12
    PGE = 1 << 13
    CMOV = 1 << 15
    PAT = 1 << 16
    PSE36 = 1 << 17
    CLFSH = 1 << 19
    MMX = 1 << 23
    FXSR = 1 << 24
    SSE = 1 << 25
    SSE2 = 1 << 26
    HTT = 1 << 28


FN1_EDX_REPEATED: Final = 0x0183_F3FF


class Fn6Eax(IntFlag):
    """CPUID 6:EAX."""

    ARAT = 1 << 2


class Fn7Ebx(IntFlag):
    """CPUID 7:EBX, index 0."""

    FSGSBASE = 1 << 0
    SMEP = 1 << 7
    ERMS = 1 << 9
    SMAP = 1 << 20
    CLFLUSHOPT = 1 << 23


class ExtendedEcx(IntFlag):
    """CPUID 8000_0001:ECX."""

    LAHF_SAHF = 1 << 0
    ALT_MOV_CR8 = 1 << 4
    ABM = 1 << 5
    SSE4A = 1 << 6
    MISALIGN_SSE = 1 << 8
    TOPOLOGY_EXTENSIONS = 1 << 22


class ExtendedEdx(IntFlag):
    """CPUID 8000_0001:EDX, beside the repeated bits."""

    SYSCALL_SYSRET = 1 << 11
    NX = 1 << 20
    MMX_EXT = 1 << 22
    PAGE_1GB = 1 << 26
    RDTSCP = 1 << 27
    LM = 1 << 29


class HypervisorFeature(IntFlag):
    """CPUID 4000_0001:EAX, the paravirtual features of the announced hypervisor."""

    NOP_IO_DELAY = 1 << 1
    CLOCKSOURCE2 = 1 << 3
    """kvmclock, at its newer MSRs."""
    CLOCKSOURCE_STABLE = 1 << 24
    """kvmclock says itself whether the clocks of all vCPUs are one."""


class AdvancedPowerEdx(IntFlag):
    """CPUID 8000_0007:EDX."""

    TSC_INVARIANT = 1 << 8


class AddressSizesEbx(IntFlag):
    """CPUID 8000_0008:EBX."""

    SSBD_NOT_REQUIRED = 1 << 26
    BTC_NO = 1 << 29


class ExtendedFeatures2Eax(IntFlag):
    """CPUID 8000_0021:EAX."""

    SRSO_NO = 1 << 29


class ExtendedFeatures2Ecx(IntFlag):
    """CPUID 8000_0021:ECX."""

    TSA_SQ_NO = 1 << 1
    TSA_L1_NO = 1 << 2


class SecureEncryptionEax(IntFlag):
    """CPUID 8000_001F:EAX; the bit SVSM is set by an SVSM in the copy for its guest (58019)."""

    SEV = 1 << 1
    SEV_ES = 1 << 3
    SEV_SNP = 1 << 4
    VMPL = 1 << 5
    SECURE_TSC = 1 << 8
    SVSM = 1 << 28


class SecureEncryptionEbx(Register32):
    """CPUID 8000_001F:EBX."""

    C_BIT_POSITION = Bits(5, 0)
    PHYS_ADDR_REDUCTION = Bits(11, 6)
    NUM_VMPL = Bits(15, 12)
    COHERENCY_SFW_NO = Bit(31)


class FeaturesEbx(Register32):
    """CPUID 1:EBX."""

    BRAND_ID = Bits(7, 0)
    CLFLUSH = Bits(15, 8)
    """Bytes of a cache line / 8."""
    LOGICAL_PROCESSOR_COUNT = Bits(23, 16)
    LOCAL_APIC_ID = Bits(31, 24)


class TopologyEcx(Register32):
    """CPUID 0Bh:ECX."""

    INPUT_ECX = Bits(7, 0)
    LEVEL_TYPE = Bits(15, 8)
    """0 none, 1 SMT, 2 core."""


class CacheTopologyEax(Register32):
    """CPUID 8000_001D:EAX; there is one index for each cache."""

    CACHE_TYPE = Bits(4, 0)
    """0 no more caches, 1 data, 2 instructions, 3 unified."""
    CACHE_LEVEL = Bits(7, 5)
    SELF_INITIALIZATION = Bit(8)
    FULLY_ASSOCIATIVE = Bit(9)
    NUM_SHARING_CACHE = Bits(25, 14)
    """Processors less 1."""


class CacheTopologyEbx(Register32):
    """CPUID 8000_001D:EBX, each less 1; ECX is the number of sets, less 1."""

    CACHE_LINE_SIZE = Bits(11, 0)
    CACHE_PHYS_PARTITIONS = Bits(21, 12)
    CACHE_NUM_WAYS = Bits(31, 22)


class CpuidResult(NamedTuple):
    """The four registers."""

    eax: int = 0
    ebx: int = 0
    ecx: int = 0
    edx: int = 0


_ZERO: Final = CpuidResult()

_VENDOR_EBX, _VENDOR_EDX, _VENDOR_ECX = struct.unpack("<III", VENDOR)
_BRAND: Final = struct.unpack("<12I", BRAND.ljust(48, b"\0"))

_FN1_EDX: Final = (
    Fn1Edx.FPU
    | Fn1Edx.DE
    | Fn1Edx.PSE
    | Fn1Edx.TSC
    | Fn1Edx.MSR
    | Fn1Edx.PAE
    | Fn1Edx.CMPXCHG8B
    | Fn1Edx.APIC
    | Fn1Edx.SYSENTER
    | Fn1Edx.MTRR
    | Fn1Edx.PGE
    | Fn1Edx.CMOV
    | Fn1Edx.PAT
    | Fn1Edx.PSE36
    | Fn1Edx.CLFSH
    | Fn1Edx.MMX
    | Fn1Edx.FXSR
    | Fn1Edx.SSE
    | Fn1Edx.SSE2
)
_FN1_ECX: Final = (
    Fn1Ecx.SSE3
    | Fn1Ecx.SSSE3
    | Fn1Ecx.CMPXCHG16B
    | Fn1Ecx.SSE41
    | Fn1Ecx.SSE42
    | Fn1Ecx.X2APIC
    | Fn1Ecx.MOVBE
    | Fn1Ecx.POPCNT
    | Fn1Ecx.TSC_DEADLINE
    | Fn1Ecx.RDRAND
    | Fn1Ecx.HYPERVISOR
)
# The same caches in two forms: L1 of 32 KiB for data and for instructions, L2 of 512 KiB, all with
# 8 ways (which 8000_0006 encodes as 6), 1 line a tag and lines of 64 bytes.
_CACHE_LINE: Final = 64
_CACHE_WAYS: Final = 8
_L1_KIB: Final = 32
_L2_KIB: Final = 512
_L1_CACHE: Final = _L1_KIB << 24 | _CACHE_WAYS << 16 | 1 << 8 | _CACHE_LINE
_L2_CACHE: Final = _L2_KIB << 16 | 6 << 12 | 1 << 8 | _CACHE_LINE


def _cache(cache_type: int, level: int, kib: int) -> CpuidResult:
    return CpuidResult(
        CacheTopologyEax.of(CACHE_TYPE=cache_type, CACHE_LEVEL=level, SELF_INITIALIZATION=1),
        CacheTopologyEbx.of(CACHE_LINE_SIZE=_CACHE_LINE - 1, CACHE_NUM_WAYS=_CACHE_WAYS - 1),
        kib * 1024 // _CACHE_LINE // _CACHE_WAYS - 1,
    )


_LEAVES: Final[dict[tuple[int, int], CpuidResult]] = {
    (CpuidLeaf.VENDOR, 0): CpuidResult(CpuidLeaf.TOPOLOGY, _VENDOR_EBX, _VENDOR_ECX, _VENDOR_EDX),
    (CpuidLeaf.FEATURES, 0): CpuidResult(
        CPUID_SIGNATURE, FeaturesEbx.of(CLFLUSH=_CACHE_LINE // 8), _FN1_ECX, _FN1_EDX
    ),
    (CpuidLeaf.POWER, 0): CpuidResult(eax=Fn6Eax.ARAT),
    (CpuidLeaf.STRUCTURED_FEATURES, 0): CpuidResult(
        ebx=Fn7Ebx.FSGSBASE | Fn7Ebx.SMEP | Fn7Ebx.ERMS | Fn7Ebx.SMAP | Fn7Ebx.CLFLUSHOPT
    ),
    # The numbers of processors in these two are filled in by `cpuid`.
    (CpuidLeaf.TOPOLOGY, 0): CpuidResult(0, 1, TopologyEcx.of(INPUT_ECX=0, LEVEL_TYPE=1), 0),
    (CpuidLeaf.TOPOLOGY, 1): CpuidResult(0, 1, TopologyEcx.of(INPUT_ECX=1, LEVEL_TYPE=2), 0),
    (CpuidLeaf.HYPERVISOR_VENDOR, 0): CpuidResult(
        CpuidLeaf.HYPERVISOR_FEATURES, *struct.unpack("<III", HYPERVISOR_SIGNATURE)
    ),
    (CpuidLeaf.HYPERVISOR_FEATURES, 0): CpuidResult(
        HypervisorFeature.NOP_IO_DELAY
        | HypervisorFeature.CLOCKSOURCE2
        | HypervisorFeature.CLOCKSOURCE_STABLE
    ),
    (CpuidLeaf.EXTENDED_VENDOR, 0): CpuidResult(
        CpuidLeaf.EXTENDED_FEATURES_2, _VENDOR_EBX, _VENDOR_ECX, _VENDOR_EDX
    ),
    (CpuidLeaf.EXTENDED_FEATURES, 0): CpuidResult(
        eax=CPUID_SIGNATURE,
        ecx=ExtendedEcx.LAHF_SAHF
        | ExtendedEcx.ALT_MOV_CR8
        | ExtendedEcx.ABM
        | ExtendedEcx.SSE4A
        | ExtendedEcx.MISALIGN_SSE
        | ExtendedEcx.TOPOLOGY_EXTENSIONS,
        edx=_FN1_EDX & FN1_EDX_REPEATED
        | ExtendedEdx.SYSCALL_SYSRET
        | ExtendedEdx.NX
        | ExtendedEdx.MMX_EXT
        | ExtendedEdx.PAGE_1GB
        | ExtendedEdx.RDTSCP
        | ExtendedEdx.LM,
    ),
    (CpuidLeaf.BRAND_0, 0): CpuidResult._make(_BRAND[0:4]),
    (CpuidLeaf.BRAND_1, 0): CpuidResult._make(_BRAND[4:8]),
    (CpuidLeaf.BRAND_2, 0): CpuidResult._make(_BRAND[8:12]),
    (CpuidLeaf.L1_CACHE, 0): CpuidResult(0, 0, _L1_CACHE, _L1_CACHE),
    (CpuidLeaf.L2_CACHE, 0): CpuidResult(ecx=_L2_CACHE),
    (CpuidLeaf.ADVANCED_POWER, 0): CpuidResult(edx=AdvancedPowerEdx.TSC_INVARIANT),
    (CpuidLeaf.ADDRESS_SIZES, 0): CpuidResult(
        eax=LINEAR_ADDRESS_BITS << 8 | PHYSICAL_ADDRESS_BITS,
        ebx=AddressSizesEbx.SSBD_NOT_REQUIRED | AddressSizesEbx.BTC_NO,
    ),
    (CpuidLeaf.CACHE_TOPOLOGY, 0): _cache(1, 1, _L1_KIB),
    (CpuidLeaf.CACHE_TOPOLOGY, 1): _cache(2, 1, _L1_KIB),
    (CpuidLeaf.CACHE_TOPOLOGY, 2): _cache(3, 2, _L2_KIB),
    (CpuidLeaf.EXTENDED_APIC_ID, 0): _ZERO,
    (CpuidLeaf.SECURE_ENCRYPTION, 0): CpuidResult(
        SecureEncryptionEax.SEV
        | SecureEncryptionEax.SEV_ES
        | SecureEncryptionEax.SEV_SNP
        | SecureEncryptionEax.VMPL
        | SecureEncryptionEax.SECURE_TSC,
        SecureEncryptionEbx.of(
            C_BIT_POSITION=C_BIT_POSITION,
            PHYS_ADDR_REDUCTION=PHYSICAL_ADDRESS_BITS - C_BIT_POSITION,
            NUM_VMPL=NUM_VMPLS,
            COHERENCY_SFW_NO=1,
        ),
        MAX_GUESTS,
        MIN_SEV_NO_ES_ASID,
    ),
    (CpuidLeaf.EXTENDED_FEATURES_2, 0): CpuidResult(
        eax=ExtendedFeatures2Eax.SRSO_NO,
        ecx=ExtendedFeatures2Ecx.TSA_SQ_NO | ExtendedFeatures2Ecx.TSA_L1_NO,
    ),
}

_INDEXED: Final = frozenset(
    (CpuidLeaf.STRUCTURED_FEATURES, CpuidLeaf.TOPOLOGY, CpuidLeaf.CACHE_TOPOLOGY)
)
"""Functions for which ECX matters; the others answer the same for every index."""


def is_indexed(function: int) -> bool:
    """Whether CPUID `function` looks at ECX."""
    return function in _INDEXED


@lru_cache(maxsize=1024)
def cpuid(function: int, index: int = 0, apic_id: int = 0, ncpus: int = 1) -> CpuidResult:
    """Execute CPUID on the vCPU `apic_id` of `ncpus`; a function that is not there gives zeros.

    OSXSAVE and the APIC's enable bit are as after reset; who emulates a running CPU adds them.
    """
    key = (function, index if function in _INDEXED else 0)
    result = _LEAVES.get(key)
    if result is None:
        return _ZERO
    if function == CpuidLeaf.FEATURES:
        ebx = FeaturesEbx(result.ebx).replace(
            LOCAL_APIC_ID=apic_id & 0xFF, LOGICAL_PROCESSOR_COUNT=min(ncpus, 0xFF)
        )
        edx = result.edx | (Fn1Edx.HTT if ncpus > 1 else 0)
        return result._replace(ebx=ebx, edx=edx)
    if function == CpuidLeaf.TOPOLOGY:
        if index == 1:
            result = result._replace(eax=_apic_id_size(ncpus), ebx=ncpus)
        return result._replace(edx=apic_id)
    if function == CpuidLeaf.ADDRESS_SIZES:
        return result._replace(ecx=_apic_id_size(ncpus) << 12 | min(ncpus - 1, 0xFF))
    if function == CpuidLeaf.EXTENDED_APIC_ID:
        return CpuidResult(eax=apic_id, ebx=apic_id & 0xFF)
    return result


def _apic_id_size(ncpus: int) -> int:
    """Bits of an APIC id that tell the processors apart."""
    return (ncpus - 1).bit_length()


def table(ncpus: int = 1) -> dict[tuple[int, int], CpuidResult]:
    """Every (function, index) with its registers on the boot CPU, for a CPUID page.

    EXTENDED_APIC_ID is all zero there and still listed: a guest that finds it in its table asks
    the hypervisor for the APIC id, one that does not takes zero for it.
    """
    return {key: cpuid(*key, ncpus=ncpus) for key in sorted(_LEAVES)}


_Rule = Callable[[int, int], int]
"""Takes the value offered and the silicon's own, returns what may pass."""


def _exact(_offered: int, own: int) -> int:
    return own


def _mask(offered: int, own: int) -> int:
    return offered & own


def _at_most(offered: int, own: int) -> int:
    return min(offered, own)


def _unchecked(offered: int, _own: int) -> int:
    return offered


def _each_byte_at_most(offered: int, own: int) -> int:
    offered_bytes, own_bytes = offered.to_bytes(4, "little"), own.to_bytes(4, "little")
    return int.from_bytes(map(min, offered_bytes, own_bytes), "little")


def _masked_but(dynamic: int) -> _Rule:
    """Build a bit mask rule that lets the bits `dynamic` pass, which a running system changes."""
    return lambda offered, own: offered & (own | dynamic)


def _clflush(offered: int, own: int) -> int:
    """Only CLFLUSH must be right; the brand is reserved, the rest depends on the vCPU."""
    size = FeaturesEbx(own).CLFLUSH
    return FeaturesEbx(offered).replace(BRAND_ID=0, CLFLUSH=size)


@dataclass(frozen=True, slots=True)
class _LeafRules:
    eax: _Rule
    ebx: _Rule
    ecx: _Rule
    edx: _Rule


_RULES: Final[dict[int, _LeafRules]] = {
    CpuidLeaf.VENDOR: _LeafRules(_at_most, _exact, _exact, _exact),
    CpuidLeaf.FEATURES: _LeafRules(
        _at_most,
        _clflush,
        _masked_but(Fn1Ecx.OSXSAVE | Fn1Ecx.HYPERVISOR),
        _masked_but(Fn1Edx.HTT),
    ),
    CpuidLeaf.POWER: _LeafRules(_mask, _exact, _mask, _exact),
    CpuidLeaf.STRUCTURED_FEATURES: _LeafRules(_at_most, _mask, _mask, _mask),
    CpuidLeaf.TOPOLOGY: _LeafRules(_unchecked, _unchecked, _unchecked, _unchecked),
    CpuidLeaf.EXTENDED_VENDOR: _LeafRules(_at_most, _exact, _exact, _exact),
    CpuidLeaf.EXTENDED_FEATURES: _LeafRules(_at_most, _mask, _mask, _mask),
    CpuidLeaf.BRAND_0: _LeafRules(_unchecked, _unchecked, _unchecked, _unchecked),
    CpuidLeaf.BRAND_1: _LeafRules(_unchecked, _unchecked, _unchecked, _unchecked),
    CpuidLeaf.BRAND_2: _LeafRules(_unchecked, _unchecked, _unchecked, _unchecked),
    CpuidLeaf.L1_CACHE: _LeafRules(_unchecked, _unchecked, _unchecked, _unchecked),
    CpuidLeaf.L2_CACHE: _LeafRules(_unchecked, _unchecked, _unchecked, _unchecked),
    CpuidLeaf.ADVANCED_POWER: _LeafRules(_mask, _mask, _mask, _mask),
    CpuidLeaf.ADDRESS_SIZES: _LeafRules(_each_byte_at_most, _mask, _unchecked, _at_most),
    CpuidLeaf.CACHE_TOPOLOGY: _LeafRules(_unchecked, _unchecked, _unchecked, _unchecked),
    CpuidLeaf.EXTENDED_APIC_ID: _LeafRules(_unchecked, _unchecked, _unchecked, _unchecked),
    CpuidLeaf.SECURE_ENCRYPTION: _LeafRules(_mask, _exact, _at_most, _unchecked),
    CpuidLeaf.EXTENDED_FEATURES_2: _LeafRules(_mask, _mask, _mask, _mask),
}
"""What the security processor lets a hypervisor claim (55898, "CPUID Policy Enforcement")."""

_CHECKED_RANGES: Final = (range(0x0001_0000), range(0x8000_0000, 0x8001_0000))
"""Standard and extended functions; what a hypervisor says elsewhere is its own affair."""


def sanitize(function: int, index: int, offered: CpuidResult) -> CpuidResult:
    """Return `offered` as the security processor corrects it; the same if nothing is wrong.

    A function that this machine does not have must be offered as zeros.
    """
    if not any(function in checked for checked in _CHECKED_RANGES):
        return offered
    own = _LEAVES.get((function, index))
    if own is None:
        return _ZERO
    rules = _RULES[function]
    return CpuidResult(
        rules.eax(offered.eax, own.eax),
        rules.ebx(offered.ebx, own.ebx),
        rules.ecx(offered.ecx, own.ecx),
        rules.edx(offered.edx, own.edx),
    )
