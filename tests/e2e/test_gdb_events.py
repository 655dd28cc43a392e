# SPDX-License-Identifier: MIT
"""Events of the machine as the stock gdb meets them, class by class, on the demo guest."""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from svsmd.gdbstub.catchpoints import SIGNALS
from svsmd.images import image_path
from svsmd.snp.events import CLASSES, EventClass
from tests.e2e.test_determinism import clock
from tests.svsmd_process import Console, Program, SvsmdProcess

pytestmark = pytest.mark.e2e

Start = Callable[..., SvsmdProcess]
DEMO = image_path("demo")
PAGE = 0x140_0000
KNOW_REGISTERS = "unset tdesc filename"
"""gdb 13 knows the machine's registers in the first inferior only, before it is told to look again;
events of the SVSM and its programs stop in another one."""


class Debugger:
    """A gdb that is attached to the demo guest at its prompt."""

    def __init__(self, session: Program, console: Console) -> None:
        self.session = session
        self.console = console

    def ask(self, command: str, pattern: str) -> re.Match[str]:
        self.session.send(command)
        return self.session.expect(pattern)

    def catch(self, text: str) -> None:
        self.ask(f"monitor catch {text}", r"^(?:\(gdb\) )*Catch \d+: .*, reported as SIG\d\d$")

    def go(self, typed: str = "") -> None:
        self.ask("continue", "Continuing")
        if typed:
            self.console.send(f"{typed}\r")

    def stopped_by(self, kind: EventClass) -> str:
        """The words of the next stop, which is of this class."""
        number = SIGNALS[kind].name.removeprefix("SIG")
        words = self.session.expect(rf"^{re.escape(CLASSES[kind].title)} (.*)\n")[1]
        self.session.expect(rf"received signal SIG{number}, Real-time event {number}\.$")
        self.session.send(KNOW_REGISTERS)
        return words

    def number(self, expression: str) -> int:
        self.session.send(f'printf "<%#lx>\\n", {expression}')
        return int(self.session.expect(r"<(0x[0-9a-f]+|0)>")[1], 16)


@contextmanager
def attached(machine: SvsmdProcess, gdb: str) -> Iterator[Debugger]:
    console = machine.console()
    console.expect("demo> ")
    commands = ("set schedule-multiple on", "echo attached\\n")
    with Program(machine.gdb_command(gdb, *commands, symbols=DEMO)) as session:
        session.expect("^attached")
        yield Debugger(session, console)


VMGEXIT, VC, PVALIDATE, RMPADJUST, RMPUPDATE, VMPL, SVSM, NPF, VMSA, SYSCALL, MESSAGE = EventClass

