# SPDX-License-Identifier: MIT
"""Every rule by which an access is refused, provoked, and what is said of it.

The oracle is the machine: the code that makes the access is run, and what it gets is compared with
what was said before.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from svsmd.gdbstub.why import RULES, Reason, debugger_refusal, explain, explain_npf, judge
from svsmd.snp.access import AccessKind
from svsmd.snp.exits import Exit, Hlt, Npf
from svsmd.snp.rmp import GUEST_ASID, RmpUpdate
from svsmd.snp.types import C_BIT, HUGE_PAGE_SIZE, PAGE_SIZE, Gpa, PageSize, Spa
from tests.bare_machine import (
    CODE,
    DATA,
    EXECUTE_SUPERVISOR,
    EXECUTE_USER,
    HLT,
    NX,
    PAGE_TABLES,
    PML4,
    READ,
    SPARE,
    WRITE,
    BareMachine,
    P,
    U,
    W,
    assemble,
)

KINDS = {"read": AccessKind.READ, "write": AccessKind.WRITE, "execute": AccessKind.FETCH}
ACCESSES = {
    "read": f"mov rax, [{SPARE}]; hlt",
    "write": f"mov [{SPARE}], rax; hlt",
    "execute": f"mov eax, {SPARE}; jmp rax",
}
EXECUTE = EXECUTE_SUPERVISOR | EXECUTE_USER
SMEP, SMAP, WP = 1 << 20, 1 << 21, 1 << 16
PDE = PML4 + 2 * PAGE_SIZE + (SPARE >> 21) * 8
PTE = PAGE_TABLES + (SPARE >> 12) * 8


def loaded(m: BareMachine) -> BareMachine:
    assert m.silicon.load_for_debugger(m.vmcb)
    return m


def reason(m: BareMachine, kind: str, address: int = SPARE) -> Reason | None:
    return judge(loaded(m).silicon.processor, address, KINDS[kind])


def effect_of(m: BareMachine, exit_: Exit) -> str:
    """What the machine did, in the words of `Reason.effect`."""
    match exit_:
        case Npf(_, error_code, _):
            return f"VMEXIT_NPF, EXITINFO1 {error_code:#x}"
        case Hlt():
            trap = m.trap
            name = {13: "#GP", 14: "#PF", 29: "#VC"}[trap.vector]
            assert trap.error_code is not None
            return f"{name}, error code {trap.error_code:#x}"
    raise AssertionError(exit_)


def prepare(m: BareMachine, change: Callable[[BareMachine], None]) -> None:
    m.own(SPARE)
    m.write(SPARE, HLT)
    change(m)


def unmapped(m: BareMachine) -> None:
    m.write_u64(PTE, 0x123000)


def no_directory(m: BareMachine) -> None:
    m.write_u64(PDE, 0)


def supervisor(m: BareMachine) -> None:
    m.map(SPARE, SPARE, P | W)


def read_only(m: BareMachine) -> None:
    vmsa = m.vmsa
    vmsa.cr0 |= WP
    m.map(SPARE, SPARE, P | U)


def no_execute(m: BareMachine) -> None:
    m.map(SPARE, SPARE, P | W | U | NX)


def smep(m: BareMachine) -> None:
    m.vmsa.cr4 |= SMEP
    m.map(SPARE, SPARE, P | W | U)


def smap(m: BareMachine) -> None:
    m.vmsa.cr4 |= SMAP
    m.map(SPARE, SPARE, P | W | U)


def reserved(m: BareMachine) -> None:
    m.write_u64(PTE, SPARE | P | W | U | C_BIT | 1 << 45)


def unvalidated(m: BareMachine) -> None:
    assert not m.rmp.rmpupdate(
        Spa(SPARE), RmpUpdate(assigned=True, gpa=Gpa(SPARE), asid=GUEST_ASID)
    )


def shared_page(m: BareMachine) -> None:
    assert not m.rmp.rmpupdate(Spa(SPARE), RmpUpdate())


def permissions(mask: int) -> Callable[[BareMachine], None]:
    def change(m: BareMachine) -> None:
        m.rmp.firmware_update(Spa(SPARE), permissions=(15, 15, mask, 15))

    return change


def shared_mapping(m: BareMachine) -> None:
    m.map(SPARE, SPARE, P | W | U, private=False)


def no_ram(m: BareMachine) -> None:
    m.map(SPARE, 0x8000_0000, P | W | U)


def device(m: BareMachine) -> None:
    m.map(SPARE, 0xFEC0_0000, P | W | U, private=False)


def other_gpa(m: BareMachine) -> None:
    m.rmp.rmpupdate(Spa(SPARE), RmpUpdate(assigned=True, gpa=Gpa(DATA), asid=GUEST_ASID))


def other_asid(m: BareMachine) -> None:
    m.rmp.rmpupdate(Spa(SPARE), RmpUpdate(assigned=True, gpa=Gpa(SPARE), asid=7))


def immutable(m: BareMachine) -> None:
    m.rmp.firmware_update(Spa(SPARE), immutable=True)


def unvalidated_table(m: BareMachine) -> None:
    """The page of the PTE: it maps this address, and not the code's."""
    table = PTE & ~0xFFF
    assert table != PAGE_TABLES + (CODE >> 12) * 8 & ~0xFFF
    assert not m.rmp.rmpupdate(
        Spa(table), RmpUpdate(assigned=True, gpa=Gpa(table), asid=GUEST_ASID)
    )


