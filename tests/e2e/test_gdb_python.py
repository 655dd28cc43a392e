# SPDX-License-Identifier: MIT
"""The extension that svsmd serves, in the stock gdb's own Python."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from svsmd.gdbstub.extension import script
from svsmd.images import image_path
from tests.e2e.test_gdb_kernel import make_symbols
from tests.linux_shell import BOOT_SECONDS, PROMPT
from tests.svsmd_process import Console, Linux, Program, SvsmdProcess

pytestmark = pytest.mark.e2e

Start = Callable[..., SvsmdProcess]
LOAD = 'python exec(gdb.execute("monitor python", False, True))'
DEMO = image_path("demo")
SVSM = "inferior 2"
"""VMPL0; the guest is inferior 1, and the first program 3."""


class Debugger:
    """A gdb that has loaded the extension, at its prompt."""

    def __init__(self, session: Program, console: Console | None) -> None:
        self.session = session
        self.console = console
        self._asked = 0

    def ask(self, command: str) -> str:
        """What gdb prints for a command."""
        self._asked += 1
        mark = f"<{self._asked} done>"
        begin = len(self.session.transcript)
        self.session.send(command)
        self.session.send(f"echo {mark}\\n")
        self.session.expect(re.escape(mark))
        text = self.session.transcript[begin:].partition(mark)[0]
        # Newer ones mark errors.
        return re.sub(r"^(\(gdb\) )*(❌\S* )?", "", text, flags=re.MULTILINE).strip()

    def number(self, expression: str) -> int:
        """Value of an expression."""
        return int(self.ask(f'printf "%#lx\\n", (unsigned long) ({expression})'), 16)

    def go(self, pattern: str, typed: str = "") -> str:
        """Continue, type something, and wait for a stop; what gdb says of it."""
        begin = len(self.session.transcript)
        self.session.send("continue")
        self.session.expect("Continuing")
        if typed:
            assert self.console is not None
            self.console.send(f"{typed}\r")
        self.session.expect(pattern)
        self.ask("echo")
        return self.session.transcript[begin:]


@contextmanager
def attached(
    machine: SvsmdProcess, gdb: str, *before: str, symbols: Path | None = DEMO, prompt: str = ""
) -> Iterator[Debugger]:
    console = None
    if prompt:
        console = machine.console()
        console.expect(prompt, BOOT_SECONDS)
    commands = ("set schedule-multiple on", LOAD, "echo attached\\n")
    command = machine.gdb_command(gdb, *commands, symbols=symbols)
    first = command.index("-ex")
    command[first:first] = [part for line in before for part in ("-ex", line)]
    with Program(command) as session:
        session.expect("^attached")
        assert "Python Exception" not in session.transcript
        yield Debugger(session, console)
        assert "Python Exception" not in session.transcript


@pytest.fixture
def demo(svsmd: Start, gdb_program: str) -> Iterator[Debugger]:
    with attached(svsmd("demo", "--cpus=2"), gdb_program, prompt="demo> ") as debugger:
        yield debugger


def test_file_and_monitor_are_the_same(svsmd: Start, gdb_program: str, tmp_path: Path) -> None:
    """`remote get` and `source` do it, too, and loading it again does no harm."""
    machine = svsmd("demo", "-S")
    copy = tmp_path / "svsmd-gdb.py"
    text = machine.gdb(
        gdb_program, f"remote get /svsmd-gdb.py {copy}", f"source {copy}", "catch vmsa", LOAD,
        "info breakpoints", "monitor catch", "svsm rmp 0,+1",
    )  # fmt: skip
    assert copy.read_text() == script()
    assert "Traceback" not in text
    assert "No breakpoints" in text
    assert "nothing is caught" in text
    assert re.search(r"^0x0 +\d+ +4K +assigned", text, re.MULTILINE)


def test_without_a_connection(svsmd: Start, gdb_program: str) -> None:
    machine = svsmd("demo", "-S")
    text = machine.gdb(
        gdb_program, LOAD, "disconnect", "svsm rmp", "catch vc", "print $_rmp_validated(0)"
    )
    assert text.count("not connected to svsmd: target remote HOST:PORT") == 3


def test_rmp(demo: Debugger) -> None:
    """Runs as `info os rmp` has them, cut to what was asked for; the C-bit does not matter."""
    everything = demo.ask("svsm rmp").splitlines()
    assert everything[0].split()[:6] == ["spa", "pages", "size", "state", "gpa", "asid"]
    assert len(everything) == len(demo.ask("info os rmp").splitlines())
    page = demo.number("$cr3 & 0x7ffffff000")
    (row,) = demo.ask("svsm rmp $cr3").splitlines()[1:]
    start, pages = int(row.split()[0], 16), int(row.split()[1])
    assert start <= page < start + pages * 0x1000
    assert "rwus" in row
    assert demo.ask("svsm rmp $ghcb, +0x1000").splitlines()[1].split()[3] == "shared"
    assert demo.ask("svsm rmp 5, 5") == "the range is empty"
    assert demo.ask("svsm rmp 1UL << 40").startswith("the RMP has no entry for 0x10000000000")
    assert demo.ask("svsm rmp nobody").startswith('No symbol "nobody"')


def test_walk_and_why(demo: Debugger) -> None:
    walk = demo.ask("svsm walk").splitlines()
    pc = demo.number("$pc")
    assert re.fullmatch(rf"{pc:#x} <\w+\+?\d*>:", walk[0])
    assert walk[-1].strip().startswith(f"{pc:#x} -> 0x")
    assert demo.ask("svsm walk 0x1234567890").splitlines()[-1].endswith("which is no RAM")
    assert "execute: allowed" in demo.ask("svsm why $pc")
    assert demo.ask("svsm why") == "vCPU 0 at VMPL2 has had no fault"


def test_vmsa(demo: Debugger) -> None:
    """Every number is the one that gdb itself has."""
    text = demo.ask("svsm vmsa 0 2")
    assert re.match(r"vCPU 0 at VMPL2: VMSA at 0x\w+, halted", text)
    values = dict(re.findall(r"\b([a-z]\w+) +(0x[0-9a-f]+)\b", text))
    for name in ("rip", "rsp", "cr3", "rbx", "rdi", "lstar"):
        assert demo.number(f"${name}") == int(values[name], 16)
    assert demo.number("(unsigned) $efer") == int(values["efer"], 16)  # flags of 32 bits
    assert re.search(r"efer +0x\w+ \[LMA LME NXE SCE SVME\]", text)
    assert "pkru" not in text
    assert "pkru" in demo.ask("svsm vmsa /a 0 2")
    both = demo.ask("svsm vmsa")
    assert re.findall(r"^vCPU (\d) at VMPL(\d)", both, re.MULTILINE) == [("0", "0"), ("0", "2")]
    assert demo.ask("svsm vmsa 0 3") == "there is no such VMSA"
    assert demo.ask("svsm vmsa 7") == "there is no vCPU 7"
    assert demo.ask("svsm vmsa x").startswith("usage: svsm vmsa")


def test_ghcb(demo: Debugger) -> None:
    """At a VMGEXIT the page has what the guest asks for; the printer says the same."""
    demo.ask("catch vmgexit SNP_AP_CREATION")
    stop = demo.go("Catchpoint 1", "vcpu")
    assert "VMGEXIT 0x80000013 SNP_AP_CREATION" in stop
    text = demo.ask("svsm ghcb 0").partition("at VMPL2")[2]
    assert "GHCB version 2, usage 0x0, SNP_AP_CREATION" in text
    info = demo.number("$snp_info1")
    assert re.search(rf"sw_exit_info_1 +{info:#x}$", text, re.MULTILINE)
    demo.ask("set print pretty on")
    printed = demo.ask("print/x *cpus[0].ghcb")
    assert printed.startswith("$1 = GHCB version 2, usage 0x0, SNP_AP_CREATION = {")
    assert f"sw_exit_info_1 = {info:#x}" in printed
    assert "valid_bitmap = {" in demo.ask("print/r *cpus[0].ghcb")
    demo.ask("disable pretty-printer global svsmd;ghcb")
    assert "valid_bitmap = {" in demo.ask("print *cpus[0].ghcb")


def test_calling_area(demo: Debugger) -> None:
    """Before the SVSM has served a call, its guest's calling area says that there is one."""
    demo.ask("tcatch vmpl 0")
    demo.go("Temporary catchpoint 1", "call 0 1 0")
    demo.ask("inferior 1")
    assert "call_pending = 1, mem_available = 0" in demo.ask("print *cpus[0].caa")
    assert re.search(r"call_pending +1\n", demo.ask("svsm caa cpus[0].caa"))
    assert re.search(r"call_pending +1\n", demo.ask("svsm caa /p cpus[0].caa_gpa"))
    assert demo.ask("svsm caa") == "usage: svsm caa [/p] ADDRESS"


