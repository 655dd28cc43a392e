# SPDX-License-Identifier: MIT
"""Attestation out of a stock Linux: its own driver asks, and a relying party outside verifies."""

import re
import struct
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.linux_shell import BOOT_SECONDS, PROMPT
from tests.svsmd_process import Console, Linux, SvsmdProcess
from tests.verifier import Chain
from tools.apt_packages import AptError
from tools.sev_guest_initrd import sev_guest_initrd

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(600)]

Start = Callable[..., SvsmdProcess]

POWER_ON = 1_767_225_600
DRIVER = "/lib/modules/06-sev-guest.ko"
TSM = "/sys/kernel/config/tsm/report/one"

INVALID_PARAM = 0x16
EIO = 5
INVALID_LENGTH = 1 << 32
TABLE_PAGES = 2

RESULT = re.compile(
    r"^(status|report|certificates|key|errno|exitinfo2|needed) ([0-9a-fx]+)$", re.MULTILINE
)

MEASUREMENT = slice(0x90, 0xC0)
REPORT_DATA = slice(0x50, 0x90)
SAME_IN_ALL = [slice(0x00, 0x30), slice(0x34, 0x50), slice(0x90, 0x2A0)]
"""Of two reports of one guest; VMPL, REPORT_DATA and signature differ."""


@pytest.fixture(scope="session")
def sev_guest_linux(linux: Linux, tmp_path_factory: pytest.TempPathFactory) -> Linux:
    """The kernel, and an initrd with its SEV guest driver and a program for it."""
    path = tmp_path_factory.mktemp("sev-guest") / "initrd.cpio"
    try:
        path.write_bytes(sev_guest_initrd(linux.kernel))
    except (AptError, OSError) as error:
        pytest.skip(f"no SEV guest driver to load: {error}")
    return Linux(linux.kernel, path)


class Guest:
    """A shell in the guest.

    Attributes:
        requests: messages that the processor has answered, or that cost a sequence number.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self.requests = 0
        console.expect(r"SVMBOOT: shell", BOOT_SECONDS)
        console.expect(PROMPT)
        # Messages of the kernel would get between the lines of programs.
        self.shell("dmesg -n 1")
        self.shell("echo 'module sev_guest +p' > /proc/dynamic_debug/control")

    def try_shell(self, command: str) -> tuple[int, str]:
        """Exit code and output of a command, its echo included."""
        before = len(self._console.transcript)
        self._console.send(f"{command}; echo exit $?\r")
        code = int(self._console.expect(r"^exit (\d+)$")[1])
        self._console.expect(PROMPT)
        return code, self._console.transcript[before:]

    def shell(self, command: str) -> str:
        """Output of a command that has to succeed."""
        code, output = self.try_shell(command)
        assert code == 0, output
        return output

    def ask(self, command: str, code: int = 0) -> dict[str, str]:
        """What tests/data/guest/snp_report.c prints, by name."""
        self.requests += 1
        got, output = self.try_shell(f"snp_report {command}")
        assert got == code, output
        return dict(RESULT.findall(output))

    def report(self, data: bytes, vmpl: int) -> bytes:
        """A report that has to be given."""
        answer = self.ask(f"report {data.hex()} {vmpl}")
        assert int(answer["status"], 0) == 0
        report = bytes.fromhex(answer["report"])
        assert report[REPORT_DATA] == data
        assert struct.unpack_from("<I", report, 0x30) == (vmpl,)
        return report

    def extended(self, data: bytes, vmpl: int, pages: int) -> tuple[bytes, bytes]:
        """A report that has to be given, and the certificate table."""
        answer = self.ask(f"extended {data.hex()} {vmpl} {pages}")
        assert int(answer["status"], 0) == 0
        return bytes.fromhex(answer["report"]), bytes.fromhex(answer["certificates"])

    def key(self, *, root: int = 0, fields: int = 0, vmpl: int, svn: int = 0, tcb: int = 0) -> str:
        """A derived key that has to be given."""
        answer = self.ask(f"key {root} {fields:#x} {vmpl} {svn} {tcb:#x}")
        assert int(answer["status"], 0) == 0
        assert any(bytes.fromhex(answer["key"]))
        return answer["key"]

    def refused(self, command: str) -> None:
        """A request that the processor answers with INVALID_PARAM, and with nothing else."""
        answer = self.ask(command)
        assert int(answer.pop("status"), 0) == INVALID_PARAM
        (value,) = answer.values()
        assert not any(bytes.fromhex(value))

    def sequence_numbers(self) -> list[int]:
        """Of the requests that the driver has made so far."""
        return [int(n) for n in re.findall(r"request \[seqno (\d+) type", self.shell("dmesg"))]


def check_reports(guest: Guest, vmpl: int) -> tuple[list[bytes], Chain]:
    """Ask for reports in every way; they are returned with the chain that came with one."""
    reports = [guest.report(bytes([n]) * 64, vmpl) for n in (0x00, 0xA5)]
    reports += [guest.report(bytes(64), lower) for lower in range(vmpl + 1, 4)]
    for other in (*range(vmpl), 4, 0xFFFF_FFFF):
        guest.refused(f"report {bytes(64).hex()} {other}")

    # Too small a buffer: the driver learns how many pages it takes, and the message is used up.
    answer = guest.ask(f"extended {bytes(64).hex()} {vmpl} {TABLE_PAGES - 1}", code=1)
    assert int(answer["errno"]) == EIO
    assert int(answer["exitinfo2"], 0) == INVALID_LENGTH
    assert int(answer["needed"]) == TABLE_PAGES * 4096
    report, table = guest.extended(b"\x5a" * 64, vmpl, TABLE_PAGES)
    chain = Chain.of_table(table)
    # A larger buffer is as good.
    again, same_table = guest.extended(b"\x5a" * 64, vmpl, TABLE_PAGES + 1)
    assert again == report
    assert same_table[: len(table)] == table
    return [*reports, report], chain


def check_keys(guest: Guest, vmpl: int) -> None:
    first = guest.key(vmpl=vmpl)
    assert guest.key(vmpl=vmpl) == first
    others = [
        guest.key(vmpl=3, fields=8),
        guest.key(vmpl=vmpl, fields=8),
        guest.key(vmpl=vmpl, fields=0x3F),
        guest.key(vmpl=vmpl, root=1),
    ]
    assert len({first, *others}) == 5
    guest.refused(f"key 0 0 {vmpl} 1 0")
    guest.refused(f"key 0 0x40 {vmpl} 0 0")
    guest.refused(f"key 0 0x20 {vmpl} 0 0xffffffffffffffff")
    guest.refused("key 0 0 4 0 0")
    for other in range(vmpl):
        guest.refused(f"key 0 0 {other} 0 0")


def check_configfs(guest: Guest, chain: Chain) -> None:
    """The interface that is the same for all vendors' guests."""
    data = bytes(range(64))
    guest.shell("mount -t configfs configfs /sys/kernel/config")
    guest.shell(f"mkdir {TSM}")
    # The kernel starts with privilege level 0 and refuses it below the floor.
    guest.shell(f"cat {TSM}/privlevel_floor > {TSM}/privlevel")
    guest.shell(f"echo {data.hex()} | xxd -r -p > {TSM}/inblob")
    assert "sev_guest" in guest.shell(f"cat {TSM}/provider")

    def blob(name: str) -> bytes:
        output = guest.shell(f"xxd -p {TSM}/{name}")
        digits = "".join(re.findall(r"^[0-9a-f]+$", output, re.MULTILINE))
        assert digits, output
        return bytes.fromhex(digits)

    guest.requests += 1
    report, table = blob("outblob"), blob("auxblob")
    assert report[REPORT_DATA] == data
    chain.verify_report(report)
    assert Chain.of_table(table) == chain
    # The driver can only come back when there are no requests left.
    guest.shell(f"rmdir {TSM}")


