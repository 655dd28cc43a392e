# SPDX-License-Identifier: MIT
"""Questions to the stub: packets of the remote protocol, and `monitor`.

Every question is about the thread that gdb has selected: packet T tells the stub of it, and unlike
Hg leaves alone what gdb believes to be selected. What goes wrong is a gdb.GdbError, which gdb shows
as one line.

Spec: GDB manual, E.2 Packets, E.4 General Query Packets; QEMU, docs/system/gdb.rst.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from xml.etree import ElementTree

import gdb

_CHUNK = 0x8000
"""Bytes that are asked for at once."""
_ESCAPED = re.compile(rb"\}(.)", re.DOTALL)
_NO_PROCESSES = 42000
"""The process that gdb makes up where the stub knows none."""
FIRST_PROGRAM = 16
"""Process of a program under the SVSM, less the number of its task."""
_NOT_CONNECTED = "not connected to svsmd: target remote HOST:PORT"

Row = dict[str, str]


def is_connected() -> bool:
    """Whether the current inferior has a remote target."""
    return isinstance(gdb.selected_inferior().connection, gdb.RemoteTargetConnection)


def packet(body: str) -> bytes:
    """The reply to a packet; GdbError for an error reply, or without a remote target."""
    connection = gdb.selected_inferior().connection
    if not isinstance(connection, gdb.RemoteTargetConnection):
        raise gdb.GdbError(_NOT_CONNECTED)
    reply = connection.send_packet(body) or b""
    if reply[:2] == b"E.":
        raise gdb.GdbError(reply[2:].decode(errors="replace"))
    if re.fullmatch(rb"E[0-9a-fA-F]{2}", reply):
        raise gdb.GdbError(f"svsmd answers {reply.decode()} to {body}")
    return reply


def selected() -> tuple[int, int]:
    """Process and thread that gdb has selected."""
    thread = gdb.selected_thread()
    if thread is None:
        raise gdb.GdbError("no thread is selected")
    pid, tid, _ = thread.ptid
    return pid, tid


def select_thread() -> None:
    """Tell the stub which thread the next questions are about."""
    if not is_connected():
        raise gdb.GdbError(_NOT_CONNECTED)
    pid, tid = selected()
    packet(f"T{tid:x}" if pid == _NO_PROCESSES else f"Tp{pid:x}.{tid:x}")


def monitor(command: str) -> str:
    """What a monitor command prints."""
    select_thread()
    return gdb.execute(f"monitor {command}", False, True).rstrip("\n")


def _transfer(object_: str, annex: str) -> str:
    document = b""
    while True:
        reply = packet(f"qXfer:{object_}:read:{annex}:{len(document):x},{_CHUNK:x}")
        if reply[:1] not in (b"l", b"m"):
            raise gdb.GdbError(f"the target has no {object_} {annex}: is it svsmd?")
        # The next offset counts bytes as they were before they were escaped.
        document += _ESCAPED.sub(lambda escaped: bytes([escaped[1][0] ^ 0x20]), reply[1:])
        if reply[:1] == b"l":
            return document.decode()


def table(name: str) -> list[Row]:
    """A table of `info os`, by the names of its columns."""
    select_thread()
    return [
        {column.get("name", ""): column.text or "" for column in item.iter("column")}
        for item in ElementTree.fromstring(_transfer("osdata", name)).iter("item")
    ]


@dataclass(frozen=True)
class Thread:
    """A thread as the stub tells of it: process, name and what it does."""

    pid: int
    tid: int
    name: str
    core: int | None
    doing: str


def threads() -> list[Thread]:
    """All threads as they are now; gdb itself asks only for `info threads`."""
    found = []
    for each in ElementTree.fromstring(_transfer("threads", "")).iter("thread"):
        pid, _, tid = each.get("id", "").lstrip("p").rpartition(".")
        core = each.get("core")
        found.append(
            Thread(
                int(pid or "0", 16), int(tid, 16), each.get("name", ""),
                None if core is None else int(core), each.text or "",
            )
        )  # fmt: skip
    return found


def read_physical(address: int, length: int) -> bytes:
    """Memory by guest-physical address, private or shared; GdbError if it is no RAM."""
    before = packet("qqemu.PhyMemMode") or b"0"
    packet("Qqemu.PhyMemMode:1")
    try:
        data = bytes.fromhex(packet(f"m{address:x},{length:x}").decode())
    finally:
        packet(f"Qqemu.PhyMemMode:{before.decode()}")
    if len(data) != length:
        raise gdb.GdbError(f"there is no RAM at {address + len(data):#x}")
    return data


def number(expression: str) -> int:
    """Value of an expression of gdb's, as an unsigned number of 64 bits."""
    try:
        value = gdb.parse_and_eval(expression)
    except gdb.error as error:
        raise gdb.GdbError(str(error)) from None
    if value.type.strip_typedefs().code == gdb.TYPE_CODE_ARRAY and value.address is not None:
        value = value.address
    return int(value) & ((1 << 64) - 1)
