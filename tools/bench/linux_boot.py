# SPDX-License-Identifier: MIT
"""A stock Linux kernel from the command to its shell, beside a plain VM of QEMU's."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import Final

from tools.apt_packages import AptError
from tools.bench.gdb_stub import QEMU_MISSING
from tools.bench.linux_vm import PEER, Images, LinuxVm, linux_images
from tools.bench.registry import SLOW_ROUNDS, Bound, Result, in_turns, register
from tools.make_initrd import READY

BOOTS: Final = (
    ("a stock Debian kernel, unpacked by the host", (), Bound(1.2, at_most=True)),
    (
        "a stock Debian kernel, unpacked by itself",
        ("--decompress=guest",),
        Bound(2.0, at_most=True),
    ),
)
"""What is booted: its name, svsmd's options for it, and the bound."""


def _boot(images: Images, name: str, options: Sequence[str], bound: Bound) -> list[Result]:
    commands = images.both(*options)
    peaks: list[list[float]] = [[] for _ in commands]

    def seconds(index: int) -> float:
        begin = time.perf_counter()
        with LinuxVm(commands[index]) as vm:
            vm.expect(READY)
            taken = time.perf_counter() - begin
            peaks[index].append(vm.peak_mib)
        return taken

    figures = in_turns(
        *(partial(seconds, index) for index in range(len(commands))),
        rounds=SLOW_ROUNDS,
        warm_up=False,
    )
    present = len(commands) > 1
    return [
        Result(
            name=what,
            unit=unit,
            figures=measured[0],
            peer=PEER,
            peer_figures=measured[1] if present else (),
            bound=limit,
            note="" if present else QEMU_MISSING,
        )
        for what, unit, measured, limit in (
            (name, "s", figures, bound),
            (f"peak memory of {name}", "MiB", peaks, None),
        )
    ]


@register("linux")
def linux() -> list[Result]:
    """Linux under the SVSM, from the command to its shell."""
    try:
        with linux_images() as images:
            return [result for boot in BOOTS for result in _boot(images, *boot)]
    except (AptError, OSError) as error:
        return [Result(name="Linux boot", unit="s", note=f"no kernel: {error}")]