def check_keys_of_other_levels(guest: Guest, vmpl: int) -> None:
    """VMPCKs above the guest's own level are zero in its secrets page, and the driver sees it."""
    for other in range(vmpl):
        guest.shell("rmmod sev-guest")
        code, _ = guest.try_shell(f"insmod {DRIVER} vmpck_id={other}")
        assert code != 0
        guest.shell(f"dmesg | grep 'Empty VMPCK{other} communication key'")
        assert guest.try_shell("ls /dev/sev-guest")[0] != 0
        guest.shell(f"insmod {DRIVER} dyndbg=+p")
        guest.report(bytes(64), vmpl)
    assert guest.sequence_numbers() == [2 * n + 1 for n in range(guest.requests)]
    if vmpl == 3:
        return
    # A key below it works: for that level, with sequence numbers of its own.
    guest.shell("rmmod sev-guest")
    guest.shell(f"insmod {DRIVER} vmpck_id=3 dyndbg=+p")
    guest.report(bytes(64), 3)
    guest.refused(f"report {bytes(64).hex()} {vmpl}")
    assert guest.sequence_numbers()[-2:] == [1, 3]


@pytest.mark.parametrize(
    ("vmpl", "options"), [(2, ()), (0, ("--no-svsm",))], ids=["under-an-svsm", "without-one"]
)
def test_attestation(
    svsmd: Start,
    svsmd_program: Path,
    sev_guest_linux: Linux,
    vmpl: int,
    options: tuple[str, ...],
) -> None:
    launched = [
        f"--kernel={sev_guest_linux.kernel}",
        f"--initrd={sev_guest_linux.initrd}",
        "--append=console=ttyS0",
        *options,
    ]
    machine = svsmd(*launched, "--seed=5e5", f"--rtc={POWER_ON}")
    console = machine.console()
    guest = Guest(console)
    assert f"using VMPCK{vmpl} communication key" in guest.shell("dmesg | grep 'SEV guest'")

    reports, chain = check_reports(guest, vmpl)
    chain.verify(datetime.fromtimestamp(POWER_ON, UTC))
    measure = [str(svsmd_program), "measure", *launched]
    digest = subprocess.run(measure, check=True, capture_output=True, text=True).stdout.strip()
    for report in reports:
        chain.verify_report(report)
        assert report[MEASUREMENT].hex() == digest
        assert [report[part] for part in SAME_IN_ALL] == [reports[0][part] for part in SAME_IN_ALL]
    check_keys(guest, vmpl)
    check_configfs(guest, chain)
    assert guest.sequence_numbers() == [2 * n + 1 for n in range(guest.requests)]
    check_keys_of_other_levels(guest, vmpl)

    console.send("poweroff -f\r")
    assert machine.wait() == 0, machine.stderr
    for bad in ("Oops", "BUG:", "Call Trace", "WARNING: CPU"):
        assert bad not in console.transcript, console.transcript