CASES: list[tuple[EventClass, str, str, str, dict[str, int]]] = [
    # class, condition, what is typed, words, values of expressions
    (VMGEXIT, "code == SNP_AP_CREATION", "vcpu",
     r"0x80000013 SNP_AP_CREATION info1 0x100020001 info2 0x\w+ by vCPU 0 at VMPL2",
     {"$snp_code": 0x8000_0013, "$vmpl": 2, "$snp_gpa == $ghcb": 1, "$pc == $snp_rip": 1}),
    (VMGEXIT, "code == 0x16 and vmpl == 0", "call 0 1 0",
     r"MSR 0x200000016 RUN_VMPL_REQUEST by vCPU 0 at VMPL0",
     {"$snp_code": 0x16, "$snp_info1": 2 << 20, "$snp_gpa": 0}),
    (VC, "code == 0x404", "fault vc",
     r"0x404 PAGE_NOT_VALIDATED gva 0x\w+ CPL 0 by vCPU 0 at VMPL2",
     {"$snp_code": 0x404, "$snp_gva == $cr2": 1, "$snp_rip < (long) trap_vectors": 1}),
    (VC, "code == 0x72", "bench cpuid", "0x72 CPUID CPL 0 by vCPU 0 at VMPL2",
     {"$snp_code": 0x72, "$snp_gva": 0}),
    (PVALIDATE, f"gpa == {PAGE:#x} and not validate", f"pvalidate {PAGE:x} rescind",
     rf"rescind gpa {PAGE:#x} 4K -> 0 by vCPU 0 at VMPL0",
     {"$snp_gpa": PAGE, "$snp_info1": 0, "$snp_result": 0, "$vmpl": 0}),
    (RMPADJUST, "target == 2 and perms == 0xf", "vcpu",
     r"gpa 0x\w+ 4K VMPL2 permissions 0xf -> 0 by vCPU 0 at VMPL0",
     {"$snp_vmpl_to": 2, "$snp_info1": 0xF, "$snp_result": 0, "$snp_size": 0x1000}),
    (RMPUPDATE, "assigned == 0", "selftest ghcb.msr.page-state",
     r"gpa 0x\w+ 4K shared by vCPU 0 at VMPL2", {"$snp_info1": 0, "$snp_gpa & 0xfff": 0}),
    (VMPL, "from == 2 and to == 0", "call 0 1 0", "from VMPL2 to VMPL0 by vCPU 0 at VMPL2",
     {"$snp_vmpl_from": 2, "$snp_vmpl_to": 0, "$vmpl": 0}),
    (SVSM, "protocol == 0 and call == 1", "call 0 1 0",
     r"protocol 0 call 1 rcx 0x0 rdx 0x0 -> 0x\w+ by vCPU 0 at VMPL0",
     {"$snp_protocol": 0, "$snp_code": 1, "$snp_result >> 28": 8}),
    (NPF, "", f"pvalidate {PAGE:x} rescind",
     rf"gpa {PAGE:#x} EXITINFO1 0x\w+ \[P U RMP ENC SIZEM\] \(RI-25\) by vCPU 0 at VMPL0",
     {"$snp_gpa": PAGE, "($snp_code & 0x800000000) != 0": 1, "$pc == $snp_rip": 1}),
    (VMSA, "", "vcpu", r"gpa 0x\w+ by vCPU 0 at VMPL0", {"$snp_vmpl_to": 2}),
    (MESSAGE, "type == TSC_INFO_REQ", "selftest psp.tsc-info",
     r"0x11 TSC_INFO_REQ VMPCK2 number 1 -> 0x0 by vCPU 0 at VMPL2",
     {"$snp_code": 0x11, "$snp_info1": 2, "$snp_result": 0}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "condition", "typed", "words", "values"),
    CASES,
    ids=[f"{CLASSES[case[0]].name}-{case[2]}" for case in CASES],
)
def test_class(
    svsmd: Start,
    gdb_program: str,
    kind: EventClass,
    condition: str,
    typed: str,
    words: str,
    values: dict[str, int],
) -> None:
    machine = svsmd("demo", "--cpus=2")
    with attached(machine, gdb_program) as gdb:
        gdb.catch(f"{CLASSES[kind].name} {condition}")
        gdb.go(typed)
        said = gdb.stopped_by(kind)
        assert re.match(words, said), said
        gdb.ask("p $snp_event", rf"= {kind.name}$")
        assert {text: gdb.number(text) for text in values} == values
        gdb.ask("monitor event", f"^(?:\\(gdb\\) )*{re.escape(CLASSES[kind].title)} {words}")
        gdb.ask("monitor catch", r"  1 .*  1 hit$")
        gdb.session.send("monitor uncatch 1")
        gdb.go()
        gdb.console.expect("demo> ")


def test_system_calls_of_a_module(svsmd: Start, gdb_program: str) -> None:
    """The demo's module registers a protocol, which is its first call of class 3."""
    machine = svsmd("demo", "-S")
    output = machine.gdb(
        gdb_program,
        "monitor catch syscall number == 0x300000000",
        "continue",
        KNOW_REGISTERS,
        "p $snp_event",
        "p/x $snp_code",
        "p $snp_task",
        "p/x $snp_info1",
        "p $vmpl",
        "monitor uncatch all",
    )
    words = r"^System call 0x300000000 of task 1, arguments 0xc0010001 0x1 by vCPU 0 at VMPL0, rip "
    assert re.search(words, output, re.MULTILINE), output
    assert "received signal SIG49, Real-time event 49." in output, output
    values = re.findall(r"^\$\d = (.*)$", output, re.MULTILINE)
    assert values == ["SYSCALL", "0x300000000", "1", "0xc0010001", "0"]
    machine.console().expect("demo> ")


def test_each_call_stops_once(svsmd: Start, gdb_program: str) -> None:
    """Whatever gdb sends on: no signal, the signal of the event, another one."""
    machine = svsmd("demo")
    with attached(machine, gdb_program) as gdb:
        gdb.catch("svsm protocol == 0 and call == 1")
        gdb.session.send("handle SIG46 nopass")
        resumptions = ["continue", "signal SIG46", "signal SIGINT", "signal 0"]
        for hits, resume in enumerate(resumptions, 1):
            gdb.go(f"call 0 1 {hits}")
            assert f"rcx {hits:#x} " in gdb.stopped_by(SVSM)
            gdb.ask("monitor catch", rf"  1 .*  {hits} hits?$")
            gdb.ask(resume, "Continuing")
            gdb.console.expect(r"demo> ")
            time.sleep(0.5)
            gdb.session.interrupt()
            gdb.session.expect("received signal SIGINT")


