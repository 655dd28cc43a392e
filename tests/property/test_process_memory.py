# SPDX-License-Identifier: MIT
"""The user half of a process against a dict of bytes; memory may run out at any allocation."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from svsmd.core.memory import PageKind
from svsmd.core.page_entry import PageFlags
from svsmd.core.tasks.address_space import (
    ANONYMOUS,
    MMAP_TOP,
    USER_END,
    USER_START,
    Access,
    AddressSpace,
    Contents,
    Quota,
)
from svsmd.core.tasks.errno import CallFailed, Errno
from svsmd.snp.types import PAGE_MASK, PAGE_SIZE
from tests.process_memory import process_memory

LIMIT = 48
NPAGES = 24
BASES = (USER_START, 1 << 30, (1 << 38) - 8 * PAGE_SIZE, USER_END - NPAGES * PAGE_SIZE)
"""Places that need page tables of their own, the second but last across two of them."""
FILE = bytes(range(256)) * 40
ACCESSES = [Access.NONE, Access.READ, Access.WRITE, Access.READ | Access.WRITE, Access.EXECUTE,
            Access.READ | Access.EXECUTE]  # fmt: skip

bases = st.sampled_from(BASES)
pages = st.integers(0, NPAGES - 1)
counts = st.integers(1, 10)
accesses = st.sampled_from(ACCESSES)


class AddressSpaceMachine(RuleBasedStateMachine):
    """`access` has what each mapped page allows, `contents` what is in it."""

    def __init__(self) -> None:
        super().__init__()
        self.memory, self.cpu, self.pages = process_memory(free=70)
        self.free = self.pages.statistics().free
        self.space = AddressSpace(self.cpu, self.pages, Quota(LIMIT))
        self.access: dict[int, Access] = {}
        self.contents: dict[int, bytearray] = {}

    def _range(self, start: int, npages: int) -> list[int]:
        stop = min(start + npages * PAGE_SIZE, USER_END)
        return list(range(start, stop, PAGE_SIZE))

    def _mapped(self, found: list[int], access: Access, first: int | None = None) -> None:
        for number, page in enumerate(found):
            data = b"" if first is None else FILE[(first + number) * PAGE_SIZE :][:PAGE_SIZE]
            self.access[page] = access
            self.contents[page] = bytearray(data.ljust(PAGE_SIZE, b"\0"))

    def _may(self, page: int, access: Access) -> bool:
        allowed = self.access.get(page, Access.NONE)
        return bool(allowed & access if access is Access.WRITE else allowed)

    @rule(base=bases, page=pages, count=counts, access=accesses, old=st.booleans())
    def map(self, base: int, page: int, count: int, access: Access, old: bool) -> None:
        found = self._range(base + page * PAGE_SIZE, count)
        size = len(found) * PAGE_SIZE - 5
        if not old and any(page in self.access for page in found):
            with pytest.raises(CallFailed, match="EEXIST"):
                self.space.map(self.cpu, found[0], size, access)
            return
        self.space.map(self.cpu, found[0], size, access, ANONYMOUS, replace_old=old)
        self._mapped(found, access)

    @rule(count=counts, access=accesses, first=st.integers(0, 5))
    def map_anywhere(self, count: int, access: Access, first: int) -> None:
        start = self.space.map(self.cpu, None, count * PAGE_SIZE, access, Contents(FILE), first)
        found = self._range(start, count)
        assert start % PAGE_SIZE == 0
        assert start + count * PAGE_SIZE <= MMAP_TOP
        assert not any(page in self.access for page in found)
        self._mapped(found, access, first)

    @rule(base=bases, page=pages, count=counts)
    def unmap(self, base: int, page: int, count: int) -> None:
        found = self._range(base + page * PAGE_SIZE, count)
        self.space.unmap(self.cpu, found[0], len(found) * PAGE_SIZE)
        for each in found:
            self.access.pop(each, None)
            self.contents.pop(each, None)

    @rule(base=bases, page=pages, count=counts, access=accesses)
    def protect(self, base: int, page: int, count: int, access: Access) -> None:
        found = self._range(base + page * PAGE_SIZE, count)
        if not all(each in self.access for each in found):
            with pytest.raises(CallFailed, match="ENOMEM"):
                self.space.protect(self.cpu, found[0], len(found) * PAGE_SIZE, access)
            return
        self.space.protect(self.cpu, found[0], len(found) * PAGE_SIZE, access)
        self.access |= dict.fromkeys(found, access)

    @rule(base=bases, page=pages, offset=st.integers(0, PAGE_MASK), data=st.binary(max_size=9000))
    def write(self, base: int, page: int, offset: int, data: bytes) -> None:
        address = base + page * PAGE_SIZE + offset
        touched = range(address & ~PAGE_MASK, address + len(data), PAGE_SIZE) if data else range(0)
        try:
            self.space.write(self.cpu, address, data)
        except CallFailed as error:
            self._check_failure(error, all(self._may(each, Access.WRITE) for each in touched))
            return
        for n, byte in enumerate(data):
            each = address + n
            assert self._may(each & ~PAGE_MASK, Access.WRITE)
            self.contents[each & ~PAGE_MASK][each & PAGE_MASK] = byte

    @rule(base=bases, page=pages, offset=st.integers(0, PAGE_MASK), size=st.integers(0, 9000))
    def read(self, base: int, page: int, offset: int, size: int) -> None:
        address = base + page * PAGE_SIZE + offset
        touched = range(address & ~PAGE_MASK, address + size, PAGE_SIZE) if size else range(0)
        try:
            data = self.space.read(self.cpu, address, size)
        except CallFailed as error:
            self._check_failure(error, all(self._may(each, Access.READ) for each in touched))
            return
        found = b"".join(bytes(self.contents[each]) for each in touched)
        assert data == found[offset : offset + size]

    @rule(base=bases, page=pages, offset=st.integers(0, PAGE_MASK), size=st.integers(0, 9000))
    def peek(self, base: int, page: int, offset: int, size: int) -> None:
        address = base + page * PAGE_SIZE + offset
        touched = range(address & ~PAGE_MASK, address + size, PAGE_SIZE) if size else range(0)
        free, used = self.pages.statistics().free, self.space.quota.used
        data = self.space.peek(self.cpu, address, size)
        assert (self.pages.statistics().free, self.space.quota.used) == (free, used)
        there = all(
            self._may(each, Access.READ) and self.space.table.lookup(self.cpu, each) is not None
            for each in touched
        )
        if address + size > USER_END or not there:
            assert data is None
            return
        found = b"".join(bytes(self.contents[each]) for each in touched)
        assert data == found[offset : offset + size]

    @rule(base=bases, page=pages, kind=st.sampled_from([0, 2, 16]))
    def fault(self, base: int, page: int, kind: int) -> None:
        where = base + page * PAGE_SIZE
        access = self.access.get(where, Access.NONE)
        wanted = {
            0: Access.READ | Access.WRITE | Access.EXECUTE,
            2: Access.WRITE,
            16: Access.EXECUTE,
        }
        try:
            self.space.fault(self.cpu, where + 1, kind | 4)
        except CallFailed as error:
            self._check_failure(error, bool(access & wanted[kind]))
            return
        assert access & wanted[kind]
        mapping = self.space.table.lookup(self.cpu, where)
        assert mapping is not None

    def _check_failure(self, error: CallFailed, allowed: bool) -> None:
        if error.errno is Errno.EFAULT:
            assert not allowed
        else:
            assert error.errno is Errno.ENOMEM

    @precondition(lambda self: self.pages.left is None)
    @rule(left=st.integers(0, 8))
    def memory_runs_out(self, left: int) -> None:
        self.pages.left = left

    @invariant()
    def tables_say_what_regions_say(self) -> None:
        found = self.space.table.leaves(self.cpu, 0, 1 << 39)
        statistics = self.pages.statistics()
        assert self.space.quota.used == len(found) + self.space.table.tables <= LIMIT
        assert statistics.by_kind.get(PageKind.PROCESS, 0) == len(found)
        assert statistics.by_kind.get(PageKind.PAGE_TABLE, 0) == self.space.table.tables
        for page in found:
            mapping = self.space.table.lookup(self.cpu, page)
            assert mapping is not None
            access = self.access[page]
            assert bool(mapping.flags & PageFlags.USER) == bool(access)
            assert bool(mapping.flags & PageFlags.WRITE) == bool(access & Access.WRITE)
            assert bool(mapping.flags & PageFlags.EXECUTE) == bool(access & Access.EXECUTE)

    @invariant()
    def regions_are_those_pages(self) -> None:
        regions = self.space.regions
        pages = {p: r.access for r in regions for p in range(r.start, r.stop, PAGE_SIZE)}
        assert pages == self.access
        assert all(a.stop <= b.start for a, b in pairwise(regions))

    def teardown(self) -> None:
        self.pages.left = None
        self.space.free(self.cpu)
        assert self.pages.statistics().free == self.free


AddressSpaceMachine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None
)
TestAddressSpace = AddressSpaceMachine.TestCase
