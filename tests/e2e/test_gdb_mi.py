# SPDX-License-Identifier: MIT
"""The stock gdb over its machine interface, as IDEs drive it: pygdbmi as the client."""

import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import pytest
from pygdbmi.gdbcontroller import GdbController

from svsmd.images import image_path
from tests.svsmd_process import SECONDS, SvsmdProcess

pytestmark = pytest.mark.e2e

Start = Callable[..., SvsmdProcess]
Record = dict[str, Any]
_POLL_SECONDS: Final = 0.1


class Mi:
    """Commands and the records that answer them."""

    def __init__(self, gdb: str) -> None:
        command = [gdb, "-nx", "-q", "--interpreter=mi3", str(image_path("demo"))]
        # It waits so long for more after each answer; here is waited for what has to come.
        self._gdb = GdbController(command, time_to_check_for_additional_output_sec=0)
        self._records: list[Record] = []

    def __call__(self, command: str) -> Record:
        """The payload of its `done` or `running`; AssertionError if it has another result."""
        self._gdb.write(command, read_response=False)
        result = self._next(lambda record: record["type"] == "result")
        assert result["message"] in ("done", "running", "connected"), result
        return result["payload"] or {}

    def stopped(self) -> Record:
        """The payload of the next *stopped."""
        stop = self._next(lambda record: record["message"] == "stopped")
        payload: Record = stop["payload"]
        return payload

    def _next(self, wanted: Callable[[Record], bool]) -> Record:
        end = time.monotonic() + SECONDS
        while True:
            for place, record in enumerate(self._records):
                if wanted(record):
                    del self._records[place]
                    return record
            assert time.monotonic() < end, self._records
            self._records += self._gdb.get_gdb_response(_POLL_SECONDS, raise_error_on_timeout=False)

    def close(self) -> None:
        self._gdb.exit()


@pytest.fixture
def mi(gdb_program: str) -> Iterator[Mi]:
    client = Mi(gdb_program)
    client("-gdb-set confirm off")
    yield client
    client.close()


def test_a_session(svsmd: Start, mi: Mi) -> None:
    """Breakpoints with conditions, steps, variables, registers, memory, stack, watchpoints."""
    machine = svsmd("demo", "-S")
    console = machine.console()
    mi(f"-target-select remote 127.0.0.1:{machine.gdb_port}")
    assert mi("-thread-info")["threads"]
    inserted = mi("-break-insert -h demo_main")["bkpt"]
    assert (inserted["type"], inserted["func"]) == ("hw breakpoint", "demo_main")
    mi("-exec-continue")
    stop = mi.stopped()
    while stop.get("reason") != "breakpoint-hit":  # that of the attachment
        stop = mi.stopped()
    assert stop["frame"]["func"] == "demo_main"

    before = mi("-data-evaluate-expression $pc")["value"]
    mi("-exec-step-instruction")
    assert mi.stopped()["reason"] == "end-stepping-range"
    assert mi("-data-evaluate-expression $pc")["value"] != before
    mi("-exec-next")
    assert mi.stopped()["reason"] == "end-stepping-range"

    mi("-break-insert -c demo_counter==5 demo_busy_loop")
    mi("-break-insert shell")
    mi("-exec-continue")
    stop = mi.stopped()
    assert stop["frame"]["func"] == "shell", stop
    names = [frame["func"] for frame in mi("-stack-list-frames")["stack"]]
    assert names[:2] == ["shell", "demo_main"]
    variables = mi("-stack-list-variables --simple-values")["variables"]
    assert "line" in {each["name"] for each in variables}

    mi("-var-create counter * demo_counter")
    assert mi("-var-assign counter 77")["value"] == "77"
    memory = mi("-data-read-memory-bytes &demo_counter 8")["memory"][0]
    assert memory["contents"] == (77).to_bytes(8, "little").hex()
    mi(f"-data-write-memory-bytes &demo_counter {bytes(8).hex()}")
    changed = mi("-var-update --all-values counter")["changelist"]
    assert [each["value"] for each in changed] == ["0"]

    registers = mi("-data-list-register-names")["register-names"]
    number = registers.index("cr3")
    values = mi(f"-data-list-register-values x {number}")["register-values"]
    assert int(values[0]["value"], 16)

    mi("-break-watch demo_counter")
    mi("-exec-continue")
    console.expect("demo> ")
    console.send("busy\r")
    stop = mi.stopped()
    assert stop["reason"] == "watchpoint-trigger"
    assert (stop["value"]["old"], stop["value"]["new"]) == ("0", "1")
    assert stop["frame"]["func"] == "demo_busy_loop"
    mi("-target-disconnect")
    console.send("x")
    console.expect("demo_counter is ")


def test_interrupt(svsmd: Start, mi: Mi) -> None:
    machine = svsmd("demo")
    console = machine.console()
    console.expect("demo> ")
    mi("-gdb-set mi-async on")
    mi(f"-target-select remote 127.0.0.1:{machine.gdb_port}")
    mi("-exec-continue")
    while True:
        mi("-exec-interrupt --all")
        if mi.stopped().get("signal-name") == "SIGINT":
            break
    mi("-target-disconnect")
    console.send("svsm\r")
    console.expect("demo> ")
