# SPDX-License-Identifier: MIT
"""Static executables of the system's C libraries run at CPL 3 as they are."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.module_machine import ModuleMachine, program

SOURCE = Path(__file__).resolve().parent.parent / "libc" / "hello.c"
MUSL = Path("/usr/lib/x86_64-linux-musl")


def compile_with(output: Path, compiler: str, *options: str) -> bytes:
    """The program; skips the test where there is no such C library."""
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler}")
    probe = subprocess.run(
        [compiler, "-static", "-x", "c", "-o", output, "-"],
        input=b"int main(void) { return 0; }", capture_output=True, check=False,
    )  # fmt: skip
    if probe.returncode:
        pytest.skip(f"{compiler} finds no static C library")
    subprocess.run([compiler, "-O2", "-s", *options, "-o", output, SOURCE], check=True)
    return output.read_bytes()


@pytest.mark.parametrize(
    ("compiler", "options"),
    [
        ("musl-gcc", ["-static"]),
        # Its -static-pie is that of GNU's C library: an interpreter, and no relocation by itself.
        ("musl-gcc", ["-fPIE", "-static", "-nostartfiles", "-Wl,-pie", "-Wl,--no-dynamic-linker",
                      "-Wl,-z,text", f"{MUSL}/rcrt1.o", f"{MUSL}/crti.o", f"{MUSL}/crtn.o"]),
        pytest.param("gcc", ["-static"]),
        pytest.param("gcc", ["-static-pie"]),
    ],
    ids=["musl", "musl-pie", "glibc", "glibc-pie"],
)  # fmt: skip
def test_hello_world(tmp_path: Path, compiler: str, options: list[str]) -> None:
    code = compile_with(tmp_path / "hello", compiler, *options)
    machine = ModuleMachine(
        tmp_path,
        program("/bin/libc", environment=["A=1"]),
        files={"/bin/libc": code},
    )
    assert machine.run("libc: at exit") is None
    assert machine.lines_of("libc") == [
        "hello world from /bin/libc, 1 argument, [[program]], 42, 10.50, A is 1", "at exit"
    ]  # fmt: skip
