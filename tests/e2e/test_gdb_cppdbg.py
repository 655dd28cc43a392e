# SPDX-License-Identifier: MIT
"""gdb's machine interface on a machine: what the C/C++ extension of VS Code (cppdbg) sends.

Spec: MIEngine, src/MIDebugEngine/Engine.Impl/DebuggedProcess.cs (GetInitializeCommands) for the
order; GDB manual, "GDB/MI". The configuration is that of docs/editors.md.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from svsmd.images import image_path
from tests.svsmd_process import Program, SvsmdProcess

pytestmark = pytest.mark.e2e

Start = Callable[..., SvsmdProcess]
DEMO = image_path("demo")
ROOT = Path(__file__).parent.parent.parent


class MachineInterface:
    """A gdb that is talked to in MI."""

    def __init__(self, session: Program) -> None:
        self._session = session
        self._token = 1000

    def ask(self, command: str, result: str = "done") -> str:
        """The results of a command."""
        self._token += 1
        self._session.send(f"{self._token}{command}")
        match = self._session.expect(rf"^{self._token}\^(\w+)(?:,(.*))?\n")
        assert match[1] == result, match[0]
        return match[2] or ""

    def stopped(self, reason: str) -> str:
        match = self._session.expect(r"^\*stopped,(.*)\n")
        assert f'reason="{reason}"' in match[1], match[1]
        return match[1]


@contextmanager
def launched(machine: SvsmdProcess, gdb: str) -> Iterator[MachineInterface]:
    """The commands of a launch with miDebuggerServerAddress."""
    with Program([gdb, "-nx", "--interpreter=mi"]) as session:
        mi = MachineInterface(session)
        mi.ask("-gdb-set mi-async on")
        for setup in ("set schedule-multiple on", f"set substitute-path ./ {ROOT}/"):
            mi.ask(f'-interpreter-exec console "{setup}"')
        mi.ask("-enable-pretty-printing")
        mi.ask(f"-environment-cd {ROOT}")
        mi.ask(f"-file-exec-and-symbols {DEMO}")
        mi.ask('-interpreter-exec console "show architecture"')
        mi.ask("-break-insert main", "error")  # whose failure cppdbg ignores: there is none here
        mi.ask(f"-target-select remote 127.0.0.1:{machine.gdb_port}", "connected")
        yield mi


def test_session(svsmd: Start, gdb_program: str) -> None:
    machine = svsmd("demo")
    console = machine.console()
    console.expect("demo> ")
    with launched(machine, gdb_program) as mi:
        groups = mi.ask("-list-thread-groups")
        assert re.findall(r'pid="(\d+)"', groups) == ["3", "1", "17"]
        threads = mi.ask("-thread-info")
        assert 'name="vcpu0/VMPL2"' in threads
        assert 'state="stopped"' in threads
        # MIEngine places breakpoints by absolute path and by name.
        source = ROOT / "svsmd" / "guest" / "demo" / "bench.c"
        assert 'func="bench_cpuid"' in mi.ask(f"-break-insert -f {source}:73")
        mi.ask("-exec-continue", "running")
        console.send("bench cpuid\r")
        assert 'bkptno="1"' in mi.stopped("breakpoint-hit")

        frames = mi.ask("-stack-list-frames 0 20")
        names = re.findall(r'func="(\w+)"', frames)
        assert names[:3] == ["bench_cpuid", "bench", "command_bench"]
        assert f'fullname="{source}"' in frames
        arguments = mi.ask("-stack-list-arguments 2 0 1")
        assert 'name="name",type="const char *"' in arguments
        mi.ask("-stack-list-variables --thread 1 --frame 1 --simple-values")
        made = mi.ask('-var-create - * "*cpus[0].ghcb"')
        name = re.search(r'name="(\w+)"', made)
        assert name is not None
        assert 'name="' in mi.ask(f"-var-list-children --simple-values {name[1]} 0 1000")
        mi.ask(f"-var-delete {name[1]}")
        assert mi.ask('-data-evaluate-expression "sizeof(struct ghcb)"') == 'value="4096"'

        code = mi.ask("-data-disassemble -s $pc -e $pc+8 -- 2")
        first = re.search(r'opcodes="([0-9a-f ]+)"', code)
        assert first is not None
        data = re.search(r'contents="(\w+)"', mi.ask("-data-read-memory-bytes $pc 8"))
        assert data is not None
        assert data[1].startswith(first[1].replace(" ", ""))
        names = re.findall(r'"(\w*)"', mi.ask("-data-list-register-names"))
        assert {"rip", "cr3", "vmpl"} <= set(names)
        number = names.index("vmpl")
        values = mi.ask(f"-data-list-register-values N {number}")
        assert f'number="{number}",value="2"' in values

        for command in ("-exec-next", "-exec-step", "-exec-step-instruction"):
            mi.ask(f"{command} --thread 1", "running")
            mi.stopped("end-stepping-range")
        mi.ask("-break-delete 1")
        mi.ask("-exec-continue", "running")
        mi.ask("-exec-interrupt")
        mi.stopped("signal-received")
        mi.ask('-interpreter-exec console "kill"')
        mi.ask("-gdb-exit", "exit")
    console.send("\r")
    console.expect("demo> ")


def test_console_of_the_debugger(svsmd: Start, gdb_program: str) -> None:
    """`-exec COMMAND` in the debug console of cppdbg reaches monitor and extension."""
    machine = svsmd("demo")
    with launched(machine, gdb_program) as mi:
        load = r"python exec(gdb.execute(\"monitor python\", False, True))"
        mi.ask(f'-interpreter-exec console "{load}"')
        mi.ask('-interpreter-exec console "svsm rmp 0,+1"')
        mi.ask('-interpreter-exec console "monitor info"')
        mi.ask('-interpreter-exec console "catch vc CPUID"')
        assert "catch vc if code == CPUID" in mi.ask("-break-list")
        mi.ask("-gdb-exit", "exit")
