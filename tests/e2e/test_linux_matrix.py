# SPDX-License-Identifier: MIT
"""Debian's stock kernels, old and new, at VMPL0 and under the SVSM, on one and on several vCPUs.

Nothing on their command line but the console: randomisation, mitigations and clock sources are what
each kernel decides by itself.
"""

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from tests.linux_shell import Shell
from tests.svsmd_process import Linux, SvsmdProcess
from tools.apt_packages import AptError
from tools.fetch_kernel import MIN_VERSION, fetch_kernel, version_of
from tools.kernel_modules import fetch_modules
from tools.make_initrd import find_busybox, initrd
from tools.sev_guest_initrd import compile_program

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(600)]

Start = Callable[..., SvsmdProcess]

FILTER: Final = Path(__file__).parent.parent / "data/guest/socket_filter.c"
PACKETS: Final = 256
MIB: Final = 1 << 20

VMPL0, VMPL2 = ("--no-svsm",), ()
SUITES: Final = ("bookworm", "trixie", "sid")


@pytest.fixture(scope="session")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Linux]:
    """The kernel of a suite of Debian, and an initrd with modules and a program for its BPF."""
    known: dict[str, Linux] = {}

    def get(suite: str) -> Linux:
        if suite not in known:
            path = tmp_path_factory.mktemp("matrix") / f"{suite}.cpio"
            try:
                kernel = fetch_kernel(suite)
                programs = {FILTER.stem: compile_program(FILTER)}
                archive = initrd(find_busybox().read_bytes(), fetch_modules(kernel), programs)
            except (AptError, OSError) as error:
                pytest.skip(f"no kernel of {suite}: {error}")
            path.write_bytes(archive)
            known[suite] = Linux(kernel, path)
        return known[suite]

    return get


def check(shell: Shell, release: str, vmpl: int, ncpus: int) -> None:
    """What a user looks at first."""
    run = shell.run
    assert release in run("uname -r")
    messages = run("dmesg | grep -i -e sev -e svsm")
    assert re.search(r"Memory Encryption Features active: AMD SEV SEV-ES SEV-SNP", messages)
    # Older kernels know one level only, and do not name it.
    if version_of(release) >= MIN_VERSION:
        assert f"SNP running at VMPL{vmpl}." in messages
    assert re.search(rf"^{ncpus}$", run("nproc"), re.MULTILINE)
    cpuinfo = run("cat /proc/cpuinfo")
    assert re.findall(r"^processor\s*: (\d+)$", cpuinfo, re.MULTILINE) == [
        str(n) for n in range(ncpus)
    ]
    assert cpuinfo.count("svsmd emulated EPYC") == ncpus
    digest = hashlib.sha256(bytes(4 * MIB)).hexdigest()
    assert digest in run("dd if=/dev/zero bs=64k count=64 | sha256sum")
    assert re.search(r"^virtio_blk ", run("cat /proc/modules"), re.MULTILINE)
    assert re.search("^1$", run("cat /proc/sys/net/core/bpf_jit_enable"), re.MULTILINE)
    # It says how long the machine code is, and fails if there is none.
    assert f"{PACKETS // 2} of {PACKETS} passed" in run(FILTER.stem)
    clock = run("cat /sys/devices/system/clocksource/clocksource0/current_clocksource")
    assert re.search("^(kvm-clock|tsc|tsc-early)$", clock, re.MULTILINE)
    assert "unstable" not in run("dmesg | grep -e clocksource -e tsc")


@pytest.mark.parametrize("ncpus", [1, 2, 4])
@pytest.mark.parametrize(
    ("suite", "vmpl", "options"),
    [
        # 6.1 knows nothing of an SVSM.
        pytest.param("bookworm", 0, VMPL0, id="6.1-VMPL0"),
        pytest.param("trixie", 0, VMPL0, id="6.12-VMPL0"),
        pytest.param("trixie", 2, VMPL2, id="6.12-VMPL2"),
        pytest.param("sid", 0, VMPL0, id="7-VMPL0"),
        pytest.param("sid", 2, VMPL2, id="7-VMPL2"),
    ],
)
def test_boot(
    svsmd: Start,
    kernels: Callable[[str], Linux],
    suite: str,
    vmpl: int,
    options: tuple[str, ...],
    ncpus: int,
) -> None:
    linux = kernels(suite)
    shell = Shell(svsmd, linux, *options, f"--cpus={ncpus}")
    check(shell, linux.kernel.name.removeprefix("vmlinuz-"), vmpl, ncpus)
    shell.power_off()


@pytest.mark.parametrize(
    ("suite", "vmpl", "options"),
    [("bookworm", 0, VMPL0), ("trixie", 2, VMPL2), ("sid", 2, VMPL2)],
    ids=["6.1", "6.12", "7"],
)
def test_a_kernel_that_unpacks_itself_takes_a_random_place(
    svsmd: Start,
    kernels: Callable[[str], Linux],
    suite: str,
    vmpl: int,
    options: tuple[str, ...],
) -> None:
    linux = kernels(suite)
    places = set()
    for seed in ("11", "22"):
        shell = Shell(svsmd, linux, *options, "--cpus=2", "--decompress=guest", f"--seed={seed}")
        symbols = shell.run("grep ' _text$' /proc/kallsyms")
        match = re.search("^([0-9a-f]{16}) T _text$", symbols, re.MULTILINE)
        assert match is not None, symbols
        places.add(match[1])
        if seed == "11":
            check(shell, linux.kernel.name.removeprefix("vmlinuz-"), vmpl, 2)
        shell.power_off()
    assert len(places) == 2
