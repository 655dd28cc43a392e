# SPDX-License-Identifier: MIT
"""One call of the guest as a value, and its result.

Spec: 58019 (SVSM), section 4 (calling convention): RAX = protocol << 32 | call, RCX, RDX, R8 and R9
are arguments; the result code comes back in RAX, results in RCX, RDX and R8.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol, Self

from svsmd.core.gate import Handler
from svsmd.core.percpu import PerCpu
from svsmd.core.result_codes import SvsmResult

_LOW_32: Final = 0xFFFF_FFFF

PRIVATE_PROTOCOLS: Final = range(0xC000_0000, 0xC001_0000)
"""Protocol numbers of this SVSM's own: neither the specification's, nor those that it keeps for
AMD's reference implementation (0x80000000 to 0x8000FFFF)."""
MODULE_PROTOCOLS: Final = range(0xC001_0000, 0xC002_0000)
"""Private protocol numbers for modules: neither the specification's, nor those that it keeps for
AMD's reference implementation (0x80000000 to 0x8000FFFF), nor this SVSM's own."""


@dataclass(frozen=True, slots=True)
class Request:
    """Registers of the guest when it made the call; all 64 bits wide and all hostile."""

    rax: int
    rcx: int = 0
    rdx: int = 0
    r8: int = 0
    r9: int = 0

    @property
    def protocol(self) -> int:
        """RAX[63:32]."""
        return self.rax >> 32

    @property
    def call(self) -> int:
        """RAX[31:0]."""
        return self.rax & _LOW_32


@dataclass(frozen=True, slots=True)
class Reply:
    """Registers that the guest finds after the call. R9 and the others keep their values."""

    rax: int
    rcx: int
    rdx: int
    r8: int

    @classmethod
    def to(
        cls,
        request: Request,
        result: int = SvsmResult.SVSM_SUCCESS,
        *,
        rcx: int | None = None,
        rdx: int | None = None,
    ) -> Self:
        """The result of `request`; argument registers that are no results keep their values."""
        return cls(
            int(result),
            request.rcx if rcx is None else rcx,
            request.rdx if rdx is None else rdx,
            request.r8,
        )


class Versioned(Protocol):
    """What SVSM_CORE_QUERY_PROTOCOL has to know of a protocol."""

    @property
    def versions(self) -> range:
        """Versions it speaks, ascending."""
        ...


class CallProtocol(Protocol):
    """One protocol of the SVSM (58019, sections 6 to 10)."""

    number: int
    """RAX[63:32] of its calls."""
    versions: range
    """Versions it speaks, ascending."""

    def handle(self, cpu: PerCpu, request: Request, /) -> Handler[Reply]:
        """Serve one call made on `cpu`. May raise `SvsmError`, or `GuestFault` for memory that the
        guest named; nothing else, whatever the registers hold."""
        ...
