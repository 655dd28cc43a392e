# SPDX-License-Identifier: MIT
"""The documents of qXfer:osdata:read, which gdb's `info os` shows as tables.

Spec: GDB manual, E.4 General Query Packets (qXfer:osdata:read) and 20.x "Operating System
Information"; gdb/features/osdata.dtd.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from html import escape
from itertools import islice
from typing import Final

from svsmd.gdbstub.packets.context import Context, Errno, PacketError
from svsmd.gdbstub.target import SupportsSelection, SupportsTables

MAX_ROWS: Final = 4000
"""Of one table; a last row then says that there are more."""

_TYPES: Final = ("Type", "Description", "Title")
_MORE: Final = "..."


def document(ctx: Context, target: SupportsTables, annex: bytes) -> bytes:
    """The table of that name; without a name, the table of the tables. Raises `PacketError`."""
    name = annex.decode("ascii", "replace")
    tables = target.tables
    if not name:
        types = ((key, table.description, table.title) for key, table in tables.items())
        return _xml("types", _TYPES, types)
    table = tables.get(name)
    if table is None:
        raise PacketError(Errno.INVALID, f"there is no table {name!r}")
    if isinstance(target, SupportsSelection):
        target.select(ctx.selection)
    return _xml(name, table.columns, _bounded(table.rows(), len(table.columns)))


def _bounded(rows: Iterable[Sequence[str]], columns: int) -> Iterator[Sequence[str]]:
    rows = iter(rows)
    yield from islice(rows, MAX_ROWS)
    if next(rows, None) is not None:
        yield [_MORE] * columns


def _xml(kind: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> bytes:
    names = [f'<column name="{escape(column)}">' for column in columns]
    items = "".join(
        "<item>"
        + "".join(f"{name}{escape(cell)}</column>" for name, cell in zip(names, row, strict=True))
        + "</item>"
        for row in rows
    )
    head = '<?xml version="1.0"?><!DOCTYPE target SYSTEM "osdata.dtd">'
    return f'{head}<osdata type="{escape(kind)}">{items}</osdata>'.encode()
