# SPDX-License-Identifier: MIT
"""Where the silicon and the host tell of events, and where the machine then stands."""

from collections.abc import Callable, Iterator

import pytest

from svsmd.host.outcome import Continue, Debug, HostOutcome
from svsmd.host.vcpu import Activity
from svsmd.snp import ghcb_msr
from svsmd.snp.entropy import EntropySource
from svsmd.snp.events import EventClass, SnpEvent, SnpEvents
from svsmd.snp.exits import DebugReason, DebugStop, Exit, Hlt, Npf, Vmgexit
from svsmd.snp.ghcb import Ghcb, GhcbExit
from svsmd.snp.guest_message import HEADER_SIZE
from svsmd.snp.memory import MIN_MEMORY, GuestMemory
from svsmd.snp.psp import SecurityProcessor
from svsmd.snp.rmp import GUEST_ASID, Rmp, RmpReturn, RmpUpdate
from svsmd.snp.silicon import GateCall
from svsmd.snp.types import PAGE_SIZE, Gpa, PageSize, Spa, Vmpl
from svsmd.snp.vmcb import Vmcb
from tests.bare_machine import CODE, DATA, GDT, HANDLERS, IDT, SPARE, BareMachine
from tests.fake_silicon import GHCB_GPA, Rig

pytestmark = pytest.mark.usefixtures("both_callbacks")

HUGE = 0x80_0000
PRIVATE, SHARED = ghcb_msr.MsrPscOperation
PVALIDATE = f"mov rax, {SPARE}; mov ecx, 0; mov edx, 1; pvalidate; here: mov rbx, rax; hlt"
VMGEXIT = ".byte 0xf3, 0x0f, 0x01, 0xd9"
RMPADJUST = "mov rax, {gpa}; mov ecx, {size}; mov edx, {rdx}; rmpadjust; mov rbx, rax; hlt"


def stopped(machine: BareMachine, source: str | bytes | None = None) -> list[SnpEvent]:
    """Runs; the events at which it stopped."""
    assert isinstance(machine.run(source), DebugStop)
    events = machine.silicon.events
    return [events.take() for _ in range(len(events.pending))]


def caught(machine: BareMachine, *kinds: EventClass, condition: str = "") -> SnpEvents:
    for kind in kinds:
        machine.silicon.events.catch(kind, condition)
    return machine.silicon.events


def test_pvalidate() -> None:
    machine = BareMachine(0)
    machine.own(SPARE, validated=False)
    caught(machine, EventClass.PVALIDATE)
    (event,) = stopped(machine, PVALIDATE)
    values = {"gpa": SPARE, "gva": SPARE, "size": 0x1000, "validate": 1, "result": 0, "carry": 0}
    assert (event.values, event.vmpl) == (values, 0)
    # Behind it, and it was executed.
    assert machine.silicon.cpu.linear_rip == event.rip + 4
    entry = machine.rmp.lookup(SPARE)
    assert entry is not None
    assert entry.validated
    assert machine.run() == Hlt()
    machine.vmsa.rip = CODE
    (event,) = stopped(machine)
    assert event.field("carry") == 1


def test_pvalidate_that_faults_is_none() -> None:
    machine = BareMachine(0)
    caught(machine, EventClass.PVALIDATE, EventClass.NPF)
    assert isinstance(machine.run(PVALIDATE), Npf)  # nobody's page
    (event,) = [machine.silicon.events.take()]
    assert event.kind is EventClass.NPF
    assert event.field("gpa") == SPARE
    assert event.field("code") & 1 << 31
    assert event.note == "RI-21"
    assert event.rip == machine.silicon.cpu.linear_rip
    assert not machine.silicon.events.pending


def test_rmpadjust_makes_a_vmsa() -> None:
    machine = BareMachine(0)
    machine.own(SPARE)
    caught(machine, EventClass.RMPADJUST, EventClass.VMSA)
    source = RMPADJUST.format(gpa=SPARE, size=0, rdx=1 << 16 | 0x7 << 8 | 2)
    adjusted, made = stopped(machine, source)
    values = {"gpa": SPARE, "gva": SPARE, "size": 0x1000, "target": 2, "perms": 7, "vmsa": 1}
    assert adjusted.values == values | {"result": 0}
    assert (made.kind, made.values) == (
        EventClass.VMSA, {"gpa": SPARE, "gva": SPARE, "target": 2},
    )  # fmt: skip
    assert machine.run() == Hlt()