def test_calls_and_modules(demo: Debugger) -> None:
    calls = demo.ask("svsm calls").splitlines()
    assert [line.split()[2] for line in calls] == [
        "call", "SVSM_CORE_PVALIDATE", "SVSM_CORE_REMAP_CA",
    ]  # fmt: skip
    assert [line.split()[2] for line in demo.ask("svsm calls 1").splitlines()] == [
        "call", "SVSM_CORE_REMAP_CA",
    ]  # fmt: skip
    (module,) = demo.ask("svsm modules").splitlines()[1:]
    assert module.split()[:4] == ["1", "3", "echo", "/bin/echo"]


def test_functions(demo: Debugger) -> None:
    values = {
        "$_svsm_vmpl()": 2,
        "$_svsm_task()": 0,
        "$_rmp_validated($_svsm_gpa($pc))": 1,
        "$_rmp_assigned($ghcb)": 0,
        "$_rmp_vmsa(0)": 0,
        "$_rmp_perms($_svsm_gpa($pc), 2)": 15,
        "$_rmp_perms($_svsm_gpa($pc), 1)": 0,
    }
    assert {name: demo.number(name) for name in values} == values
    assert demo.ask("print $_svsm_gpa(0x123456789000)").startswith("no page table maps")
    assert demo.ask("print $_rmp_perms(0, 4)") == "a VMPL is 0 to 3"
    assert demo.ask("print $_rmp_validated()") == "1 argument expected"
    demo.ask(SVSM)
    assert demo.ask("print $_svsm_vmpl()").endswith("= 0")
    demo.ask("inferior 3")
    assert demo.ask("print $_svsm_task()").endswith("= 1")


