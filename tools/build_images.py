# SPDX-License-Identifier: MIT
"""Build what svsmd has in native code: images, the archive of modules, the twins of hot paths.

    python tools/build_images.py [--cc CC] [demo] [stages] [svsm] [modules] [accel] [port_cells]

Same sources and same compiler give the same bytes: no build id, no dates, no paths of this machine.
A target that is newer than all its sources is left alone.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
# This runs by its path too, with nothing of the source tree in sys.path.
sys.path.insert(0, str(ROOT))
from tools.make_archive import collect, make_archive  # noqa: E402

# Guest code runs without an operating system, without a red zone (interrupts use its stack) and
# with general registers only (nobody saves the others for it).
FREESTANDING: Final = (
    "-std=gnu11",
    "-ffreestanding",
    "-mno-red-zone",
    "-mno-mmx",
    "-mno-sse",
    "-mgeneral-regs-only",
    "-fno-stack-protector",
    "-fcf-protection=none",
    "-fno-delete-null-pointer-checks",
    "-fno-strict-aliasing",
    "-g",
    "-O2",
    "-Wall",
    "-Wextra",
)
LINK: Final = (
    "-nostdlib",
    "-Wl,--build-id=none",
    "-Wl,-z,max-page-size=0x1000",
    "-Wl,-z,noexecstack",
)


FIXED: Final = (("-fno-pic",), ("-static",))
"""For the compiler and the linker: the image runs where it is linked."""
MOVABLE: Final = (
    ("-fpie", "-fvisibility=hidden"),
    ("-pie", "-Wl,--no-dynamic-linker", "-Wl,-z,text", "-Wl,-z,norelro"),
)
"""The image runs anywhere, or is relocated by what loads it."""


class BuildError(Exception):
    """The build cannot go on; the text is for people."""


@dataclass(frozen=True, slots=True)
class Image:
    """One ELF image: every .c and .S file of a directory, by that directory's linker script."""

    name: str
    directory: str
    linker_script: str
    code_model: str
    first: tuple[str, ...] = ()
    """Sources that are linked first, in this order; the rest follows by name."""
    flags: tuple[str, ...] = ()
    """Of the compiler, beside FREESTANDING."""
    movable: bool = False
    headers: str | None = None
    """Another directory where headers are looked for."""

    @property
    def output(self) -> Path:
        return ROOT / "svsmd" / "images" / f"{self.name}.elf"

    def sources(self) -> list[Path]:
        """What is compiled, in link order."""
        directory = ROOT / self.directory
        found = sorted(path.name for path in directory.iterdir() if path.suffix in {".c", ".S"})
        rest = [name for name in found if name not in self.first]
        return [directory / name for name in (*self.first, *rest)]

    def inputs(self) -> list[Path]:
        """All that the output depends on."""
        headers = [] if self.headers is None else (ROOT / self.headers).glob("*.h")
        return [
            *(path for path in (ROOT / self.directory).iterdir() if path.is_file()),
            *headers,
        ]


IMAGES: Final = (
    Image(
        "demo",
        "svsmd/guest/demo",
        "demo.lds",
        "small",
        first=(
            "start.S",
            # The order of the self-tests: what the others rest on comes first.
            "selftest_cpu.c",
            "selftest_fault.c",
            "selftest_ghcb.c",
            "selftest_psp.c",
            "selftest_irq.c",
            "selftest_svsm.c",
            "selftest_memory.c",
            "selftest_smp.c",
        ),
    ),
    Image(
        "stages",
        "svsmd/core/native/stages",
        "stages.lds",
        "small",
        first=("stage1.S", "entry.S"),
        movable=True,
        headers="svsmd/core/native",
    ),
    Image(
        "svsm",
        "svsmd/core/native",
        "svsm.lds",
        "small",
        first=("start.S",),
        movable=True,
        # The SVSM unwinds its own stacks (svsmd/core/backtrace).
        flags=(
            "-fno-omit-frame-pointer",
            "-mno-omit-leaf-frame-pointer",
            "-fno-optimize-sibling-calls",
        ),
    ),
)
LIBRARIES: Final = {
    "accel": ROOT / "svsmd" / "snp" / "native" / "accel.c",
    "port_cells": ROOT / "svsmd" / "host" / "native" / "port_cells.c",
}
"""Native twins of hot paths: target, and the first of the sources in a directory of its own; the
library has its name, and lies beside it."""
MODULES: Final = "svsmd/modules"
ARCHIVE: Final = ROOT / "svsmd" / "images" / "modules.tar"
"""All modules with their configuration, as the SVSM gets them."""
TARGETS: Final = (*(image.name for image in IMAGES), "modules", *LIBRARIES)
OUTPUTS: Final = (*(image.output for image in IMAGES), ARCHIVE)
"""What svsmd cannot do without."""


def find_compiler(cc: str | None = None) -> list[str]:
    """The compiler's command: ``cc``, or $CC, or ``cc``. Raises BuildError if it is not there."""
    command = shlex.split(cc or os.environ.get("CC") or "cc")
    if not command or shutil.which(command[0]) is None:
        raise BuildError(
            f"no C compiler: {' '.join(command) or 'CC'} is not found (apt install gcc, or set CC)"
        )
    return command


