# SPDX-License-Identifier: MIT
"""Calls of two vCPUs, interleaved at every yield of their handlers, under a host that does as it
likes, against a model of what each page is.

The rule that must hold after every change of an RMP entry, and after every step, over the whole
RMP: what the guest may access is validated and not the SVSM's, and a VMSA is nothing that the guest
may write to.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from svsmd.core.memory import OutOfMemory, PageKind
from svsmd.core.protocols.page_state import REQUEST_LAYOUT, PageStateCall, PageStateProtocol
from svsmd.snp.rmp import GUEST_ASID, Perm, RmpUpdate
from svsmd.snp.types import PAGE_SHIFT, PAGE_SIZE, Gpa, PageSize, Spa, Vmpl
from svsmd.snp.vmsa import Efer, Vmsa
from tests.core_calls import (
    ADDRESS,
    CREATE_VCPU,
    DELETE_VCPU,
    DEPOSIT_MEM,
    HUGE,
    IGNORE_CF,
    MISMATCH,
    NO_CHANGE,
    OK,
    PARAMETER,
    PVALIDATE,
    REMAP_CA,
    VALIDATE,
    WITHDRAW_MEM,
    next_index,
)
from tests.fake_vmpl0 import GUEST_CAA, GUEST_VMPL, MIB, RAM_SIZE, SVSM_BASE, FakeVmpl0

PAGE_BITS = PageStateProtocol.number << 32 | PageStateCall.BITS

REGIONS: Final = (6 * MIB, 8 * MIB)
HOT: Final = tuple(base + i * PAGE_SIZE for base in REGIONS for i in (0, 1, 2, 255, 256, 511))
AP_VMSA, AP_CAA = 4 * MIB + 0x5000, 4 * MIB + 0x6000
OTHER_CAA = 4 * MIB + 0x7000
NOT_THE_GUESTS: Final = (SVSM_BASE, GUEST_CAA, RAM_SIZE, 1 << 60, SVSM_BASE - PAGE_SIZE | 1)
NPAGES: Final = RAM_SIZE >> PAGE_SHIFT
SECRET: Final = b"a secret of the SVSM"

CREATED = st.sampled_from((*HOT, AP_VMSA))
AREAS = st.sampled_from((*HOT, AP_CAA, OTHER_CAA, GUEST_CAA))
_HOT_ENTRY = st.tuples(
    st.sampled_from(HOT), st.sampled_from((0, VALIDATE)), st.sampled_from((IGNORE_CF, IGNORE_CF, 0))
)
_LARGE_ENTRY = st.tuples(
    st.sampled_from(REGIONS), st.sampled_from((HUGE, HUGE | VALIDATE)), st.just(IGNORE_CF)
)
_BAD_ENTRY = st.tuples(st.sampled_from(NOT_THE_GUESTS), st.just(VALIDATE), st.just(0))
ENTRIES = st.one_of(
    _HOT_ENTRY,
    _HOT_ENTRY,
    _HOT_ENTRY,
    _HOT_ENTRY,
    _HOT_ENTRY,
    _LARGE_ENTRY,
    _LARGE_ENTRY,
    _BAD_ENTRY,
).map(lambda entry: entry[0] | entry[1] | entry[2])
PLACES = st.sampled_from((0, 0, 0, *HOT[:4]))
VCPUS = st.sampled_from((0, 1))
GOOD = st.sampled_from((True, True, True, False))
LISTS = st.lists(ENTRIES, min_size=1, max_size=4)


def pages_of(entry: int) -> range:
    first = entry >> PAGE_SHIFT
    return range(first, first + (512 if entry & HUGE else 1))


@dataclass
class Call:
    """A call that is under way."""

    rax: int
    caa: int
    vmsa: int
    entries: list[int] = field(default_factory=list)
    rcx: int = 0
    rdx: int = 0
    alone: bool = True
    """Whether nothing else has happened since it began."""


class Masks:
    """One bit a page, kept up to date by the RMP itself."""

    def __init__(self, machine: FakeVmpl0) -> None:
        self.machine = machine
        self.accessible = self.writable = self.validated = self.vmsa = 0
        self.changed(0, NPAGES)
        machine.rmp.on_change.append(self.on_change)

    def changed(self, first: int, npages: int) -> None:
        page = first
        while page < first + npages:
            entry = self.machine.rmp.lookup(page << PAGE_SHIFT)
            assert entry is not None
            count = 1
            if entry.assigned and entry.page_size is PageSize.SIZE_2M:
                page, count = page & ~511, 512
            bits = ((1 << count) - 1) << page
            guest = entry.permissions[1:]
            for name, state in (
                ("accessible", any(guest)),
                ("writable", any(perm & ~Perm.READ for perm in guest)),
                ("validated", entry.assigned and entry.validated),
                ("vmsa", entry.vmsa),
            ):
                old = getattr(self, name)
                setattr(self, name, old | bits if state else old & ~bits)
            page += count

    def on_change(self, first: int, npages: int) -> None:
        before = self.accessible
        self.changed(first, npages)
        self.check()
        opened = self.accessible & ~before
        while opened:
            page = (opened & -opened).bit_length() - 1
            opened &= opened - 1
            found = self.machine.pages.get(page)
            assert found is None or SECRET not in found, "the guest would see it"

    def check(self) -> None:
        assert not self.accessible & ~self.validated, "open to the guest, and not validated"
        assert not self.writable & self.vmsa, "a VMSA that the guest can write to"

    def check_owner(self) -> None:
        self.check()
        assert self.machine.core.machine is not None
        pages = self.machine.core.machine.pages
        mine = self.accessible & self.svsm_pages(pages)
        assert mine == 1 << (GUEST_CAA >> PAGE_SHIFT), "open to the guest, and the SVSM's"

    @staticmethod
    def svsm_pages(pages: object) -> int:
        bits = ((1 << NPAGES) - 1) >> (SVSM_BASE >> PAGE_SHIFT) << (SVSM_BASE >> PAGE_SHIFT)
        for number, section in pages._sections.items():  # type: ignore[attr-defined]
            bits |= section.present << (number << 8)
        return bits


class CallsMachine(RuleBasedStateMachine):
    @initialize(split=st.booleans(), poison=st.booleans())
    def start(self, split: bool, poison: bool) -> None:
        self.machine = FakeVmpl0(poison=poison)
        self.machine.boot()
        assert self.machine.core.machine is not None
        self.memory = self.machine.core.machine.memory
        self.pages = self.machine.core.machine.pages
        self.boot_vmsa = self.machine.vmsas[0, GUEST_VMPL]
        self.masks = Masks(self.machine)
        self.machine.checks.append(self.masks.check_owner)
        if split:
            self.machine.rmp.psmash(Spa(REGIONS[0]))
        self.machine.write_vmsa(AP_VMSA)
        self.machine.put(AP_CAA, bytes(PAGE_SIZE))
        assert self.machine.call(CREATE_VCPU, AP_VMSA, AP_CAA, 1).rax == OK
        self.calls: dict[int, Call] = {}
        self.tampered: set[int] = set()
        """Pages that the host has changed behind the guest's back."""
        self.lent: list[Gpa] = []
        """Deposited pages that the SVSM uses."""

    # The model -------------------------------------------------------------------------------

    def bit(self, page: int) -> bool:
        return self.memory.validated.is_validated(self.machine.core.cpus[0], page << PAGE_SHIFT)

    def owned(self, pages: range) -> bool:
        return pages.stop <= SVSM_BASE >> PAGE_SHIFT and not self.pages.has_deposited(
            pages.start << PAGE_SHIFT, len(pages) << PAGE_SHIFT
        )

    def registered(self) -> set[int]:
        return {
            gpa >> PAGE_SHIFT for world in self.memory.worlds for gpa in (world.vmsa, world.caa)
        }

    def is_large(self, page: int) -> bool:
        entry = self.machine.rmp.lookup(page << PAGE_SHIFT)
        return entry is not None and entry.assigned and entry.page_size is PageSize.SIZE_2M

    def expected_pvalidate(self, entry: int, bits: dict[int, bool]) -> int:
        """The result of one entry; `bits` is what the entries before it have changed."""
        pages = pages_of(entry)
        if entry & HUGE and pages.start & 511:
            return PARAMETER
        if not self.owned(pages) or self.registered() & set(pages):
            return ADDRESS
        states = {bits.get(page, self.bit(page)) for page in pages}
        wanted = bool(entry & VALIDATE)
        if len(states) == 2:
            return MISMATCH
        if states == {wanted}:
            return OK if entry & IGNORE_CF else NO_CHANGE
        if entry & HUGE and not self.is_large(pages.start):
            return MISMATCH
        bits.update(dict.fromkeys(pages, wanted))
        return OK

    # The guest -------------------------------------------------------------------------------

    def idle(self, vcpu: int) -> bool:
        """Whether this vCPU is in the guest; a call that is under way is seen to its end first."""
        if vcpu in self.calls:
            self.finish(vcpu)
        world = self.machine.core.cpus[vcpu].world
        if vcpu in self.calls or world is None:
            return False
        return bool(self.machine.vmsa(world.vmsa).efer & Efer.SVME)

    def begin(self, vcpu: int, rax: int, **registers: int) -> Call | None:
        """Make a call, if this vCPU is in the guest now."""
        if not self.idle(vcpu) or self.machine.core.panicked:
            return None
        world = self.machine.core.cpus[vcpu].world
        assert world is not None
        for other in self.calls.values():
            other.alone = False
        self.machine.begin_call(rax, **registers, gpa=world.vmsa, caa=world.caa)
        call = Call(rax, world.caa, world.vmsa, alone=not self.calls)
        call.rcx, call.rdx = registers.get("rcx", 0), registers.get("rdx", 0)
        self.calls[vcpu] = call
        return call

    def list_of(self, vcpu: int, place: int = 0) -> int:
        """Where a list is written: behind the calling area, or where VMSA.VMPL would be."""
        if place and self.masks.writable >> (place >> PAGE_SHIFT) & 1:
            return place + Vmsa.vmpl.offset - 2
        world = self.machine.core.cpus[vcpu].world
        return 0 if world is None else world.caa + 8

    def untampered(self, where: int, entries: list[int]) -> bool:
        """Whether nothing but the call changes what a list at `where` names."""
        named = {page for entry in entries for page in pages_of(entry)}
        return not (self.tampered | {where >> PAGE_SHIFT}) & named

    @rule(vcpu=VCPUS, entries=LISTS, now=st.booleans(), place=PLACES)
    def pvalidate(self, vcpu: int, entries: list[int], now: bool, place: int) -> None:
        if not self.idle(vcpu):
            return
        where = self.list_of(vcpu, place)
        self.machine.write_list(where, entries)
        call = self.begin(vcpu, PVALIDATE, rcx=where)
        if call is None:
            return
        expected, bits, done = int(OK), dict[int, bool](), 0
        for entry in entries:
            expected = self.expected_pvalidate(entry, bits)
            if expected != OK:
                break
            done += 1
        plain = self.untampered(where, entries)
        if not now:
            return
        alone = call.alone
        result = self.finish(vcpu)
        if alone and plain and result is not None:
            assert result == expected
            assert next_index(self.machine, where) == done
            for page, state in bits.items():
                assert self.bit(page) == state
                assert bool(self.masks.accessible >> page & 1) == state

    @rule(vcpu=VCPUS, entries=LISTS, now=st.booleans(), place=PLACES)
    def deposit(self, vcpu: int, entries: list[int], now: bool, place: int) -> None:
        if not self.idle(vcpu):
            return
        entries = [entry & ~(VALIDATE | IGNORE_CF) for entry in entries]
        where = self.list_of(vcpu, place)
        self.machine.write_list(where, entries)
        call = self.begin(vcpu, DEPOSIT_MEM, rcx=where)
        if call is None:
            return
        expected, taken, done = int(OK), set[int](), 0
        for entry in entries:
            pages = pages_of(entry)
            if entry & HUGE and pages.start & 511:
                expected = PARAMETER
                break
            if (
                not self.owned(pages)
                or self.registered() & set(pages)
                or taken & set(pages)
                or not all(map(self.bit, pages))
            ):
                expected = ADDRESS
                break
            taken |= set(pages)
            done += 1
        plain = self.untampered(where, entries)
        if not now:
            return
        alone = call.alone
        result = self.finish(vcpu)
        if alone and plain and result is not None:
            assert result == expected
            assert next_index(self.machine, where) == done
            for page in taken:
                assert self.pages.has_deposited(page << PAGE_SHIFT, PAGE_SIZE)
                assert not self.bit(page)

    @rule(vcpu=VCPUS, now=st.booleans())
    def withdraw(self, vcpu: int, now: bool) -> None:
        if not self.idle(vcpu):
            return
        where = self.list_of(vcpu)
        before = self.pages.deposited
        call = self.begin(vcpu, WITHDRAW_MEM, rcx=where)
        if call is None or not now:
            return
        alone = call.alone
        if self.finish(vcpu) == OK and alone:
            count = int.from_bytes(self.machine.get(where, 2), "little")
            assert self.pages.deposited == before - count
            for index in range(count):
                gpa = int.from_bytes(self.machine.get(where + 8 + 8 * index, 8), "little")
                assert gpa not in self.lent
                assert self.bit(gpa >> PAGE_SHIFT)
                assert self.masks.writable >> (gpa >> PAGE_SHIFT) & 1
                assert self.machine.get(gpa, PAGE_SIZE) == bytes(PAGE_SIZE)

    @rule(vcpu=VCPUS, vmsa=CREATED, caa=AREAS, good=GOOD)
    def create(self, vcpu: int, vmsa: int, caa: int, good: bool) -> None:
        if self.idle(vcpu) and self.masks.writable >> (vmsa >> PAGE_SHIFT) & 1:
            self.machine.write_vmsa(vmsa, **({} if good else {"vmpl": 1}))
        self.begin(vcpu, CREATE_VCPU, rcx=vmsa, rdx=caa, r8=1)

    @rule(vcpu=VCPUS, vmsa=CREATED)
    def delete(self, vcpu: int, vmsa: int) -> None:
        self.begin(vcpu, DELETE_VCPU, rcx=vmsa)

    @rule(vcpu=VCPUS, caa=AREAS)
    def remap(self, vcpu: int, caa: int) -> None:
        self.begin(vcpu, REMAP_CA, rcx=caa)

    @rule(vcpu=VCPUS, buffer=AREAS)
    def page_bits(self, vcpu: int, buffer: int) -> None:
        if self.idle(vcpu):
            request = REQUEST_LAYOUT.pack(0, NPAGES, 0, buffer, PAGE_SIZE, 0)
            self.machine.put(self.list_of(vcpu), request)
            self.begin(vcpu, PAGE_BITS, rcx=self.list_of(vcpu))

    @rule(page=st.sampled_from(HOT), vmpl=st.sampled_from((Vmpl.VMPL2, Vmpl.VMPL3)))
    def guest_passes_on(self, page: int, vmpl: Vmpl) -> None:
        """The guest may let a VMPL below its own have its pages."""
        if vmpl > GUEST_VMPL and self.masks.writable >> (page >> PAGE_SHIFT) & 1:
            size = PageSize.SIZE_2M if self.is_large(page >> PAGE_SHIFT) else PageSize.SIZE_4K
            base = page & -size.nbytes
            self.machine.rmp.rmpadjust(Spa(base), Gpa(base), GUEST_VMPL, size, 0xF00 | vmpl)

    # The host --------------------------------------------------------------------------------

    @precondition(lambda self: self.calls)
    @rule(steps=st.lists(st.tuples(st.integers(0, 1), st.booleans()), min_size=1, max_size=6))
    def step(self, steps: list[tuple[int, bool]]) -> None:
        """vCPUs go on to their next yields; the host may solve their faults first, or not."""
        for vcpu, solve in steps:
            if vcpu in self.calls:
                if solve:
                    self.machine.solve_fault(vcpu)
                self.one_step(vcpu)

    def one_step(self, vcpu: int) -> str | None:
        end = self.machine.step(vcpu)
        if end in ("guest", "halt"):
            del self.calls[vcpu]
        if end == "end":
            self.calls.clear()
        return end

    def finish(self, vcpu: int) -> int | None:
        """Let the host be honest until the call is answered; its result, if there is one."""
        call = self.calls[vcpu]
        for _ in range(5000):
            end = self.one_step(vcpu)
            if end == "fault" and not self.machine.solve_fault(vcpu):
                return None
            if end in ("guest", "halt", "end"):
                break
            if end is None and not call.alone and self.waits(vcpu):
                return None
        else:
            raise AssertionError("the call has no end")
        if end != "guest" or self.memory.world_of(call.vmsa) is None:
            return None
        return self.machine.vmsa(call.vmsa).rax

    def waits(self, vcpu: int) -> bool:
        """Whether this vCPU only waits for another one's call."""
        world = self.machine.core.cpus[vcpu].world
        cpu = self.machine.core.cpus[vcpu]
        return world is not None and (
            self.memory.is_locked(cpu, world.vmsa) or self.memory.is_locked(cpu, world.caa)
        )

    @rule(base=st.sampled_from(REGIONS))
    def psmash(self, base: int) -> None:
        self.machine.rmp.psmash(Spa(base))

    @rule(gpa=st.sampled_from(HOT), private=st.booleans(), content=st.binary(max_size=8))
    def change_page(self, gpa: int, private: bool, content: bytes) -> None:
        """The host takes a page away, or puts another one there; not one that VMPL0 lives on."""
        page = gpa >> PAGE_SHIFT
        registered = page in self.registered()
        if registered or self.pages.has_deposited(gpa, PAGE_SIZE) or self.is_large(page):
            return
        if any(self.machine.core.cpus[v].world is None for v in self.calls):
            return
        for call in self.calls.values():
            call.alone = False
        state = RmpUpdate(True, PageSize.SIZE_4K, False, Gpa(gpa), GUEST_ASID)
        self.machine.rmp.rmpupdate(Spa(gpa), state if private else RmpUpdate())
        self.machine.put(gpa, content)
        self.tampered.add(page)

    # The SVSM --------------------------------------------------------------------------------

    @rule()
    def svsm_uses_deposits(self) -> None:
        """Something at VMPL0 needs memory when its region has none left."""
        if self.lent or not self.pages.deposited or self.machine.core.panicked:
            return
        cpu = self.machine.core.cpus[0]
        held: list[Gpa] = []
        try:
            while not held or held[-1] >= SVSM_BASE:
                held.append(self.pages.allocate(cpu, 0, PageKind.PROCESS))
            self.lent.append(held.pop())
            self.machine.put(self.lent[-1], SECRET)
        except OutOfMemory:
            pass
        for gpa in held:
            self.pages.free(cpu, gpa)

    @precondition(lambda self: self.lent)
    @rule()
    def svsm_frees_deposits(self) -> None:
        self.pages.free(self.machine.core.cpus[0], self.lent.pop())

    # What holds ------------------------------------------------------------------------------

    @invariant()
    def the_rule(self) -> None:
        self.masks.check_owner()

    @invariant()
    def vmsas_are_what_they_were(self) -> None:
        for world in self.memory.worlds:
            assert self.machine.vmsa(world.vmsa).vmpl == GUEST_VMPL

    @invariant()
    def the_svsm_lives(self) -> None:
        assert not self.machine.core.panicked or self.tampered, self.machine.core.log.lines

    @invariant()
    def bitmap_and_rmp_agree(self) -> None:
        if self.calls or self.tampered or self.machine.core.panicked:
            return
        cpu = self.machine.core.cpus[0]
        low = (1 << (SVSM_BASE >> PAGE_SHIFT)) - 1
        bits = self.memory.validated.bits(cpu, 0, SVSM_BASE >> PAGE_SHIFT)
        assert bits == self.masks.accessible & low
        deposited = self.masks.svsm_pages(self.pages) & low
        assert bits | deposited == self.masks.validated & low
        assert deposited.bit_count() == self.pages.deposited

    def teardown(self) -> None:
        if hasattr(self, "masks"):
            assert vars(Masks(self.machine)) == vars(self.masks)
            self.machine.check_security()


CallsMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
TestCalls = CallsMachine.TestCase
