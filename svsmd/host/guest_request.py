# SPDX-License-Identifier: MIT
"""Guest requests: messages between a guest and the security processor, carried by the host.

The host sees sealed pages only. It carries them, and adds certificates to the extended form.

Spec: 56421, 4.1.7 (SNP_GUEST_REQUEST) and 4.1.8 (SNP_EXT_GUEST_REQUEST); 56860, SNP_GUEST_REQUEST.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from svsmd.host.certificate_table import CERT_TABLE_END
from svsmd.snp.ghcb import GhcbError, GhcbInputError
from svsmd.snp.types import PAGE_MASK, PAGE_SIZE

VMM_ERROR_SHIFT: Final = 32
"""SW_EXITINFO2[63:32] is the hypervisor's error, [31:0] the firmware's (56421, 4.1.7)."""
VMM_ERROR_INVALID_LENGTH: Final = 1
"""The certificate buffer is too small; RBX has the pages that are needed (56421, 4.1.8)."""

MAX_CERT_PAGES: Final = 0x8000
"""Pages of the largest certificate buffer that a guest may offer: far above any real table."""


class MessagePort(Protocol):
    """The security processor's mailbox for guest messages."""

    def guest_request(self, request_page: bytes) -> tuple[bytes, int]:
        """Return the response page and the firmware's status."""
        ...


HostPage = Callable[[int], memoryview | None]
"""Live 4 KiB page at an address, or None if no shared page of RAM starts there."""


class GuestRequests:
    """Carries guest messages to `psp`, and adds certificates to the extended form.

    `certificates` returns the table (`svsmd.host.certificate_table`), or no bytes if this host has
    none. It is called when a guest first asks.
    """

    def __init__(
        self, psp: MessagePort, host_page: HostPage, certificates: Callable[[], bytes]
    ) -> None:
        self._psp: Final = psp
        self._host_page: Final = host_page
        self._fetch: Final = certificates
        self._fetched: bytes | None = None

    def handle(self, request_gpa: int, response_gpa: int) -> int:
        """SNP_GUEST_REQUEST: returns SW_EXITINFO2.

        Both pages have to be shared, page aligned and different; else `GhcbInputError`.
        """
        return self._exchange(*self._pages(request_gpa, response_gpa))

    def handle_extended(
        self, request_gpa: int, response_gpa: int, buffer_gpa: int, npages: int
    ) -> tuple[int, int | None]:
        """SNP_EXT_GUEST_REQUEST: as `handle`, with certificates for a buffer of `npages` (RBX).

        The buffer at `buffer_gpa` (RAX) has to be shared. If it is too small, nothing is sent and
        SW_EXITINFO2[63:32] is 1; the second result is then what RBX is to say, the pages needed.
        """
        request, response = self._pages(request_gpa, response_gpa)
        if npages > MAX_CERT_PAGES or (npages and buffer_gpa & PAGE_MASK):
            raise GhcbInputError(
                GhcbError.INVALID_INPUT, f"{npages} certificate pages at {buffer_gpa:#x}"
            )
        certificates = self._certificates()
        needed = -(-len(certificates) // PAGE_SIZE)
        if npages < needed and certificates is not CERT_TABLE_END:
            return VMM_ERROR_INVALID_LENGTH << VMM_ERROR_SHIFT, needed
        # A guest that offers no buffer wants no certificates: no table is as good as an empty one.
        buffer = [self._page(buffer_gpa + i * PAGE_SIZE) for i in range(min(npages, needed))]
        result = self._exchange(request, response)
        if not result:
            for i, page in enumerate(buffer):
                part = certificates[i * PAGE_SIZE : (i + 1) * PAGE_SIZE]
                page[: len(part)] = part
        return result, None

    def _certificates(self) -> bytes:
        if self._fetched is None:
            self._fetched = self._fetch() or CERT_TABLE_END
        return self._fetched

    def _exchange(self, request: memoryview, response: memoryview) -> int:
        answer, firmware_error = self._psp.guest_request(bytes(request))
        response[: len(answer)] = answer
        return firmware_error & ((1 << VMM_ERROR_SHIFT) - 1)

    def _pages(self, request_gpa: int, response_gpa: int) -> tuple[memoryview, memoryview]:
        if request_gpa == response_gpa:
            raise GhcbInputError(GhcbError.INVALID_INPUT, "request and response are one page")
        return self._page(request_gpa), self._page(response_gpa)

    def _page(self, gpa: int) -> memoryview:
        page = self._host_page(gpa)
        if page is None:
            raise GhcbInputError(GhcbError.INVALID_INPUT, f"{gpa:#x} is no shared page")
        return page