def test_rmpadjust_that_fails_makes_none() -> None:
    machine = BareMachine(1)
    machine.own(SPARE)
    caught(machine, EventClass.RMPADJUST, EventClass.VMSA)
    source = RMPADJUST.format(gpa=SPARE, size=0, rdx=1 << 16 | 0xF << 8 | 2)
    (event,) = stopped(machine, source)  # the VMSA bit of VMPL1 is ignored
    assert (event.field("vmsa"), event.field("result"), event.vmpl) == (1, 0, 1)
    source = RMPADJUST.format(gpa=SPARE, size=0, rdx=0xF << 8 | 1)
    machine.vmsa.rip = CODE
    (event,) = stopped(machine, source)
    assert event.field("result") == RmpReturn.FAIL_PERMISSION


def test_huge_rmpadjust() -> None:
    machine = BareMachine(0)
    machine.own_huge(HUGE)
    caught(machine, EventClass.RMPADJUST)
    (event,) = stopped(machine, RMPADJUST.format(gpa=HUGE, size=1, rdx=0x100 | 3))
    assert (event.field("size"), event.field("target"), event.field("perms")) == (0x20_0000, 3, 1)


@pytest.mark.parametrize(
    ("source", "code", "length"),
    [
        ("cpuid", 0x72, 2),
        ("in al, 0x60", 0x7B, 2),
        ("rdmsr", 0x7C, 2),
        ("vmmcall", 0x81, 3),
        ("wbinvd", 0x89, 2),
        ("rdpmc", 0x6F, 2),
    ],
)
def test_vc(source: str, code: int, length: int) -> None:
    """At the handler; also those that the native callbacks deliver once all tables are known."""
    machines = [BareMachine(), BareMachine()]
    for machine in machines:
        machine.set_handler(29, f"add qword ptr [rsp + 8], {length}; add rsp, 8; iretq")
        # The native delivery leaves pages to Python that the guest itself has never touched.
        touch = f"mov ecx, 0x1b; mov rbx, [{IDT}]; mov rbx, [{GDT}]"
        machine.load(f"{touch}; again: hlt; jmp over; .org 0x40; over: {source}; jmp again")
        for _ in range(3):
            assert machine.run() == Hlt()
    machine, clean = machines
    caught(machine, EventClass.VC)
    (event,) = stopped(machine)
    assert event.values == {"code": code, "gva": 0, "cpl": 0}
    assert event.rip == CODE + 0x40
    assert machine.silicon.cpu.linear_rip == HANDLERS + 29 * 16
    assert machine.run() == clean.run() == Hlt()
    assert machine.silicon.clock.now == clean.silicon.clock.now
    assert machine.vmsa.tobytes() == clean.vmsa.tobytes()


def test_conditions_choose() -> None:
    machine = BareMachine()
    machine.own(SPARE, validated=False)
    machine.set_handler(29, "add qword ptr [rsp + 8], 2; add rsp, 8; iretq")
    caught(machine, EventClass.VC, condition="code == 0x404")
    (event,) = stopped(machine, f"cpuid; cpuid; mov rax, [{SPARE + 0x123}]; hlt")
    assert event.field("gva") == SPARE + 0x123
    (catch,) = machine.silicon.events.catches
    assert catch.hits == 1


def test_vmgexit_by_msr_and_by_ghcb() -> None:
    machine = BareMachine()
    caught(machine, EventClass.VMGEXIT)
    page = Ghcb(machine.silicon.memory.page(SPARE))
    page.set_request(GhcbExit.SNP_AP_CREATION, 5, 6)
    source = (
        f"mov ecx, 0xc0010130; mov edx, 3; mov eax, 0x16; wrmsr; {VMGEXIT}; mov edx, 0;"
        f"mov eax, {SPARE}; wrmsr; {VMGEXIT}; mov eax, {DATA}; wrmsr; {VMGEXIT}; hlt"
    )
    seen = []
    for start in (source, None, None):
        assert machine.run(start) == Vmgexit()
        event = machine.silicon.events.take()
        assert event.rip == machine.silicon.cpu.linear_rip
        seen.append(tuple(event.field(name) for name in ("code", "info1", "info2", "ghcb", "msr")))
    msr = 3 << 32 | 0x16
    assert seen == [
        (0x16, msr >> 12, 0, 0, msr),
        (GhcbExit.SNP_AP_CREATION, 5, 6, SPARE, SPARE),
        (0, 0, 0, DATA, DATA),  # private: the host cannot read it
    ]
    assert machine.run() == Hlt()


