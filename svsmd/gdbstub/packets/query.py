# SPDX-License-Identifier: MIT
"""Negotiation, threads and transfers: packets H, T, qSupported, qC, qAttached, qXfer, q*ThreadInfo.

Spec: GDB manual, E.2 Packets, E.4 General Query Packets, E.17 Thread List Format.
"""

from __future__ import annotations

import struct
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
    parse_thread,
)
from svsmd.gdbstub.rsp import MAX_BODY, MAX_PACKET
from svsmd.gdbstub.target import (
    Stopped,
    SupportsBreakpoints,
    SupportsEvents,
    SupportsFiles,
    SupportsRelocation,
    SupportsTables,
    Thread,
    ThreadId,
)
from svsmd.gdbstub.target_xml import TARGET_XML

_OBJECTS: Final = (b"features", b"threads", b"exec-file", b"auxv", b"osdata")
_AUXV: Final = struct.Struct("<QQ")
_AT_NULL, _AT_ENTRY = 0, 9


def supported(ctx: Context, args: bytes) -> bytes:
    """`qSupported:FEATURE;...`: take note of the client's features and tell ours."""
    # Extensions of gdb ask again, in words of their own: what gdb has said goes on to hold.
    knew_processes = ctx.processes is not None
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
    if ctx.processes is not None:
        features.append(b"multiprocess+")
        if not knew_processes:
            ctx.general = _thread_of_stop(ctx)
    if isinstance(ctx.target, SupportsFiles) and ctx.processes is not None:
        features.append(b"qXfer:exec-file:read+")
    if isinstance(ctx.target, SupportsRelocation) and ctx.processes is not None:
        features.append(b"qXfer:auxv:read+")
        if b"exec-events+" in ctx.client_features:
            features.append(b"exec-events+")
            report_moves(ctx)
    return b";".join(features)


def report_moves(ctx: Context) -> None:
    """A client that has the run control, and can be told of a kernel that moves, is told."""
    if (
        ctx.in_control
        and ctx.processes is not None
        and isinstance(ctx.target, SupportsRelocation)
        and b"exec-events+" in ctx.client_features
    ):
        ctx.target.report_moves(True)


def _thread_of_stop(ctx: Context) -> ThreadId:
    shown = ctx.show(ctx.last_stop)
    return shown.thread if isinstance(shown, Stopped) else ctx.first_thread()


def start_no_ack_mode(ctx: Context, args: bytes) -> Reply:
    """`QStartNoAckMode`: TCP loses nothing."""
    return Action.START_NO_ACK_MODE


def non_stop(ctx: Context, args: bytes) -> Reply:
    """`QNonStop:MODE`, which is not advertised: 0 is how it is, 1 cannot be had."""
    if args == b":0":
        return OK
    raise PacketError(
        Errno.INVALID,
        "all-stop only, since a stopped vCPU would change what the others compute; "
        "another debugger that only reads can look while the machine runs",
    )


def attached(ctx: Context, args: bytes) -> bytes:
    """`qAttached`: the machine was there before gdb, so that gdb's `quit` detaches."""
    return b"1"


def select_thread(ctx: Context, args: bytes) -> bytes:
    """`H g TID` for registers and memory, `H c TID` for the packets c and s."""
    operation, thread = args[:1], parse_thread(ctx, args[1:])
    if thread is not None:
        thread = ctx.check_thread(thread)
    if operation == b"g":
        if thread is not None:
            ctx.general, ctx.user_thread = thread, None
        return OK
    if operation == b"c":
        ctx.step_thread = thread
        return OK
    raise PacketError(Errno.INVALID, "malformed packet")


def current_thread(ctx: Context, args: bytes) -> bytes:
    """`qC`."""
    return b"QC" + ctx.format(ctx.general)


def _one_thread(ctx: Context, text: bytes) -> ThreadId:
    thread = parse_thread(ctx, text)
    if thread is None:
        raise PacketError(Errno.NO_SUCH_THREAD, "not the id of one thread")
    return ctx.check_thread(thread)


def thread_alive(ctx: Context, args: bytes) -> bytes:
    """`T TID`: so gdb begins to execute `thread`; `Hg` follows if it needs registers."""
    ctx.user_thread = _one_thread(ctx, args)
    return OK


def symbols(ctx: Context, args: bytes) -> bytes:
    """`qSymbol`: there are none that the stub wants to know.

    gdb asks that once, when it has read the symbols of a process, which it has selected for that.
    Its user still looks at the thread that stopped.
    """
    if isinstance(ctx.last_stop, Stopped) and ctx.processes is not None:
        ctx.user_thread = ctx.last_stop.thread
    return UNSUPPORTED


