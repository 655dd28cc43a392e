# SPDX-License-Identifier: MIT
"""The stock gdb and every world of a machine: inferiors with symbols, without set-up."""

import re
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import pytest

from tests.module_machine import ROOT, modules, program
from tests.svsmd_process import Console, Program, SvsmdProcess
from tools.make_archive import make_archive

pytestmark = pytest.mark.e2e

Start = Callable[..., SvsmdProcess]
CALL = "call c0010001 1 1 2 3 4\r"
"""At the demo guest's prompt: a call that the module echo serves."""

TO_SYSTEM_CALL = ("while *(unsigned short *) $pc != 0x050f", "stepi", "end")


class Gdb:
    """A gdb that answers commands; `continue` too has an answer."""

    def __init__(self, session: Program) -> None:
        self.session = session
        self._numbers = count()

    def __call__(self, *lines: str) -> str:
        """What it prints until it has executed these."""
        mark = f"done{next(self._numbers)}"
        for line in (*lines, f"echo {mark}\\n"):
            self.session.send(line)
        before = len(self.session.transcript)
        self.session.expect(mark)
        return self.session.transcript[before:].replace("(gdb) ", "")

    def interrupt(self) -> str:
        """Ctrl-C, while it continues."""
        # gdb loses a Ctrl-C between its own line and the packet that resumes.
        self.session.send("continue")
        self.session.expect("Continuing")
        time.sleep(0.5)
        self.session.interrupt()
        return self.session.expect(r'Thread \S+ "([^"]*)" received signal SIGINT')[1]


@contextmanager
def attached(machine: SvsmdProcess, program_: str, *commands: str) -> Iterator[Gdb]:
    """A gdb with no files and no set-up but what is given."""
    with Program(machine.gdb_command(program_, *commands, "echo attached\\n")) as session:
        session.expect("^attached")
        yield Gdb(session)


@pytest.fixture
def demo(svsmd: Start) -> tuple[SvsmdProcess, Console]:
    """A machine whose guest waits at its prompt."""
    machine = svsmd("demo")
    console = machine.console()
    console.expect("demo> ")
    return machine, console


def test_every_world_is_an_inferior_with_symbols(
    demo: tuple[SvsmdProcess, Console], gdb_program: str
) -> None:
    machine, _ = demo
    output = machine.gdb(gdb_program, "info inferiors", "info threads", "thread apply all bt")
    for number, pid, file in (
        (1, 3, "guest.elf"), (2, 1, "svsm.elf"), (3, 17, "modules/bin/echo"),
    ):  # fmt: skip
        line = rf"^[* ] {number} +process {pid} +\S+ \(remote \S+\) +target:/{file}"
        assert re.search(line, output, re.MULTILINE), output
    for line in (
        r'\* 1\.1 +Thread 3\.1 "vcpu0/VMPL2" \(halted\) +0x\w+ in .* at \S*demo/cpu\.h:\d+',
        r'  2\.1 +Thread 1\.1 "vcpu0/VMPL0" \(stands still, VMPL2 runs\) +svsm_gate_loop \(\) at',
        r'  3\.1 +Thread 17\.1 "task 1 echo" \(waits for IPC\) .* in svsm_syscall6 \(.*\) at .*:',
        r"#\d .* demo_main \(boot_params=\d+\) at \S*main\.c:\d+",
        r"#\d .*main \(.*\) at \S*echo\.c:\d+",
    ):
        assert re.search(f"^{line}", output, re.MULTILINE), f"{line}\n{output}"