ALL_KINDS = ("read", "write", "execute")
CASES: dict[str, tuple[bool, Callable[[BareMachine], None], tuple[str, ...], str]] = {
    # name: (user, what is changed, what fails, what is said)
    "PTE": (False, unmapped, ALL_KINDS, f"PTE at {PTE:#x} is 0x123000 .*: P is clear"),
    "PDE": (False, no_directory, ALL_KINDS, f"PDE at {PDE:#x} is 0x0 .*: P is clear"),
    "reserved": (False, reserved, ALL_KINDS, "reserved bits are set"),
    "supervisor": (True, supervisor, ALL_KINDS, "U/S is clear: a supervisor's page"),
    "user writes": (True, read_only, ("write",), "R/W is clear"),
    "CR0.WP": (False, read_only, ("write",), "R/W is clear"),
    "NX": (True, no_execute, ("execute",), "NX is set"),
    "SMEP": (False, smep, ("execute",), "CR4.SMEP"),
    "SMAP": (False, smap, ("read", "write"), "CR4.SMAP"),
    "unvalidated": (False, unvalidated, ALL_KINDS, "the page is not validated"),
    "shared page": (False, shared_page, ALL_KINDS, "the page is shared: not assigned"),
    "no READ": (False, permissions(EXECUTE), ("read", "write"), "VMPL2 lacks (READ|WRITE)"),
    "no WRITE": (False, permissions(READ | EXECUTE), ("write",), "VMPL2 lacks WRITE"),
    "WRITE alone": (
        False, permissions(WRITE | EXECUTE), ("read", "write"), "VMPL2 has WRITE without READ",
    ),
    "nothing": (False, permissions(0), ALL_KINDS, "VMPL2 lacks"),
    "no EXECUTE_SUPERVISOR": (
        False, permissions(READ | WRITE | EXECUTE_USER), ("execute",),
        "VMPL2 lacks EXECUTE_SUPERVISOR",
    ),
    "no EXECUTE_USER": (
        True, permissions(READ | WRITE | EXECUTE_SUPERVISOR), ("execute",),
        "VMPL2 lacks EXECUTE_USER",
    ),
    "C-bit": (False, shared_mapping, ("write",), "the C-bit is clear, and the page is private"),
    "no RAM": (False, no_ram, ALL_KINDS, "there is no RAM"),
    "device": (
        False, device, ALL_KINDS,
        "a device's address, for the #VC handler$|^there is no RAM$",  # a fetch is private
    ),
    "other GPA": (False, other_gpa, ALL_KINDS, "has another GPA"),
    "other ASID": (False, other_asid, ALL_KINDS, "another ASID"),
    "immutable": (False, immutable, ALL_KINDS, "immutable"),
    "table": (False, unvalidated_table, ALL_KINDS, "its page cannot be read: the page is not"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", ALL_KINDS)
def test_what_is_said_is_what_happens(case: str, kind: str) -> None:
    user, change, failing, words = CASES[case]
    m = BareMachine(user=user)
    m.load(ACCESSES[kind])
    prepare(m, change)
    tables = m.read(PML4, 19 * PAGE_SIZE)
    said = reason(m, kind)
    assert m.read(PML4, 19 * PAGE_SIZE) == tables, "no Accessed bit was set"
    exit_ = m.run()
    if kind not in failing:
        assert said is None or said.effect == "ciphertext"
        assert exit_ == Hlt() or user  # a user's HLT is a #GP
        if not user:
            assert m.gpr("rip") in (SPARE + 1, CODE + len(assemble(ACCESSES[kind]))), (
                "it was allowed"
            )
        return
    assert said is not None
    assert re.search(words, said.text), said.text
    assert said.source.startswith("24593, ")
    assert said.effect == effect_of(m, exit_)


def test_a_private_page_is_read_as_ciphertext_without_the_c_bit() -> None:
    m = BareMachine()
    prepare(m, shared_mapping)
    said = reason(m, "read")
    assert said is not None
    assert (said.effect, said.page) == ("ciphertext", SPARE >> 12)
    m.load(ACCESSES["read"])
    assert m.run() == Hlt()
    assert m.gpr("rax") & 0xFF != HLT[0] or m.gpr("rax") >> 8


def test_not_canonical() -> None:
    m = BareMachine()
    said = reason(m, "read", 1 << 63)
    assert said is not None
    assert (said.text, said.effect) == ("it is not a canonical address", "#GP(0)")


def test_no_paging() -> None:
    m = BareMachine()
    m.vmsa.cr0 &= ~(1 << 31)
    m.vmsa.efer &= ~(1 << 10)
    lines = list(explain(loaded(m).silicon.processor, DATA, "it"))
    assert "  no paging: the GPA is the linear address, and private" in lines
    assert lines[-3:] == ["  read: allowed", "  write: allowed", "  execute: allowed"]


def test_accessed_bit_in_a_table_that_may_only_be_read() -> None:
    m = BareMachine()
    m.own(SPARE)
    m.rmp.firmware_update(Spa(PTE & ~0xFFF), permissions=(15, 15, READ, 15))
    said = reason(m, "read")
    assert said is not None
    assert said.text.startswith(f"PTE at {PTE:#x}: its page cannot be written: VMPL2 lacks WRITE")
    assert said.source.endswith("AC-36")
    assert not m.read_u64(PTE) & 0x20


def test_all_of_it() -> None:
    m = BareMachine(vmpl=2)
    m.own(SPARE, permissions=(15, 15, READ, 15))
    lines = list(explain(loaded(m).silicon.processor, SPARE + 5, "vCPU 0 at VMPL2"))
    assert lines[0] == f"{SPARE + 5:#x} for vCPU 0 at VMPL2, CPL 0, cr3 {PML4 | C_BIT:#x}"
    assert [line.split()[0] for line in lines[1:5]] == ["PML4E", "PDPTE", "PDE", "PTE"]
    assert lines[4] == f"  PTE at {PTE:#x} is {SPARE | C_BIT | 3:#x} [P C W]"
    assert lines[5] == f"  GPA {SPARE + 5:#x}, private (C = 1), in a page of 4 KiB"
    assert lines[6].startswith(f"  RMP {SPARE:#x}: assigned validated gpa {SPARE:#x} asid 1 4K")
    assert lines[6].endswith("VMPL0:rwus VMPL1:rwus VMPL2:r--- VMPL3:rwus")
    assert "SNP_LAUNCH_UPDATE by the security processor, tick 0" in lines[7]
    assert "  read: allowed" in lines
    write = lines.index("  write: VMPL2 lacks WRITE")
    assert lines[write + 1].startswith("    -> VMEXIT_NPF, EXITINFO1 0x")
    assert "(24593, 15.36.7, table 15-36; AC-31)" in lines[write + 1]
    assert lines[write + 2].startswith("    last change of that RMP entry: SNP_LAUNCH_UPDATE")


def test_the_last_nested_fault_names_its_author() -> None:
    """A page that VMPL0 has taken away from VMPL2."""
    m = BareMachine(vmpl=0)
    m.own(SPARE)
    m.vmcb.vcpu = 3
    code = f"mov eax, {SPARE}; xor ecx, ecx; mov edx, 0x002; rmpadjust; hlt"
    assert m.run(code) == Hlt()
    m.silicon.save_loaded()
    m.make_vmsa(2)
    m.load(ACCESSES["read"])
    m.vmcb = type(m.vmcb)(m.vmcb.vmsa_spa, vcpu=3)
    exit_ = m.run()
    assert isinstance(exit_, Npf)
    npf = m.vmcb.last_npf
    assert npf is not None
    assert (npf.gpa, npf.error_code, npf.row) == (exit_.gpa, exit_.error_code, "AC-30")
    assert (npf.rip, npf.tick) == (CODE, m.silicon.clock.now)
    lines = list(explain_npf(m.silicon.processor, npf, "it"))
    assert lines[1] == "  VMPL2 lacks READ (24593, 15.36.7, table 15-36; AC-30)"
    assert lines[3] == f"    RMPADJUST by VMPL0 of vCPU 3, rip {CODE + 12:#x}, tick 3"


def test_sizes_that_do_not_match() -> None:
    """PVALIDATE of 4 KiB in a 2 MiB entry; the other way round is a return code."""
    m = BareMachine(vmpl=0)
    gpa = 8 * HUGE_PAGE_SIZE
    m.own_huge(gpa)
    exit_ = m.run(f"mov eax, {gpa}; xor ecx, ecx; xor edx, edx; pvalidate; hlt")
    assert isinstance(exit_, Npf)
    npf = m.vmcb.last_npf
    assert npf is not None
    lines = list(explain_npf(m.silicon.processor, npf, "it"))
    assert "PVALIDATE or RMPADJUST of 4 KiB in a 2 MiB entry" in lines[1]
    assert "15.36.11" in lines[1]
    assert any("of 4 KiB: VMEXIT_NPF with SIZEM" in line for line in lines)
    explained = list(explain(loaded(m).silicon.processor, DATA, "it"))
    assert any("of 2 MiB: FAIL_SIZEMISMATCH" in line for line in explained)


def test_a_mapping_of_another_size_than_the_entry_is_no_fault() -> None:
    m = BareMachine()
    gpa = 8 * HUGE_PAGE_SIZE
    m.own_huge(gpa)
    assert m.rmp.lookup(gpa).page_size is PageSize.SIZE_2M  # type: ignore[union-attr]
    for kind in ALL_KINDS:
        assert reason(m, kind, gpa) is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (unmapped, f"no page table maps {SPARE:#x}: PTE at {PTE:#x} is 0x123000 []: P is clear"),
        (no_directory, f"no page table maps {SPARE:#x}: PDE at {PDE:#x} is 0x0 []: P is clear"),
        (reserved, "reserved bits are set"),
        (no_ram, f"{SPARE:#x} is at 0x80000000, which is no RAM"),
        (
            unvalidated_table,
            f"the page tables that map {SPARE:#x} cannot be read: PTE at {PTE:#x}: its page cannot "
            f"be read: the page is not validated (24593, 15.36.10, table 15-39: Validated; AC-26); "
            "last change: RMPUPDATE by the host, tick 0",
        ),
    ],
)
def test_what_a_debugger_cannot_read(change: Callable[[BareMachine], None], words: str) -> None:
    m = BareMachine()
    prepare(m, change)
    said = debugger_refusal(loaded(m).silicon.processor, SPARE)
    assert words in said
    assert "\n" not in said


def test_every_row_has_words() -> None:
    """Of what an access or an instruction of a guest can end with."""
    rows = set()
    for name in ("access", "rmp"):
        text = Path(f"svsmd/snp/{name}.py").read_text()
        rows |= set(re.findall(r'"((?:AC-[1-3]|RI-2)\d)"', text))
    # Rows of accesses that happen, and of the host's.
    assert rows - {"AC-10", "AC-12"} == set(RULES) - {"no RAM"}