def first_threads(ctx: Context, args: bytes) -> bytes:
    """`qfThreadInfo`: all of them at once."""
    return b"m" + b",".join(ctx.format(thread.id) for thread in ctx.list_threads())


def more_threads(ctx: Context, args: bytes) -> bytes:
    """`qsThreadInfo`: no more."""
    return b"l"


def thread_extra_info(ctx: Context, args: bytes) -> bytes:
    """`qThreadExtraInfo,TID`: for clients that do not read the thread list."""
    id_ = _one_thread(ctx, args[1:])
    thread = next(thread for thread in ctx.all_threads() if thread.id == id_)
    return f"{thread.name}: {thread.info}".encode().hex().encode()


def transfer(ctx: Context, args: bytes) -> bytes:
    """`qXfer:OBJECT:read:ANNEX:OFFSET,LENGTH`."""
    object_, _, rest = args[1:].partition(b":")
    operation, _, rest = rest.partition(b":")
    annex, _, where = rest.partition(b":")
    if operation != b"read" or object_ not in _OBJECTS:
        return UNSUPPORTED
    offset_text, _, length_text = where.partition(b",")
    offset, length = parse_hex(offset_text), parse_hex(length_text)
    if object_ == b"features":
        if annex != b"target.xml":
            raise PacketError(Errno.INVALID, "there is only target.xml")
        document = TARGET_XML
    elif object_ == b"exec-file":
        document = _executable(ctx, annex)
    elif object_ == b"auxv":
        document = _auxiliary_vector(ctx)
    elif object_ == b"osdata":
        if not isinstance(ctx.target, SupportsTables):
            return UNSUPPORTED
        if offset == 0:
            ctx.document = osdata.document(ctx, ctx.target, annex)
        document = ctx.document
    else:
        if offset == 0:
            ctx.document = _threads_xml(ctx)
        document = ctx.document
    end = offset + min(length, MAX_BODY - 1)
    return (b"m" if end < len(document) else b"l") + document[offset:end]


def _executable(ctx: Context, annex: bytes) -> bytes:
    """Name of the file of process `annex`, or of the current one; empty if there is none."""
    if not isinstance(ctx.target, SupportsFiles) or ctx.processes is None:
        raise PacketError(Errno.INVALID, "there are no processes")
    pid = parse_hex(annex) if annex else ctx.general.pid
    return (ctx.target.executable(pid) or "").encode()


def _auxiliary_vector(ctx: Context) -> bytes:
    """The entry point of the one process whose executable may lie elsewhere than it says.

    gdb 13 asks without saying of which process. It looks for the answer if an executable may lie
    anywhere (ET_DYN).
    """
    if not isinstance(ctx.target, SupportsRelocation) or ctx.processes is None:
        return b""
    pids = {thread.id.pid for thread in ctx.all_threads()}
    found = [place for pid in sorted(pids) if (place := ctx.target.relocation(pid)) is not None]
    entries = b"".join(_AUXV.pack(_AT_ENTRY, place.actual) for place in found)
    return entries and entries + _AUXV.pack(_AT_NULL, 0)


def offsets(ctx: Context, args: bytes) -> bytes:
    """`qOffsets`: for the symbols that the client has of its own, those of the current process.

    They may be a whole vmlinux: its segments keep their distances.
    """
    if not isinstance(ctx.target, SupportsRelocation) or ctx.processes is None:
        return UNSUPPORTED
    relocation = ctx.target.relocation(ctx.general.pid)
    if relocation is None or relocation.actual == relocation.linked:
        return UNSUPPORTED
    return b"TextSeg=%x" % relocation.actual


def _threads_xml(ctx: Context) -> bytes:
    threads = "".join(_thread_xml(ctx, thread) for thread in ctx.list_threads())
    return f'<?xml version="1.0"?><threads>{threads}</threads>'.encode()


def _thread_xml(ctx: Context, thread: Thread) -> str:
    core = f' core="{thread.core}"' if thread.core is not None else ""
    return (
        f'<thread id="{ctx.format(thread.id).decode()}" name="{escape(thread.name)}"{core}>'
        f"{escape(thread.info)}</thread>"
    )


HANDLERS: Final[Mapping[bytes, Handler]] = {
    b"H": select_thread,
    b"T": thread_alive,
    b"qSupported": supported,
    b"QStartNoAckMode": start_no_ack_mode,
    b"QNonStop": non_stop,
    b"qAttached": attached,
    b"qC": current_thread,
    b"qfThreadInfo": first_threads,
    b"qsThreadInfo": more_threads,
    b"qThreadExtraInfo": thread_extra_info,
    b"qSymbol": symbols,
    b"qOffsets": offsets,
    b"qXfer": transfer,
}