def test_break_and_step_in_every_inferior(
    demo: tuple[SvsmdProcess, Console], gdb_program: str
) -> None:
    """A call goes through three of them; each has its registers while another one runs."""
    machine, console = demo
    with attached(machine, gdb_program, "set schedule-multiple on") as gdb:
        gdb("break command_call", "break echo.c:68", "tbreak svsm_enter_user if 0")
        gdb.session.send("continue")
        console.send(CALL)
        text = gdb("bt 1", "print argc")
        assert re.search(r'"vcpu0/VMPL2" hit Breakpoint 1, command_call \(argc=7', text), text
        text = gdb("continue", "bt", "print request", "info threads")
        assert re.search(r'"vcpu0/VMPL0 task 1 echo" hit Breakpoint 2, main \(', text), text
        assert "call = 1, token = 1, rcx = 1, rdx = 2, r8 = 3, r9 = 4" in text
        assert re.search(r'^\* 3\.1 .*task 1 echo" \(at CPL 3\)', text, re.MULTILINE), text
        assert re.search(r'^  2\.1 .*"vcpu0/VMPL0" \(runs task 1 echo\)', text, re.MULTILINE), text

        # The guest stands still in its VMGEXIT, and can be looked at all the same.
        text = gdb("inferior 1", "bt", "print regs->rcx", "print demo_counter", "x/i $pc - 3")
        assert re.search(r"^#\d .* command_call \(.*\) at \S*commands\.c:\d+", text, re.MULTILINE)
        assert "= 1\n" in text
        assert "vmmcall" in text or "vmgexit" in text, text

        # A step of the program at CPL 3: one instruction; `next` over lines.
        text = gdb("inferior 3", "print $pc", "x/i $pc", "stepi", "print $pc", "next", "frame")
        pcs = re.findall(r"\) (0x\w+) <main", text)
        assert len(pcs) == 2, text
        assert pcs[0] != pcs[1]
        assert re.search(r"^#0  main .* at \S*echo\.c:\d+", text, re.MULTILINE), text

        text = gdb("print answer.rcx", "print answer.rdx", "print answer.r8")
        assert re.findall(r"= (\d+)\n", text) == ["1", "2", "3"], text

        # The guest's step over its VMGEXIT is the whole call.
        text = gdb("delete", "inferior 1", "stepi", "frame", "info threads")
        assert re.search(r"^#0 .*svsm_call_once .* at \S*svsm\.c:\d+", text, re.MULTILINE), text
        assert re.search(r'^\* 1\.1 .*"vcpu0/VMPL2" \(running\)', text, re.MULTILINE), text
        text = gdb("finish")
        assert "Run till exit" in text
        gdb("kill inferiors 1 2 3")
    console.expect(r"demo> ")


def test_step_through_a_program(demo: tuple[SvsmdProcess, Console], gdb_program: str) -> None:
    """`stepi` over system calls that the SVSM serves at once, and those that wait; `finish`."""
    machine, console = demo
    with attached(machine, gdb_program, "set schedule-multiple on") as gdb:
        gdb("break reverse")
        gdb.session.send("continue")
        console.send("call c0010001 1 200000 10\r")
        text = gdb("bt", "up", "print request.call", "print request.rdx", "down", "delete")
        assert re.search(r"hit Breakpoint 1, .*reverse \(.*\) at \S*echo\.c:\d+", text), text
        assert re.findall(r"= (\d+)\n", text) == ["1", "16"], text
        # To the system call that reads the guest's memory, and over it.
        text = gdb(*TO_SYSTEM_CALL, "print (long) $pc", "x/i $pc", "stepi", "print (long) $pc")
        before, after = map(int, re.findall(r"= (\d+)\n", text))
        assert "syscall" in text, text
        assert after == before + 2
        text = gdb("print $rax", "info threads")
        assert "= 16\n" in text, text  # bytes read
        assert re.search(r'^\* 3\.1 .*task 1 echo" \(at CPL 3\)', text, re.MULTILINE), text
        # The one that writes it; then the one that answers, and comes back with the next call.
        gdb(*TO_SYSTEM_CALL, "stepi", *TO_SYSTEM_CALL)
        gdb.session.send("stepi")
        console.expect("demo> ")
        console.send(CALL)
        text = gdb("print $rax", "info threads", "next", "print request.call", "print request.r9")
        assert re.findall(r"= (\d+)\n", text) == ["0", "1", "4"], text
        gdb("kill inferiors 1 2 3")
    console.expect("demo> ")