def test_in_the_core_events_come_in_one_go() -> None:
    machine = BareMachine(0)
    machine.own(SPARE, 2, validated=False)
    caught(machine, EventClass.PVALIDATE, EventClass.RMPADJUST)

    def core(call: GateCall) -> None:
        for gva in (SPARE, SPARE + PAGE_SIZE):
            assert call.port.pvalidate(gva, PageSize.SIZE_4K, True) == (0, False)
        assert call.port.rmpadjust(SPARE, PageSize.SIZE_4K, 0x102) == 0

    machine.silicon.register_gate(CODE + 1, core)
    events = stopped(machine, "nop; ud2; nop; hlt")
    assert [(e.kind, e.field("gpa")) for e in events] == [
        (EventClass.PVALIDATE, SPARE),
        (EventClass.PVALIDATE, SPARE + PAGE_SIZE),
        (EventClass.RMPADJUST, SPARE),
    ]
    assert {event.rip for event in events} == {CODE + 1}
    assert machine.silicon.cpu.linear_rip == CODE + 3
    assert machine.run() == Hlt()


def test_a_step_over_an_event_is_the_event() -> None:
    machine = BareMachine(0)
    machine.own(SPARE, validated=False)
    machine.load("pvalidate; nop; hlt")
    machine.vmsa.rax = SPARE
    caught(machine, EventClass.PVALIDATE)
    machine.silicon.debug.set_stepping(True)
    exit_ = machine.run()
    assert isinstance(exit_, DebugStop)
    assert exit_.reason is DebugReason.EVENT
    machine.silicon.events.take()
    exit_ = machine.run()
    assert exit_ == DebugStop(DebugReason.STEP, CODE + 5)


def test_what_is_passed_over_does_not_stop_a_step_either() -> None:
    machine = BareMachine(0)
    machine.own(SPARE, validated=False)
    machine.load("pvalidate; nop; hlt")
    machine.vmsa.rax = SPARE
    caught(machine, EventClass.PVALIDATE).pass_over([EventClass.PVALIDATE])
    machine.silicon.debug.set_stepping(True)
    assert machine.run() == DebugStop(DebugReason.STEP, CODE + 4)


def test_rmpupdate() -> None:
    events = SnpEvents()
    rmp = Rmp([range(4 << 20)], events=events)
    catch = events.catch(EventClass.RMPUPDATE, "gpa >= 0x8000 and gpa < 0x9000")
    for gpa in (0x7000, 0x8000, 0x9000):
        assert rmp.rmpupdate(Spa(gpa), RmpUpdate(assigned=True, gpa=Gpa(gpa), asid=GUEST_ASID)) == 0
    assert rmp.rmpupdate(Spa(0x8000), RmpUpdate()) == 0
    assert rmp.rmpupdate(Spa(0x8001), RmpUpdate()) == RmpReturn.FAIL_INPUT
    found = [caught.event.values for caught in events.pending]
    assert found == [
        {"gpa": 0x8000, "size": 0x1000, "assigned": 1},
        {"gpa": 0x8000, "size": 0x1000, "assigned": 0},
    ]
    assert catch.hits == 2


@pytest.mark.parametrize("request_page", [b"", bytes(PAGE_SIZE), b"\xff" * PAGE_SIZE])
def test_messages_hold_anything(request_page: bytes) -> None:
    memory = GuestMemory(MIN_MEMORY)
    events = SnpEvents()
    rmp = Rmp(memory.ranges, events=events)
    psp = SecurityProcessor(memory, rmp, EntropySource(b"test"))
    events.catch(EventClass.MESSAGE)
    _, status = psp.guest_request(request_page)
    values = events.take().values
    header = request_page[:HEADER_SIZE].ljust(HEADER_SIZE, b"\0")
    seqno = int.from_bytes(header[0x20:0x28], "little")
    expected = {"type": header[0x34], "key": header[0x3C], "seqno": seqno, "result": status}
    assert values == expected


# -- the host ---------------------------------------------------------------------------------


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    rig.silicon.rmp.events.locate = lambda: (0x42, int(rig.vcpu.vmpl))
    yield rig
    assert not rig.silicon.rmp.events.pending


def play(rig: Rig, *exits: Exit | int) -> None:
    """What the guest does next; a number is a VMGEXIT with that GHCB MSR."""

    def guest(value: int) -> Callable[[Vmcb], Exit]:
        def run(vmcb: Vmcb) -> Exit:
            vmcb.ghcb_msr = value
            return Vmgexit()

        return run

    rig.silicon.script.extend(guest(each) if isinstance(each, int) else each for each in exits)


def step(rig: Rig) -> HostOutcome:
    return rig.hypervisor.step(rig.silicon.clock.now + 100)


def event_of(outcome: HostOutcome) -> SnpEvent:
    assert isinstance(outcome, Debug)
    assert outcome.exit.reason is DebugReason.EVENT
    assert outcome.exit.event is not None
    return outcome.exit.event