def run(command: Sequence[str]) -> None:
    """Run one command; its output is shown if it fails or warns."""
    # With C's own locale and a fixed date the compiler has nothing left to vary.
    environment = {**os.environ, "LC_ALL": "C", "SOURCE_DATE_EPOCH": "0"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    if done.stderr:
        sys.stderr.write(done.stderr)
    if done.returncode:
        raise BuildError(f"{command[0]} failed ({done.returncode}): {shlex.join(command)}")


def is_current(output: Path, inputs: Iterable[Path]) -> bool:
    """Whether ``output`` is newer than all ``inputs`` and this script."""
    if not output.is_file():
        return False
    made = output.stat().st_mtime_ns
    return all(path.stat().st_mtime_ns < made for path in (*inputs, Path(__file__)))


def build_image(image: Image, compiler: Sequence[str], output: Path | None = None) -> Path:
    """Compile and link one image; returns its path (default: where svsmd looks for it)."""
    target = output or image.output
    script = f"{image.directory}/{image.linker_script}"
    compile_flags, link_flags = MOVABLE if image.movable else FIXED
    common = (
        *FREESTANDING,
        *compile_flags,
        *image.flags,
        f"-mcmodel={image.code_model}",
        f"-ffile-prefix-map={ROOT}=.",
        f"-I{image.directory}",
        *(() if image.headers is None else (f"-I{image.headers}",)),
    )
    with tempfile.TemporaryDirectory(prefix="svsmd-build-") as scratch:

        def compile_one(source: Path) -> str:
            made = f"{scratch}/{source.name}.o"
            run([*compiler, *common, "-c", str(source.relative_to(ROOT)), "-o", made])
            return made

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(compile_one, image.sources()))
        linked = Path(scratch) / target.name
        run([*compiler, *LINK, *link_flags, f"-Wl,-T,{script}", *objects, "-o", str(linked)])
        install(linked, target)
    return target


def archive_inputs() -> list[Path]:
    """All that the archive depends on."""
    kinds = ("Makefile", "*.[chS]", "archive/**/*")
    return [path for kind in kinds for path in (ROOT / MODULES).rglob(kind) if path.is_file()]


def build_archive(compiler: Sequence[str], output: Path = ARCHIVE) -> Path:
    """Compile all modules, by the Makefile of their SDK, and pack them; returns the path."""
    if shutil.which("make") is None:
        raise BuildError("make is not found (apt install make)")
    with tempfile.TemporaryDirectory(prefix="svsmd-build-") as scratch:
        build = Path(scratch) / "bin"
        run(["make", "-s", "-C", MODULES, f"BUILD={build}", f"CC={shlex.join(compiler)}"])
        made = Path(scratch) / output.name
        made.write_bytes(make_archive(collect(ROOT / MODULES / "archive", build.iterdir())))
        install(made, output)
    return output


def library_sources(source: Path) -> list[Path]:
    """All that is compiled into the library of which this is the first source."""
    return [source, *sorted(path for path in source.parent.glob("*.c") if path != source)]


def build_library(source: Path, compiler: Sequence[str], output: Path | None = None) -> Path:
    """Compile a native library; returns its path (default: beside its source)."""
    target = output or source.with_suffix(".so")
    with tempfile.TemporaryDirectory(prefix="svsmd-build-") as scratch:
        made = Path(scratch) / target.name
        flags = ("-O2", "-shared", "-fPIC", "-Wall", "-Wextra", f"-ffile-prefix-map={ROOT}=.")
        names = [str(path.relative_to(ROOT)) for path in library_sources(source)]
        run([*compiler, *flags, "-Wl,--build-id=none", *names, "-o", str(made)])
        install(made, target)
    return target


def install(made: Path, target: Path) -> None:
    """Put a file in its place in one step: who has the old one open or mapped keeps it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.copyfile(made, temporary)
    temporary.replace(target)


def build(targets: Iterable[str] = TARGETS, cc: str | None = None) -> list[Path]:
    """Build what is not current; returns the files that were made. Raises BuildError."""
    wanted = set(targets)
    made = []
    for image in IMAGES:
        if image.name in wanted and not is_current(image.output, image.inputs()):
            made.append(build_image(image, find_compiler(cc)))
    if "modules" in wanted and not is_current(ARCHIVE, archive_inputs()):
        made.append(build_archive(find_compiler(cc)))
    for name, source in LIBRARIES.items():
        inputs = [*library_sources(source), *source.parent.glob("*.h")]
        if name in wanted and not is_current(source.with_suffix(".so"), inputs):
            made.append(build_library(source, find_compiler(cc)))
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; 0 = done, 1 = failed with one line that says why."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--cc", help="C compiler (default: $CC, or cc)")
    options = parser.parse_args(arguments)
    unknown = set(options.targets) - set(TARGETS)
    if unknown:
        parser.error(f"no target is called {', '.join(sorted(unknown))}")
    try:
        for path in build(options.targets or TARGETS, options.cc):
            print(path.relative_to(ROOT))
    except BuildError as error:
        print(f"build_images: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
