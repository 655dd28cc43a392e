# SPDX-License-Identifier: MIT
"""gdb's own Debug Adapter Protocol on a machine: what editors do with the configuration of
docs/editors.md."""

import json
import queue
import re
import subprocess
import threading
import time
from base64 import b64decode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest

from svsmd.images import image_path
from tests.svsmd_process import SECONDS, SvsmdProcess

pytestmark = pytest.mark.e2e

Start = Callable[..., SvsmdProcess]
DEMO = image_path("demo")
ROOT = Path(__file__).parent.parent.parent
SOURCE = ROOT / "svsmd" / "guest" / "demo" / "bench.c"
LINE = SOURCE.read_text().partition("long bench_cpuid(")[0].count("\n") + 3
"""In that function."""
LOAD = 'python exec(gdb.execute("monitor python", False, True))'
Message = dict[str, Any]


class Adapter:
    """A client of `gdb -i=dap`."""

    def __init__(self, stdin: IO[bytes], stdout: IO[bytes]) -> None:
        self._stdin = stdin
        self._received: queue.Queue[Message | None] = queue.Queue()
        self._pending: list[Message] = []
        self._number = 0
        self._reader = threading.Thread(target=self._read, args=(stdout,), daemon=True)
        self._reader.start()

    def join(self) -> None:
        """gdb has ended; nobody reads its output any more."""
        self._reader.join(SECONDS)

    def _read(self, stdout: IO[bytes]) -> None:
        while header := stdout.readline():
            while (line := stdout.readline()).strip():
                header += line
            length = re.search(rb"Content-Length: (\d+)", header)
            assert length is not None, header
            self._received.put(json.loads(stdout.read(int(length[1]))))
        self._received.put(None)

    def _wait(self, wanted: Callable[[Message], bool]) -> Message:
        end = time.monotonic() + SECONDS
        for number, message in enumerate(self._pending):
            if wanted(message):
                return self._pending.pop(number)
        while True:
            received = self._received.get(timeout=max(0.01, end - time.monotonic()))
            assert received is not None, f"gdb has ended: {self._pending}"
            if wanted(received):
                return received
            self._pending.append(received)

    def send(self, command: str, **arguments: Any) -> int:
        """A request; its number."""
        self._number += 1
        request = {
            "seq": self._number, "type": "request", "command": command, "arguments": arguments,
        }  # fmt: skip
        body = json.dumps(request).encode()
        self._stdin.write(b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
        self._stdin.flush()
        return self._number

    def response(self, number: int) -> Any:
        """The body of the response, which has to be one of success."""
        message = self._wait(lambda m: m.get("request_seq") == number)
        assert message["success"], message
        return message.get("body", {})

    def ask(self, command: str, **arguments: Any) -> Any:
        return self.response(self.send(command, **arguments))

    def event(self, name: str) -> Any:
        return self._wait(lambda m: m.get("event") == name).get("body", {})

    def repl(self, command: str) -> str:
        """What gdb prints for a command."""
        result = self.ask("evaluate", expression=command, context="repl")["result"]
        assert isinstance(result, str)
        return result


@contextmanager
def attached(machine: SvsmdProcess, gdb: str) -> Iterator[Adapter]:
    """As an editor does it: breakpoints of a source first, then the connection."""
    options = ("set schedule-multiple on", f"set substitute-path ./ {ROOT}/")
    command = [gdb, "-nx", "-q", "-i=dap", *(part for o in options for part in ("-iex", o))]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        adapter = Adapter(process.stdin, process.stdout)
        try:
            adapter.ask("initialize", adapterID="gdb", linesStartAt1=True, columnsStartAt1=True)
            target = f"127.0.0.1:{machine.gdb_port}"
            attach = adapter.send("attach", program=str(DEMO), target=target)
            adapter.event("initialized")
            adapter.ask(
                "setBreakpoints", source={"path": str(SOURCE)}, breakpoints=[{"line": LINE}]
            )
            adapter.ask("configurationDone")
            adapter.response(attach)
            assert adapter.event("stopped")["reason"] == "attach"
            yield adapter
        finally:
            process.kill()
            adapter.join()


def test_session(svsmd: Start, dap_gdb_program: str) -> None:
    """Breakpoint, stack, variables, registers, memory, disassembly, steps, and leaving."""
    machine = svsmd("demo")
    console = machine.console()
    console.expect("demo> ")
    with attached(machine, dap_gdb_program) as gdb:
        threads = gdb.ask("threads")["threads"]
        assert threads == [{"id": 1, "name": "vcpu0/VMPL2"}]
        gdb.ask("continue", threadId=1)
        console.send("bench cpuid\r")
        stop = gdb.event("stopped")
        assert (stop["reason"], stop["threadId"]) == ("breakpoint", 1)

        frames = gdb.ask("stackTrace", threadId=1)["stackFrames"]
        assert [frame["name"] for frame in frames[:3]] == ["bench_cpuid", "bench", "command_bench"]
        assert frames[0]["source"]["path"] == str(SOURCE)
        scopes = gdb.ask("scopes", frameId=frames[1]["id"])["scopes"]
        found = {
            each["name"]: each["value"]
            for scope in scopes
            for each in gdb.ask("variables", variablesReference=scope["variablesReference"])[
                "variables"
            ]
        }
        assert "cpuid" in found["name"]
        assert {"rip", "cr3", "vmpl", "snp_event"} <= set(found)
        value = gdb.ask("evaluate", expression="1 + sizeof(struct ghcb)", context="watch")
        assert value["result"] == "4097"

        pc = frames[0]["instructionPointerReference"]
        code = gdb.ask("disassemble", memoryReference=pc, instructionCount=2)["instructions"]
        data = b64decode(gdb.ask("readMemory", memoryReference=pc, count=8)["data"])
        assert data.hex().startswith("".join(each["instructionBytes"] for each in code)[:16])

        for request in ("next", "stepIn", "stepOut"):
            gdb.ask(request, threadId=1)
            assert gdb.event("stopped")["reason"] == "step"
        gdb.ask("setBreakpoints", source={"path": str(SOURCE)}, breakpoints=[])
        gdb.ask("setFunctionBreakpoints", breakpoints=[{"name": "bench", "condition": "0"}])
        gdb.ask("continue", threadId=1)
        gdb.ask("pause", threadId=1)
        assert gdb.event("stopped")["reason"] == "pause"
        gdb.ask("disconnect", terminateDebuggee=False)
    console.send("\r")
    console.expect("demo> ")


def test_extension(svsmd: Start, dap_gdb_program: str) -> None:
    """Its commands in the debug console, its catchpoints as stops, its printers in watches."""
    machine = svsmd("demo", "--cpus=2")
    console = machine.console()
    console.expect("demo> ")
    with attached(machine, dap_gdb_program) as gdb:
        gdb.repl(LOAD)
        assert "/bin/echo" in gdb.repl("svsm modules")
        assert gdb.repl("catch vmgexit SNP_AP_CREATION").startswith("Catchpoint ")
        gdb.ask("continue", threadId=1)
        console.send("vcpu\r")
        assert gdb.event("stopped")["reason"] == "signal"
        frame = gdb.ask("stackTrace", threadId=1)["stackFrames"][0]["id"]
        value = gdb.ask(
            "evaluate", expression="*cpus[0].ghcb", frameId=frame, context="watch"
        )  # fmt: skip
        assert value["result"].startswith("GHCB version 2, usage 0x0, SNP_AP_CREATION")
        fields = gdb.ask("variables", variablesReference=value["variablesReference"])["variables"]
        assert {"sw_exit_code", "sw_exit_info_1"} <= {each["name"] for each in fields}
        gdb.ask("disconnect", terminateDebuggee=False)
