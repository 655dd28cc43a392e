# SPDX-License-Identifier: MIT
"""`monitor` commands: packet qRcmd.

The commands are the machine's (`SupportsMonitor`); `help` is made here out of their table. Mistakes
of the user are answered in plain text: gdb shows no text for an error reply to this packet.

Spec: GDB manual, E.4 General Query Packets, qRcmd.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from svsmd.gdbstub.packets import readers, run_control
from svsmd.gdbstub.packets.context import (
    MAX_CONSOLE,
    OK,
    UNSUPPORTED,
    Context,
    Handler,
    console_packets,
    parse_hex_data,
)
from svsmd.gdbstub.target import MonitorCommand, SupportsMonitor, SupportsSelection, TargetError

MAX_OUTPUT: Final = 1 << 21
"""Most bytes of output of one command."""

_TRUNCATED: Final = b"\n[output truncated]\n"


def remote_command(ctx: Context, args: bytes) -> bytes:
    """`qRcmd,COMMAND`, in hex both ways."""
    if not isinstance(ctx.target, SupportsMonitor):
        return UNSUPPORTED
    if isinstance(ctx.target, SupportsSelection):
        ctx.target.select(ctx.selection)
    line = parse_hex_data(args[1:]).decode("utf-8", "replace")
    text = _run(ctx, {**ctx.target.monitor_commands, **run_control.commands(ctx)}, line)
    if text and not text.endswith("\n"):
        text += "\n"
    output = text.encode("utf-8", "replace")
    if len(output) > MAX_OUTPUT:
        output = output[: MAX_OUTPUT - len(_TRUNCATED)] + _TRUNCATED
    # gdb prints what comes in console packets, and then the reply.
    last = max(0, len(output) - 1) // MAX_CONSOLE * MAX_CONSOLE
    ctx.console += console_packets(output[:last])
    return output[last:].hex().encode() or OK


def _run(ctx: Context, commands: Mapping[str, MonitorCommand], line: str) -> str:
    words = line.split() or ["help"]
    # As QEMU does, and programs write: `xp/16xb 0` is `xp /16xb 0`.
    name, slash, form = words[0].partition("/")
    args = [slash + form, *words[1:]] if slash else words[1:]
    if name == "help":
        return _help(commands, args)
    command = commands.get(name)
    if command is None:
        return f"unknown command {name!r}; try: monitor help"
    if not ctx.in_control and not readers.may_command(name, args):
        return f"{name}: {readers.refusal(ctx)}"
    try:
        return command.run(args)
    except TargetError as error:
        return f"{name}: {error}"


def _help(commands: Mapping[str, MonitorCommand], names: list[str]) -> str:
    unknown = [name for name in names if name not in commands]
    if unknown:
        return f"unknown command {unknown[0]!r}; try: monitor help"
    rows = [("help [COMMAND]", "list the commands, or explain one")] if not names else []
    for name in names or sorted(commands):
        command = commands[name]
        rows.append((f"{name} {command.usage}".rstrip(), command.help))
    width = max(len(usage) for usage, _ in rows)
    return "\n".join(f"{usage:{width}}  {text}" for usage, text in rows)


HANDLERS: Final[Mapping[bytes, Handler]] = {b"qRcmd": remote_command}