def test_function_in_a_condition(demo: Debugger) -> None:
    """gdb evaluates it when the breakpoint is reached."""
    demo.ask("break bench_cpuid if $_svsm_vmpl() == 1 || $_rmp_validated($ghcb)")
    demo.ask("break bench if $_svsm_vmpl() == 2 && $_rmp_validated($_svsm_gpa($pc))")
    demo.go(r"Breakpoint 2, bench \(", "bench cpuid")
    demo.ask("tbreak command_bench")
    demo.go(r"Temporary breakpoint 3\.1, command_bench \(", "bench cpuid")


def test_completion(demo: Debugger) -> None:
    def complete(text: str) -> list[str]:
        return demo.ask(f"complete {text}").splitlines()

    names = ("caa", "calls", "ghcb", "modules", "rmp", "vmsa", "walk", "why")
    assert complete("svsm ") == [f"svsm {name}" for name in names]
    assert complete("svsm vmsa ") == ["svsm vmsa 0", "svsm vmsa 1"]
    assert complete("svsm vmsa 0 ") == [f"svsm vmsa 0 {vmpl}" for vmpl in range(4)]
    assert complete("svsm walk demo_ma") == ["svsm walk demo_main"]
    assert complete("catch vm") == ["catch vmgexit", "catch vmpl", "catch vmsa"]
    assert complete("tcatch guest") == ["tcatch guest-message"]
    assert complete("catch vmgexit SNP_A") == ["catch vmgexit SNP_AP_CREATION"]
    assert complete("catch npf 5 if gp") == ["catch npf 5 if gpa"]
    assert complete("catch vc if code == PAGE_NOT") == ["catch vc if code == PAGE_NOT_VALIDATED"]
    text = demo.ask("help catch rmpadjust")
    assert "Usage: catch rmpadjust [GPA] [if CONDITION]" in text
    assert re.search(r"^ +perms +1 read, 2 write", text, re.MULTILINE)


def test_catchpoints_are_breakpoints(demo: Debugger) -> None:
    """Numbers, `disable`, `enable`, `delete`, `commands` and `tcatch` are as ever."""
    assert demo.ask("catch vc CPUID") == "Catchpoint 1 (vc if code == CPUID)"
    said = demo.ask("tcatch vc CPUID if cpl == 0 or cpl == 3")
    assert said == "Temporary catchpoint 2 (vc if code == CPUID and (cpl == 0 or cpl == 3))"
    table = demo.ask("info breakpoints")
    assert re.search(r"^1 +breakpoint +keep y .*catch vc if code == CPUID$", table, re.MULTILINE)
    assert re.search(r"^2 +breakpoint +del +y ", table, re.MULTILINE)
    demo.ask("python gdb.breakpoints()[0].commands = 'silent\\nprint 40 + 2'")
    stop = demo.go(r"= 42$", "bench cpuid")
    assert "received signal SIG41" in stop
    assert re.search(r"^(\(gdb\) )?Catchpoint 1\nTemporary catchpoint 2$", stop, re.MULTILINE)
    assert "\n2 " not in demo.ask("info breakpoints")
    assert demo.ask("monitor catch").split() == ["1", "vc", "if", "code", "==", "CPUID", "1", "hit"]
    demo.ask("disable 1")
    assert "nothing is caught" in demo.ask("monitor catch")
    demo.ask("enable 1")
    assert "vc if code == CPUID  0 hits" in demo.ask("monitor catch")
    demo.go(r"= 42$")
    demo.ask("delete 1")
    assert "nothing is caught" in demo.ask("monitor catch")