def test_handle_filters_in_the_stub(svsmd: Start, gdb_program: str) -> None:
    """What is passed over is counted, and gdb hears nothing of it."""
    machine = svsmd("demo", "--cpus=2")
    with attached(machine, gdb_program) as gdb:
        gdb.session.send("handle SIG43 nostop noprint pass")
        gdb.catch("rmpadjust")
        gdb.catch("vmsa")
        gdb.session.send("set debug remote 1")
        gdb.go("vcpu")
        gdb.stopped_by(VMSA)
        gdb.session.send("set debug remote 0")
        hits = int(gdb.ask("monitor catch", r"  1 rmpadjust  (\d+) hits$")[1])
        assert hits >= 2
        assert "received: T37" not in gdb.session.transcript
        assert "received: T3c" in gdb.session.transcript
        gdb.session.send("handle SIG43 stop print")
        gdb.go()
        gdb.stopped_by(RMPADJUST)
        gdb.ask("p $snp_event", "= RMPADJUST$")


def test_conditions_of_gdb_itself(svsmd: Start, gdb_program: str) -> None:
    """A loop in gdb's language on registers of the event."""
    machine = svsmd("demo")
    with attached(machine, gdb_program) as gdb:
        gdb.catch("svsm")
        gdb.go("call 0 1 7")
        gdb.stopped_by(SVSM)
        gdb.session.send("if $snp_info1 == 7")
        gdb.session.send("echo seven\\n")
        gdb.session.send("end")
        gdb.session.expect(r"^(?:\(gdb\) |[ >])*seven$")


def test_what_is_wrong_is_said_with_the_fields(svsmd: Start, gdb_program: str) -> None:
    machine = svsmd("demo")
    output = machine.gdb(
        gdb_program, "monitor catch", "monitor catch nmi", "monitor catch npf code = 4",
        "monitor catch npf gva == 4", "monitor help catch",
    )  # fmt: skip
    for line in (
        r"vmgexit +SIG40  a guest or the SVSM calls the host: code, info1, .*",
        r"catch: there is no class 'nmi'; classes: vmgexit, vc, .*",
        r"catch: '= 4' is not understood; fields of npf: gpa, code, vcpu, vmpl, rip",
        r"catch: there is no field 'gva'; fields of npf: gpa, code, vcpu, vmpl, rip",
        r"catch \[CLASS \[CONDITION\]\]  stop at events; .*",
    ):
        assert re.search(f"^{line}$", output, re.MULTILINE), f"{line}\n{output}"


@pytest.mark.parametrize("way", ["detach", "quit", "lost while it runs"])
def test_the_next_debugger_finds_nothing_armed(svsmd: Start, gdb_program: str, way: str) -> None:
    machine = svsmd("demo")
    with attached(machine, gdb_program) as gdb:
        for name in ("svsm", "vmpl", "vmgexit vmpl == 0"):
            gdb.catch(name)
        if way == "lost while it runs":
            gdb.ask("continue", "Continuing")
        else:
            gdb.go("call 0 1 1")
            gdb.session.expect("received signal SIG4")
            gdb.session.send(way)
            gdb.session.expect("detached")
        if way == "detach":
            gdb.session.send("quit")
    console = machine.console()
    console.send("\rcall 0 1 2\r")
    console.expect(r"(?s)call 0 1 2.*demo> ")
    output = machine.gdb(gdb_program, "monitor catch", "p $snp_event", "monitor event")
    assert "nothing is caught" in output
    assert "$1 = NONE" in output
    assert "no event was caught" in output
    console.send("off\r")
    assert machine.wait() == 0, machine.stderr


@pytest.mark.parametrize("cpus", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_catches_change_no_instruction_count(svsmd: Start, gdb_program: str, cpus: int) -> None:
    """Without a debugger, with conditions that are never true, and with hundreds of stops."""
    options = (
        "demo", "-S", "--append=selftest", "--serial=stdio", "--clock=virtual", f"--cpus={cpus}",
        "-v",
    )  # fmt: skip
    never = [f"monitor catch {spec.name} vcpu == 99" for spec in CLASSES.values()]
    often = [
        "handle all nostop noprint",
        *(f"handle {SIGNALS[kind].name} nostop print" for kind in (RMPUPDATE, MESSAGE, VMSA, NPF)),
        *(f"monitor catch {spec.name}" for spec in CLASSES.values()),
    ]
    ends = []
    for commands in ([], never, often):
        machine = svsmd(*options)
        output = machine.gdb(gdb_program, *commands, "continue", seconds=120)
        assert "exited normally" in output, output[-2000:]
        printed = machine.stdout.read_to_end()
        assert machine.wait() == 0, machine.stderr
        ends.append((printed, clock(machine)))
        stops = output.count("received signal SIG")
        assert (stops > 500) is (commands is often), stops
    assert ends[1] == ends[0]
    assert ends[2] == ends[0]
