# SPDX-License-Identifier: MIT
"""What programs inside a Linux guest get done, beside a plain VM of QEMU's."""

from __future__ import annotations

import subprocess
import time
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Final

from tools.apt_packages import AptError
from tools.bench.gdb_stub import QEMU_MISSING
from tools.bench.guest_code import GUEST
from tools.bench.linux_vm import PEER, LinuxVm, linux_images
from tools.bench.registry import SLOW_ROUNDS, Result, in_turns, register
from tools.make_initrd import READY
from tools.sev_guest_initrd import compile_program

PROGRAM: Final = GUEST / "linux_work.c"
PROMPT: Final = "# "
DATA: Final = "/data"
DATA_MIB: Final = 64


@dataclass(frozen=True, slots=True)
class Work:
    """One command of a guest's shell: what it does how often."""

    name: str
    command: str
    amount: int
    unit: str


WORK: Final = (
    Work("SHA-256 by busybox", f"sha256sum {DATA}", DATA_MIB, "MiB/s"),
    Work("fork, exit and wait", "linux_work fork 2000", 2000, "processes/s"),
    Work("system call", "linux_work syscall 3000000", 3_000_000, "calls/s"),
    Work("page fault of fresh memory", "linux_work fault 200000", 200_000, "faults/s"),
)


def _seconds(vm: LinuxVm, command: str) -> float:
    """Seconds that a command takes in a guest whose shell waits."""
    begin = time.perf_counter()
    # The echo of what is typed must not look like the end.
    vm.type(f"{command}; echo work do''ne: $?")
    vm.expect("work done: ")
    seconds = time.perf_counter() - begin
    status = vm.expect("\r\n")
    if status != "0":
        raise ValueError(f"{command!r} ended with {status} in the guest")
    return seconds


@register("linux-work")
def linux_work() -> list[Result]:
    """Programs in a Linux guest under the SVSM."""
    results = []
    try:
        programs = {PROGRAM.stem: compile_program(PROGRAM)}
        with linux_images(programs) as images, ExitStack() as stack:
            vms = [stack.enter_context(LinuxVm(command)) for command in images.both()]
            for vm in vms:
                vm.expect(READY)
                vm.expect(PROMPT)
                _seconds(vm, f"head -c {DATA_MIB}m /dev/zero > {DATA}")
            for work in WORK:
                sides = (partial(_seconds, vm, work.command) for vm in vms)
                seconds = in_turns(*sides, rounds=SLOW_ROUNDS)
                figures = [[work.amount / value for value in side] for side in seconds]
                results.append(
                    Result(
                        name=work.name,
                        unit=work.unit,
                        figures=figures[0],
                        peer=PEER,
                        peer_figures=figures[1] if len(vms) > 1 else (),
                        note="" if len(vms) > 1 else QEMU_MISSING,
                    )
                )
    except (AptError, OSError, subprocess.CalledProcessError) as error:
        return [Result(name="work in a Linux guest", unit="s", note=f"no guest: {error}")]
    return results