def test_a_switch_stops_before_the_new_level_runs(rig: Rig) -> None:
    events = rig.silicon.rmp.events
    events.catch(EventClass.VMPL)
    play(rig, ghcb_msr.RunVmpl(0).encode(), Hlt())
    event = event_of(step(rig))
    assert (event.values, event.vmpl, event.vcpu) == ({"from": 2, "to": 0}, 2, 0)
    assert rig.vcpu.vmpl == 0
    assert len(rig.silicon.runs) == 1
    assert step(rig) == Continue()
    assert len(rig.silicon.runs) == 2
    assert rig.world.activity in (Activity.HALTED, Activity.HALTED_MASKED)


def test_what_the_host_does_is_reported_one_by_one_before_anything_runs(rig: Rig) -> None:
    rig.silicon.rmp.events.catch(EventClass.RMPUPDATE)
    psc = ghcb_msr.PageStateChange(0x300, PRIVATE).encode()
    again = ghcb_msr.PageStateChange(0x300, SHARED).encode()
    play(rig, psc, again)
    assert event_of(step(rig)).field("assigned") == 1
    assert len(rig.silicon.runs) == 1
    assert event_of(step(rig)).field("assigned") == 0
    assert len(rig.silicon.runs) == 2
    assert step(rig) == Continue()


def test_an_exit_that_was_caught_is_served_once(rig: Rig) -> None:
    """The silicon tells of it, so the silicon of this test does."""
    events = rig.silicon.rmp.events
    events.catch(EventClass.VMGEXIT)
    events.catch(EventClass.RMPUPDATE)
    psc = ghcb_msr.PageStateChange(0x300, PRIVATE).encode()

    def guest(vmcb: Vmcb) -> Exit:
        vmcb.ghcb_msr = psc
        events.note(EventClass.VMGEXIT, {"code": 0x14})
        return Vmgexit()

    rig.silicon.script.append(guest)
    assert event_of(step(rig)).kind is EventClass.VMGEXIT
    assert not rig.silicon.rmp.assigned(0x300)
    assert rig.world.vmcb.ghcb_msr == psc
    assert event_of(step(rig)).kind is EventClass.RMPUPDATE
    assert rig.silicon.rmp.assigned(0x300)
    assert rig.world.vmcb.ghcb_msr == ghcb_msr.psc_response(0)
    assert len(rig.silicon.runs) == 1
    assert step(rig) == Continue()
    assert len(rig.silicon.runs) == 2


def test_an_event_and_a_breakpoint_are_two_stops(rig: Rig) -> None:
    events = rig.silicon.rmp.events
    events.catch(EventClass.SVSM)
    stop = DebugStop(DebugReason.PANIC, 0x1000)

    def guest(vmcb: Vmcb) -> Exit:
        events.note(EventClass.SVSM, {"call": 1})
        return stop

    rig.silicon.script.append(guest)
    assert event_of(step(rig)).kind is EventClass.SVSM
    assert step(rig) == Debug(stop, 0, Vmpl.VMPL2)
    assert len(rig.silicon.runs) == 1
    assert step(rig) == Continue()


def test_an_event_before_the_end_comes_first(rig: Rig) -> None:
    events = rig.silicon.rmp.events
    events.catch(EventClass.MESSAGE)

    def guest(vmcb: Vmcb) -> Exit:
        vmcb.ghcb_msr = ghcb_msr.Terminate(0, 0).encode()
        events.note(EventClass.MESSAGE, {"type": 1})
        return Vmgexit()

    rig.silicon.script.append(guest)
    assert event_of(step(rig)).kind is EventClass.MESSAGE
    end = step(rig)
    assert not isinstance(end, Debug | Continue)
    assert step(rig) == end


def test_the_native_code_answers_no_vmgexit_that_somebody_waits_for() -> None:
    rig = Rig(native=True)
    if rig.hypervisor.port_cells is None:
        pytest.skip("port_cells.so is not built")
    rig.register_ghcb()
    rig.world.ghcb = Ghcb(rig.silicon.memory.page(GHCB_GPA))
    cells = rig.hypervisor.port_cells
    cells.lend(rig.world)
    assert cells._cells.ghcb_gpa == GHCB_GPA
    rig.silicon.rmp.events.catch(EventClass.VMGEXIT)
    step(rig)
    assert cells._cells.ghcb_gpa != GHCB_GPA
    rig.silicon.rmp.events.uncatch_all()
    step(rig)
    assert cells._cells.ghcb_gpa == GHCB_GPA
