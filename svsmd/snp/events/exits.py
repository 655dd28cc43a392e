# SPDX-License-Identifier: MIT
"""Tells of what the host is asked for: VMGEXITs, nested page faults, guest messages.

Spec: 56421, 2.3 (GHCB) and 2.3.1 (GHCB MSR protocol); 56860, table "Message header format".
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

from svsmd.snp.events.classes import EventClass
from svsmd.snp.events.hub import SnpEvents
from svsmd.snp.ghcb import Ghcb
from svsmd.snp.guest_message import HEADER_SIZE, MessageHeader
from svsmd.snp.types import PAGE_MASK, PAGE_SHIFT

VMGEXIT: Final = EventClass.VMGEXIT.bit
NPF: Final = EventClass.NPF.bit

_REQUEST: Final = struct.Struct("<3Q")
"""SW_EXITCODE, SW_EXITINFO1, SW_EXITINFO2."""
_REQUEST_OFFSET: Final = Ghcb.sw_exit_code.offset
_NO_PAGE: Final = bytes(_REQUEST.size)


def tell_vmgexit(
    events: SnpEvents, ghcb_msr: int, host_page: Callable[[int], memoryview | None]
) -> None:
    """A VMGEXIT with this value of the GHCB MSR; `host_page` gives a shared page of RAM."""
    info = ghcb_msr & PAGE_MASK
    data = ghcb_msr >> PAGE_SHIFT
    values = {"code": info, "info1": data, "info2": 0, "ghcb": 0, "msr": ghcb_msr}
    if not info:
        page = host_page(ghcb_msr)
        request = _NO_PAGE if page is None else page[_REQUEST_OFFSET:][: _REQUEST.size]
        values["ghcb"] = ghcb_msr
        values["code"], values["info1"], values["info2"] = _REQUEST.unpack(request)
    events.note(EventClass.VMGEXIT, values)


def tell_npf(events: SnpEvents, gpa: int, error_code: int, reason: str) -> None:
    """A nested page fault ends VMRUN."""
    events.note(EventClass.NPF, {"gpa": gpa, "code": error_code}, note=reason)


def tell_message(events: SnpEvents, request: bytes, status: int) -> None:
    """The security processor has looked at a message page, which may hold anything."""
    header = MessageHeader.copy_of(request[:HEADER_SIZE].ljust(HEADER_SIZE, b"\0"))
    values = {
        "type": header.msg_type, "key": header.msg_vmpck, "seqno": header.msg_seqno,
        "result": status,
    }  # fmt: skip
    events.note(EventClass.MESSAGE, values)