def test_conditions_and_monitor_commands_of_a_program(
    demo: tuple[SvsmdProcess, Console], gdb_program: str
) -> None:
    """Evaluated by the stub, in the address space of the program; so are tables and `monitor`."""
    machine, console = demo
    with attached(machine, gdb_program, "set schedule-multiple on") as gdb:
        gdb("inferior 3", "break echo.c:68 if request.rcx == 7", "inferior 1")
        gdb.session.send("continue")
        gdb.session.expect("Continuing")
        console.send("call c0010001 1 1 2 3 4\rcall c0010001 1 7 2 3 4\r")
        text = gdb("print request.rcx", "monitor breakpoints", "print/x $pc")
        assert '"vcpu0/VMPL0 task 1 echo" hit Breakpoint 1' in text
        assert "= 7\n" in text, text
        pc = re.findall(r"= (0x\w+)\n", text)[-1]
        assert "process 17, software, 1 hit, 2 evaluations of its condition" in text, text
        text = gdb("monitor cpu", f"monitor why {pc}", f"monitor gva2gpa {pc}")
        assert "vCPU 0 at VMPL0, the selected thread's" in text
        assert f"{pc} for vCPU 0 at VMPL0, CPL 3, cr3 " in text, text
        gpa = re.findall(r"^gpa: (0x\w+)$", text, re.MULTILINE)[-1]
        dumps = gdb(f"monitor x /8xb {pc}", f"monitor xp /8xb {gpa}")
        rows = re.findall(r"^\w{16}:((?: 0x\w\w){8})$", dumps, re.MULTILINE)
        assert len(rows) == 2, dumps
        assert rows[0] == rows[1], dumps
        text = gdb("info os pagetable")
        assert re.search(r"^0x401000 .* r-x +user ", text, re.MULTILINE), text

        # A condition that does not hold costs no stop, and a system call of the program does.
        gdb("delete", "break main if argc == 12345", "monitor catch syscall")
        text = gdb("continue", "inferior 2", "monitor uncatch all")
        assert re.search(r"^System call 0x\w+ of task 1, .* VMPL0", text, re.MULTILINE), text
        assert 'Thread 2.1 "vcpu0/VMPL0" received signal SIG49' in text, text
        gdb("kill inferiors 1 2 3")
    console.expect("demo> ")


def test_a_breakpoint_belongs_to_its_process(
    demo: tuple[SvsmdProcess, Console], gdb_program: str
) -> None:
    """The SVSM never executes what the program has at that address, so it does not stop there."""
    machine, console = demo
    with attached(machine, gdb_program, "set schedule-multiple on") as gdb:
        text = gdb("inferior 3", "info line echo.c:68", "inferior 1")
        address = re.search(r"address (0x\w+)", text)
        assert address is not None, text
        gdb("inferior 2", f"break *{address[1]}", "inferior 1", "tbreak svsm.c:98")
        gdb.session.send("continue")
        console.send(CALL)
        text = gdb("info breakpoints")
        assert re.search(r"hit Temporary breakpoint 2, svsm_call_once", text), text
        assert "already hit" not in text
        gdb("kill inferiors 1 2 3")


def test_ctrl_c_detach_and_reconnect(demo: tuple[SvsmdProcess, Console], gdb_program: str) -> None:
    machine, console = demo
    with attached(machine, gdb_program) as gdb:
        assert gdb.interrupt() == "vcpu0/VMPL2"
        gdb("detach inferiors 1")
        text = gdb("info inferiors", "inferior 2")
        assert "<null>" in text
        assert "svsm_gate_loop" in text
        # The machine stands still until the last one is let go.
        console.send("svsm\r")
        with pytest.raises(AssertionError):
            console.expect("protocol", 1)
        gdb("detach inferiors 2 3")
        console.expect("demo> ")
        gdb.session.send(f"target remote 127.0.0.1:{machine.gdb_port}")
        text = gdb("info threads")
        assert "Thread 3.1" in text, text
        gdb.session.send("quit")
        assert gdb.session.wait() == 0
    console.send("svsm\r")
    console.expect("demo> ")