def test_catch_sets_handle(demo: Debugger) -> None:
    demo.ask("handle SIG41 nostop noprint pass")
    demo.ask("catch vc CPUID")
    demo.go("Catchpoint 1", "bench cpuid")


def test_what_cannot_be_caught(demo: Debugger) -> None:
    """leaves nothing behind."""
    assert "there is no field 'nonsense'" in demo.ask("catch vc if nonsense")
    assert demo.ask("catch vc nonsense").startswith('No symbol "nonsense"')
    assert demo.ask("catch vc if").startswith("usage: catch vc [CODE]")
    assert demo.ask("catch svsm-call 0 1 2").startswith("usage: catch svsm-call PROTOCOL CALL")
    assert demo.ask("info breakpoints").startswith("No breakpoints")
    assert "nothing is caught" in demo.ask("monitor catch")


def test_arguments(demo: Debugger) -> None:
    """An argument is about the field that matters; an address stands for its page."""
    expected = {
        "vmgexit 0x16": "vmgexit if code == 0x16",
        "pvalidate 0x1400123": "pvalidate if gpa == 0x1400000",
        "rmpadjust $cr3": r"rmpadjust if gpa == 0x[0-9a-f]{1,8}000",
        "rmpupdate $ghcb if assigned": r"rmpupdate if gpa == 0x\w+000 and \(assigned\)",
        "vmpl 0": "vmpl if to == 0x0",
        "svsm-call 0 1": "svsm if protocol == 0x0 and call == 0x1",
        "npf": "npf",
        "vmsa if target == 2": "vmsa if target == 2",
        "svsm-syscall 0x300000001": "syscall if number == 0x300000001",
        "guest-message TSC_INFO_REQ": "message if type == TSC_INFO_REQ",
    }
    for number, (argument, text) in enumerate(expected.items(), 1):
        assert re.fullmatch(rf"Catchpoint {number} \({text}\)", demo.ask(f"catch {argument}"))
    armed = re.findall(r"^ *\d+ (.*)  0 hits$", demo.ask("monitor catch"), re.MULTILINE)
    assert all(map(re.fullmatch, expected.values(), armed))


def test_catchpoints_outlive_a_connection(svsmd: Start, gdb_program: str) -> None:
    machine = svsmd("demo", "-S")
    with attached(machine, gdb_program) as gdb:
        gdb.ask("catch vmsa")
        gdb.ask("disconnect")
        gdb.ask(f"target remote 127.0.0.1:{machine.gdb_port}")
        gdb.ask("")
        assert "vmsa  0 hits" in gdb.ask("monitor catch")


# backtraces


def test_backtrace_of_a_handler_needs_no_python(svsmd: Start, gdb_program: str) -> None:
    """The demo guest's own debug information, from the first instruction of the #VC handler on."""
    machine = svsmd("demo")
    console = machine.console()
    console.expect("demo> ")
    commands = ("monitor catch vc code == 0x72", "echo attached\\n")
    with Program(machine.gdb_command(gdb_program, *commands, symbols=DEMO)) as session:
        session.expect("^attached")
        gdb = Debugger(session, console)
        gdb.go("SIG41", "bench cpuid")
        for _ in range(3):
            frames = gdb.ask("bt 3").splitlines()
            assert frames[0] == "#0  <signal handler called>"
            assert re.search(r"^#1 .* in cpuid \(subleaf=0, leaf=0\) at ", frames[1])
            assert re.search(r"^#2  bench_cpuid \(\) at ", frames[2])
            gdb.ask("stepi")


def test_backtrace_of_a_handler_without_symbols(svsmd: Start, gdb_program: str) -> None:
    machine = svsmd("demo")
    nothing = "set sysroot /nonexistent"
    with attached(machine, gdb_program, nothing, symbols=None, prompt="demo> ") as gdb:
        gdb.ask("catch vc CPUID")
        gdb.go("Catchpoint 1", "bench cpuid")
        rip = gdb.number("$snp_rip")
        assert re.fullmatch(rf"#1  0x0*{rip:x} in \?\? \(\)", gdb.ask("bt 2").splitlines()[1])
        gdb.ask("up")
        assert gdb.ask("x/i $pc").endswith("cpuid")


