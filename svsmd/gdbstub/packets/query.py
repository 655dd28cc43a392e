# SPDX-License-Identifier: MIT
"""Negotiation, threads and transfers: packets H, T, qSupported, qC, qAttached, qXfer, q*ThreadInfo.

Spec: GDB manual, E.2 Packets, E.4 General Query Packets, E.17 Thread List Format.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Final

from svsmd.gdbstub.packets import osdata
from svsmd.gdbstub.packets.context import (
    OK,
    UNSUPPORTED,
    Action,
    Context,
    Errno,
    Handler,
    PacketError,
    Reply,
    parse_hex,
    parse_tid,
)
from svsmd.gdbstub.rsp import MAX_BODY, MAX_PACKET
from svsmd.gdbstub.target import SupportsBreakpoints, SupportsEvents, SupportsTables
from svsmd.gdbstub.target_xml import TARGET_XML


def supported(ctx: Context, args: bytes) -> bytes:
    """`qSupported:FEATURE;...`: take note of the client's features and tell ours."""
    # Extensions of gdb ask again, in words of their own: what gdb has said goes on to hold.
    ctx.client_features |= frozenset(args[1:].split(b";"))
    features = [
        b"PacketSize=%x" % MAX_PACKET,
        b"QStartNoAckMode+",
        b"vContSupported+",
        b"qXfer:features:read+",
        b"qXfer:threads:read+",
        b"binary-upload+",
        b"error-message+",
    ]
    if isinstance(ctx.target, SupportsBreakpoints):
        features += [
            b"swbreak+", b"hwbreak+", b"ConditionalBreakpoints+", b"BreakpointCommands+",
        ]  # fmt: skip
    if isinstance(ctx.target, SupportsTables):
        features.append(b"qXfer:osdata:read+")
    if isinstance(ctx.target, SupportsEvents):
        features.append(b"QPassSignals+")
    return b";".join(features)


def start_no_ack_mode(ctx: Context, args: bytes) -> Reply:
    """`QStartNoAckMode`: TCP loses nothing."""
    return Action.START_NO_ACK_MODE


def attached(ctx: Context, args: bytes) -> bytes:
    """`qAttached`: the machine was there before gdb, so that gdb's `quit` detaches."""
    return b"1"


def select_thread(ctx: Context, args: bytes) -> bytes:
    """`H g TID` for registers and memory, `H c TID` for the packets c and s."""
    operation, tid = args[:1], parse_tid(args[1:])
    if tid is not None:
        ctx.check_tid(tid)
    if operation == b"g":
        if tid is not None:
            ctx.general_tid = tid
        return OK
    if operation == b"c":
        ctx.step_tid = tid
        return OK
    raise PacketError(Errno.INVALID, "malformed packet")


def current_thread(ctx: Context, args: bytes) -> bytes:
    """`qC`."""
    return b"QC%x" % ctx.general_tid


def thread_alive(ctx: Context, args: bytes) -> bytes:
    """`T TID`."""
    ctx.check_tid(parse_hex(args))
    return OK


def first_threads(ctx: Context, args: bytes) -> bytes:
    """`qfThreadInfo`: all of them at once."""
    return b"m" + b",".join(b"%x" % thread.tid for thread in ctx.target.threads())


def more_threads(ctx: Context, args: bytes) -> bytes:
    """`qsThreadInfo`: no more."""
    return b"l"


def thread_extra_info(ctx: Context, args: bytes) -> bytes:
    """`qThreadExtraInfo,TID`: for clients that do not read the thread list."""
    tid = parse_hex(args[1:])
    for thread in ctx.target.threads():
        if thread.tid == tid:
            return f"{thread.name}: {thread.info}".encode().hex().encode()
    raise PacketError(Errno.NO_SUCH_THREAD, f"no thread {tid}")


def transfer(ctx: Context, args: bytes) -> bytes:
    """`qXfer:OBJECT:read:ANNEX:OFFSET,LENGTH`."""
    object_, _, rest = args[1:].partition(b":")
    operation, _, rest = rest.partition(b":")
    annex, _, where = rest.partition(b":")
    if operation != b"read" or object_ not in (b"features", b"threads", b"osdata"):
        return UNSUPPORTED
    offset_text, _, length_text = where.partition(b",")
    offset, length = parse_hex(offset_text), parse_hex(length_text)
    if object_ == b"features":
        if annex != b"target.xml":
            raise PacketError(Errno.INVALID, "there is only target.xml")
        document = TARGET_XML
    elif object_ == b"osdata":
        if not isinstance(ctx.target, SupportsTables):
            return UNSUPPORTED
        if offset == 0:
            ctx.osdata = osdata.document(ctx, ctx.target, annex)
        document = ctx.osdata
    else:
        # The list must not change between the parts of one transfer.
        if offset == 0:
            ctx.threads_xml = _threads_xml(ctx)
        document = ctx.threads_xml
    end = offset + min(length, MAX_BODY - 1)
    return (b"m" if end < len(document) else b"l") + document[offset:end]


def _threads_xml(ctx: Context) -> bytes:
    threads = "".join(
        f'<thread id="{thread.tid:x}" name="{escape(thread.name)}">{escape(thread.info)}</thread>'
        for thread in ctx.target.threads()
    )
    return f'<?xml version="1.0"?><threads>{threads}</threads>'.encode()


HANDLERS: Final[Mapping[bytes, Handler]] = {
    b"H": select_thread,
    b"T": thread_alive,
    b"qSupported": supported,
    b"QStartNoAckMode": start_no_ack_mode,
    b"qAttached": attached,
    b"qC": current_thread,
    b"qfThreadInfo": first_threads,
    b"qsThreadInfo": more_threads,
    b"qThreadExtraInfo": thread_extra_info,
    b"qXfer": transfer,
}
