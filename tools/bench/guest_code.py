# SPDX-License-Identifier: MIT
"""Builds the benchmarks' guest code and finds the programs they run beside svsmd."""

from __future__ import annotations

import functools
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from tools.build_images import FREESTANDING, LINK, ROOT, find_compiler

GUEST: Final = ROOT / "tools" / "bench" / "guest"
DEMO: Final = ROOT / "svsmd" / "guest" / "demo"

CODE: Final = 0x20_0000
"""Where `snippet` is linked to run."""
ARENA: Final = 0x40_0000
"""Where its data is: 8 MiB."""


def _link(output: Path, sources: tuple[Path, ...], *options: str) -> None:
    subprocess.run(
        [*find_compiler(), *FREESTANDING, f"-I{DEMO}", *LINK, *options, *sources, "-o", output],
        check=True,
    )


@functools.cache
def snippet(*names: str) -> bytes:
    """A flat binary for `CODE`: start.S and the sources of these names, of ours or the demo's."""
    sources = [GUEST / "start.S"]
    for name in names:
        ours = GUEST / name
        sources.append(ours if ours.is_file() else DEMO / name)
    with tempfile.TemporaryDirectory() as directory:
        output = Path(directory) / "snippet"
        _link(
            output, tuple(sources),
            f"-Wl,-Ttext={CODE:#x},--oformat=binary,--section-start=.text.start={CODE:#x}",
        )  # fmt: skip
        return output.read_bytes()


@functools.cache
def kernel(name: str) -> bytes:
    """An ELF that svsmd boots by its 64-bit entry and QEMU by its PVH note."""
    with tempfile.TemporaryDirectory() as directory:
        output = Path(directory) / "kernel"
        script = f"-Wl,-T,{GUEST / name}.lds,--no-warn-rwx-segments"
        _link(output, (GUEST / f"{name}.S",), "-no-pie", script)
        return output.read_bytes()


def kernel_symbols(name: str) -> dict[str, int]:
    """Addresses of the global symbols of kernel()."""
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(kernel(name))
        lines = subprocess.run(
            ["nm", "-g", file.name], check=True, capture_output=True, text=True
        ).stdout.splitlines()
    return {symbol: int(value, 16) for value, _, symbol in (line.split() for line in lines)}