def test_programs_that_begin_and_end(svsmd: Start, gdb_program: str, tmp_path: Path) -> None:
    """One ends while it is looked at, and those that it starts come and go."""
    archive = tmp_path / "modules.tar"
    entries = [program("/bin/spin", arguments=["spin", time]) for time in ("50", "1000000")]
    archive.write_bytes(
        make_archive({"/svsm.toml": "".join(entries).encode(), "/bin/spin": modules()["spin"]})
    )
    machine = svsmd("demo", "-S", f"--archive={archive}")
    with attached(machine, gdb_program) as gdb:
        assert "process 17" not in gdb("info inferiors")
        text = gdb("tbreak demo_main", "continue")
        assert re.search(r"hit Temporary breakpoint 1, demo_main", text), text
        assert "New inferior" not in text
        # The next list has them.
        text = gdb("info threads", "info inferiors")
        assert re.findall(r"process (\d+) .*target:/modules/bin/spin", text) == ["17", "18"], text
        text = gdb("inferior 3", "break now", "continue")
        assert re.search(r'task \d spin" hit Breakpoint 2', text), text
        gdb("delete", "inferior 1")
        gdb.interrupt()
        text = gdb("info threads", "inferior 3", "print words[0]")
        assert re.search(r'^  3\.1 .*task 1 spin" \(has ended\)', text, re.MULTILINE), text
        assert "Cannot access memory" in text, text
        text = gdb("inferior 4", "print words[0] >= 0", "bt 1")
        assert "= 1\n" in text
        gdb("kill inferiors 1 2 3 4")
    machine.console().expect("demo> ")


def test_no_other_file_is_served(svsmd: Start) -> None:
    machine = svsmd("demo", "-S")
    with socket.create_connection(("127.0.0.1", machine.gdb_port)) as client:
        client.settimeout(10)

        def ask(body: bytes) -> bytes:
            client.sendall(b"$%b#%02x" % (body, sum(body) & 0xFF))
            data = b""
            while not re.search(rb"\$[^#]*#..", data):
                data += client.recv(65536)
            client.sendall(b"+")
            return data

        ask(b"qSupported:multiprocess+")
        for name in (b"/etc/passwd", b"/modules/../../etc/passwd", b"/svsm.elf/../../etc/passwd"):
            assert b"F-1,2" in ask(b"vFile:open:%b,0,0" % name.hex().encode())
        assert b"$F3#" in ask(b"vFile:open:%b,0,0" % b"/svsm.elf".hex().encode())
        assert b"F-1,d" in ask(b"vFile:open:%b,1,0" % b"/svsm.elf".hex().encode())


def test_without_an_svsm_the_guest_is_vmpl0(svsmd: Start, gdb_program: str) -> None:
    machine = svsmd("demo", "--no-svsm")
    machine.console().expect("demo> ")
    output = machine.gdb(gdb_program, "info threads", "info registers vmpl", "stepi", "bt 1")
    assert re.search(r'^\* 1 +Thread 1\.1 "vcpu0/VMPL0" \(halted\)', output, re.MULTILINE), output
    assert "Reading symbols from target:/guest.elf" in output
    assert "New inferior" not in output
    assert re.search(r"^vmpl +0x0", output, re.MULTILINE), output


def test_a_static_pie_program_is_where_it_was_loaded(
    svsmd: Start, gdb_program: str, tmp_path: Path
) -> None:
    """gdb asks for no relocation of it: the file that it reads has its addresses."""
    sdk = ROOT / "svsmd" / "modules" / "sdk"
    sources = [ROOT / "tests/modules/spin/spin.c", *sorted((sdk / "lib").glob("*.[cS]"))]
    subprocess.run(
        ["cc", "-g", "-O2", "-ffreestanding", "-fPIE", "-fno-stack-protector", "-mno-avx",
         "-fcf-protection=none", "-static-pie", "-nostdlib", "-Wl,-z,separate-code",
         "-Wl,-z,noexecstack", f"-I{sdk / 'include'}", *sources, "-o", tmp_path / "spin"],
        check=True,
    )  # fmt: skip
    archive = tmp_path / "modules.tar"
    entry = program("/bin/spin", arguments=["spin", "1000000"])
    contents = {"/svsm.toml": entry.encode(), "/bin/spin": (tmp_path / "spin").read_bytes()}
    archive.write_bytes(make_archive(contents))
    machine = svsmd("demo", f"--archive={archive}")
    machine.console().expect("demo> ")
    output = machine.gdb(
        gdb_program, "tbreak now", "continue", "bt", "up", "print milliseconds", "print &words",
        "info line main", "finish",
    )  # fmt: skip
    assert re.search(r'task 1 spin" hit Temporary breakpoint 1, now \(\) at', output), output
    assert re.search(r"^#1 +0x000000100000\w+ in main \(argc=", output, re.MULTILINE), output
    assert re.search(r"0x100000\w+ <words>", output), output
    assert re.search(r"Value returned is \$\d+ = [1-9]\d+", output), output