def test_backtrace_across_a_system_call(svsmd: Start, gdb_program: str) -> None:
    """At VMPL0: the program that is served, with all its registers, by name once gdb knows it."""
    with attached(svsmd("demo", "-S"), gdb_program) as gdb:
        gdb.ask("catch svsm-syscall 0x300000000")
        gdb.go("Catchpoint 1")
        gdb.ask(SVSM)
        unnamed = gdb.ask("bt").splitlines()
        assert unnamed[0].startswith("#0  svsm_gate_loop () at ")
        assert unnamed[1] == "#1  <system call of task 1 echo> ()"
        assert re.fullmatch(r"#2  0x\w+ in \?\? \(\)", unnamed[2])
        gdb.ask("info threads")
        gdb.ask("inferior 3")
        names = ("rip", "rsp", "rbp", "rdi", "rax")
        its_own = {name: gdb.ask(f"print/x ${name}").partition("=")[2] for name in names}
        gdb.ask(SVSM)
        named = gdb.ask("bt").splitlines()
        assert named[:2] == unnamed[:2]
        assert re.fullmatch(r"#2  0x\w+ in main \(\) at \./echo/echo\.c:\d+", named[2])
        assert re.fullmatch(r"#3  0x\w+ in _start \(\) at \./sdk/lib/start\.S:\d+", named[3])
        assert len(named) == 4
        gdb.ask("frame 2")
        assert {n: gdb.ask(f"print/x ${n}").partition("=")[2] for n in names} == its_own
        assert gdb.ask("bt -no-filters").splitlines()[1] == "#1  <signal handler called>"


def test_backtrace_of_a_program_that_waits(svsmd: Start, gdb_program: str) -> None:
    """Its page tables are gone from the vCPU: where it called from is known, and no more."""
    with attached(svsmd("demo", "-S"), gdb_program) as gdb:
        gdb.ask("catch svsm-syscall 0x300000001")
        gdb.go("Catchpoint 1")
        gdb.ask(SVSM)
        frames = gdb.ask("bt").splitlines()
        assert frames[1] == "#1  <system call of a task that waits now> ()"
        assert len(frames) == 3
        gdb.ask("info threads")
        gdb.ask("inferior 3")
        assert frames[2].split()[1] in gdb.ask("bt 1")


def test_backtrace_across_a_fault(svsmd: Start, gdb_program: str) -> None:
    """What has left CPL 3 otherwise, here by a page fault; and all threads at once."""
    with attached(svsmd("demo", "-S", "--cpus=2"), gdb_program) as gdb:
        gdb.ask("break svsm_from_user")
        gdb.go("Breakpoint 1,")
        gdb.ask("delete")
        gdb.ask("break svsm_core_gate")
        gdb.ask(SVSM)
        gdb.go("Breakpoint 2,")
        gdb.ask("info threads")
        gdb.ask(SVSM)
        frames = gdb.ask("bt").splitlines()
        assert frames[1] == "#1  <#PF of task 1 echo> ()"
        assert re.search(r"^#2 .* in \w+ \(\) at \./sdk/lib/", frames[2])
        everything = gdb.ask("thread apply all bt")
        assert everything.count("<#PF of task 1 echo>") == 1


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_backtrace_of_linux_handler(
    svsmd: Start, gdb_program: str, linux: Linux, tmp_path: Path
) -> None:
    """From the first instruction of asm_exc_vmm_communication on, where ORC data are wrong."""
    symbols = make_symbols(linux.kernel, tmp_path)
    machine = svsmd(f"--kernel={linux.kernel}", f"--initrd={linux.initrd}", "--append=quiet")
    with attached(machine, gdb_program, symbols=symbols, prompt=PROMPT) as gdb:
        gdb.ask("catch vc MSR if cpl == 0")
        gdb.go("Catchpoint 1", "true")
        rip = gdb.number("$snp_rip")
        for instruction in range(6):
            frames = gdb.ask("bt 3").splitlines()
            assert frames[0].endswith("in asm_exc_vmm_communication ()"), instruction
            assert frames[1].split()[1] == f"{rip:#x}", instruction
            gdb.ask("stepi")
        gdb.ask("delete")
        gdb.ask("tbreak kernel_exc_vmm_communication")
        gdb.go("Temporary breakpoint 2")
        frames = [line for line in gdb.ask("bt 4").splitlines() if line.startswith("#")]
        assert "asm_exc_vmm_communication ()" in frames[1]
        assert frames[2] == "#2  <signal handler called>"
        assert frames[3].split()[1] == f"{rip:#x}"
