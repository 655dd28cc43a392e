# SPDX-License-Identifier: MIT
"""What only lldb asks: packets QThreadSuffixSupported, qHostInfo, qProcessInfo, qThreadStopInfo.

lldb 14 announces `multiprocess+` for the sake of fork events, but names threads without their
processes. So it gets what a client without processes gets: vCPUs as threads. At each stop it reads
the PC of every thread, and then memory, which it believes to be the same for all of them: it is
that of the thread that has stopped.

Spec: LLDB documentation, "GDB Remote Protocol Extensions".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from svsmd.gdbstub.packets.context import (
    UNSUPPORTED,
    Context,
    Errno,
    Handler,
    PacketError,
    parse_thread,
)
from svsmd.gdbstub.packets.resume import stop_reply
from svsmd.gdbstub.target import Exited, Stopped

_TRIPLE: Final = b"x86_64-unknown-unknown".hex().encode()
_PLATFORM: Final = b"triple:%b;endian:little;ptrsize:8;" % _TRIPLE


def thread_suffix(ctx: Context, args: bytes) -> bytes:
    """`QThreadSuffixSupported`: it is not, but now it is known who asks. Comes at the beginning."""
    ctx.client_features -= {b"multiprocess+"}
    ctx.one_memory = True
    stop = ctx.last_stop
    ctx.general = stop.thread if isinstance(stop, Stopped) else ctx.target.threads()[0].id
    return UNSUPPORTED


def host_info(ctx: Context, args: bytes) -> bytes:
    """`qHostInfo`."""
    return _PLATFORM


def process_info(ctx: Context, args: bytes) -> bytes:
    """`qProcessInfo`: the machine is the process."""
    return b"pid:1;" + _PLATFORM


def thread_stop_info(ctx: Context, args: bytes) -> bytes:
    """`qThreadStopInfo TID`: why a thread stands still; all but one do because the machine does."""
    if isinstance(ctx.last_stop, Exited):
        return stop_reply(ctx, ctx.last_stop)
    thread = parse_thread(ctx, args)
    if thread is None:
        raise PacketError(Errno.NO_SUCH_THREAD, "not the id of one thread")
    thread = ctx.check_thread(thread)
    if thread == ctx.last_stop.thread:
        return stop_reply(ctx, ctx.last_stop)
    return b"T00thread:%b;" % ctx.format(thread)


HANDLERS: Final[Mapping[bytes, Handler]] = {
    b"QThreadSuffixSupported": thread_suffix,
    b"qHostInfo": host_info,
    b"qProcessInfo": process_info,
    b"qThreadStopInfo": thread_stop_info,
}
