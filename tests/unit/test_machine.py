# SPDX-License-Identifier: MIT
"""The whole machine, without the daemon: launch, run, end, and what must not change a run."""

import itertools
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from svsmd import machine as machine_module
from svsmd.config import MIB, MachineConfig, OnReboot
from svsmd.errors import ExitCode, UserError
from svsmd.host.kvmclock import KVM_SYSTEM_TIME_NEW_MSR
from svsmd.machine import SLICE_SECONDS, Machine, build_machine
from svsmd.slice_end import DebugEvent, Ended, Idle, Stopped
from svsmd.snp.exits import DebugReason
from tests.hostile_guests import hostile_kernel

PROMPT = b"demo> "


def machine(**options: object) -> Machine:
    values: dict[str, object] = {"seed": b"test", "rtc": 1_767_225_600, "memory": 64 * MIB}
    return build_machine(MachineConfig(**(values | options)))  # type: ignore[arg-type]


class Driver:
    """Runs a machine as the daemon does with --clock virtual, and collects what it prints."""

    def __init__(self, target: Machine) -> None:
        self.machine = target
        self.console = bytearray()
        self.svsm = bytearray()
        target.on_console = self.console.extend
        target.on_svsm_console = self.svsm.extend

    def run(
        self, until: bytes | None = None, max_ticks: Callable[[], int] = lambda: 20_000_000
    ) -> Ended:
        """Until the machine ends, or until it has printed something and is idle."""
        for _ in range(100_000):
            match self.machine.run_slice(max_ticks()):
                case Ended() as end:
                    return end
                case Idle(None):
                    if until is not None and until in self.console:
                        return Ended(-1, "idle")
                    pytest.fail(f"idle for ever after {bytes(self.console[-200:])!r}")
                case Idle(int() as deadline):
                    self.machine.skip_idle(max(0, deadline - self.machine.clock_now))
                case Stopped() | DebugEvent(kind=DebugReason.PANIC):
                    pass
                case other:
                    pytest.fail(f"unexpected {other}")
        pytest.fail("the machine does not end")

    def type(self, text: str, until: bytes = PROMPT) -> Ended:
        """At the prompt: a command, up to the next prompt or the end."""
        self.console.clear()
        self.machine.console_write(text.encode() + b"\r")
        return self.run(until)


@pytest.fixture(scope="module")
def reference() -> tuple[int, bytes]:
    """Ticks and output of an undisturbed self-test."""
    driver = Driver(machine(append="selftest"))
    end = driver.run()
    assert (end.exit_code, end.reason) == (ExitCode.OK, "the guest powered off")
    return driver.machine.clock_now, bytes(driver.console)


def test_selftest_passes(reference: tuple[int, bytes]) -> None:
    _, output = reference
    summary = output.strip().splitlines()[-1]
    assert summary.startswith(b"selftest: ")
    assert summary.endswith(b" passed, 0 failed")
    assert int(summary.split()[1]) > 100
    assert b"FAIL" not in output


def test_slices_of_any_size_change_nothing(reference: tuple[int, bytes]) -> None:
    sizes = random.Random(1)
    driver = Driver(machine(append="selftest"))
    driver.run(max_ticks=lambda: int(10 ** sizes.uniform(1.5, 6)))
    assert (driver.machine.clock_now, bytes(driver.console)) == reference


def test_breakpoints_and_steps_change_nothing(reference: tuple[int, bytes]) -> None:
    target = machine(append="selftest")
    driver = Driver(target)
    for _ in range(300):
        target.step_vcpu(0)
    for _ in range(20):
        target.run_slice(50_011)
        for _ in range(25):
            target.step_vcpu(0)
    driver.run()
    assert target.clock_now == reference[0]


def test_two_vcpus_repeat_exactly() -> None:
    ends = []
    for size in (20_000_000, 7_919):
        driver = Driver(machine(append="selftest vcpu", cpus=2))
        end = driver.run(max_ticks=partial(int, size))
        assert end.exit_code == ExitCode.OK, bytes(driver.console[-500:])
        assert b"skipped" not in driver.console
        ends.append((driver.machine.clock_now, bytes(driver.console)))
    assert ends[0] == ends[1]


def test_the_seed_is_the_only_randomness() -> None:
    assert machine().launch_digest == machine().launch_digest
    assert machine(seed=b"one").silicon.encryption is not machine(seed=b"one").silicon.encryption
    page = bytes(4096)
    assert machine(seed=b"one").silicon.encryption.encrypt_page(0, page) != machine(
        seed=b"two"
    ).silicon.encryption.encrypt_page(0, page)


@pytest.mark.parametrize("vmpl", [0, 1, 2, 3])
def test_secure_tsc_is_on_all_vcpus(vmpl: int) -> None:
    ticks = set()
    for size in (20_000_000, 104_729):
        target = machine(secure_tsc=True, cpus=2, append="selftest", svsm=vmpl > 0, guest_vmpl=vmpl)
        driver = Driver(target)
        end = driver.run(max_ticks=partial(int, size))
        assert end.exit_code == ExitCode.OK, bytes(driver.console[-500:])
        for check in (b"ok tsc.msr\r\n", b"ok tsc.frequency\r\n", b"ok vcpu.start-stop\r\n"):
            assert check in driver.console
        ticks.add(target.clock_now)
    assert len(ticks) == 1


@pytest.mark.parametrize("options", [{}, {"svsm": False, "guest_vmpl": 0}])
def test_the_digest_covers_secure_tsc(options: dict[str, object]) -> None:
    digests = {machine(secure_tsc=secure, **options).launch_digest for secure in (False, True)}
    assert len(digests) == 2


def test_the_digest_covers_the_payload() -> None:
    assert machine(append="a").launch_digest != machine(append="b").launch_digest


def test_shell_talks_to_the_svsm() -> None:
    driver = Driver(machine())
    driver.run(PROMPT)
    driver.type("svsm")
    assert b"protocol 0, core: versions 1 to 1" in driver.console
    assert b"guest starts at" in driver.svsm


@pytest.mark.parametrize("vmpl", [1, 2, 3])
def test_guest_runs_at_the_vmpl_asked_for(vmpl: int) -> None:
    driver = Driver(machine(guest_vmpl=vmpl))
    driver.run(PROMPT)
    assert f"at VMPL {vmpl}".encode() in driver.console


def test_without_an_svsm_the_guest_is_vmpl0() -> None:
    driver = Driver(machine(svsm=False, guest_vmpl=0))
    driver.run(PROMPT)
    assert b"at VMPL 0" in driver.console


def test_power_off() -> None:
    driver = Driver(machine())
    driver.run(PROMPT)
    assert driver.type("off").exit_code == ExitCode.OK


def test_reboot_restarts() -> None:
    target = machine()
    digest = target.launch_digest
    driver = Driver(target)
    driver.run(PROMPT)
    before = target.clock_now
    assert target.platform.msrs.write(0, KVM_SYSTEM_TIME_NEW_MSR, 0x1000)
    driver.type("reboot")
    assert driver.console.count(b"svsmd demo guest") == 1
    assert target.clock_now > before
    assert target.launch_digest == digest
    assert target.platform.msrs.read(0, KVM_SYSTEM_TIME_NEW_MSR) == 0


@pytest.mark.parametrize("secure_tsc", [False, True])
def test_the_svsm_stays_when_its_guest_resets_the_machine(secure_tsc: bool) -> None:
    driver = Driver(machine(cpus=3, secure_tsc=secure_tsc))
    driver.run(PROMPT)
    target = driver.machine
    core, digest, silicon = target.core, target.launch_digest, target.silicon
    for count in (1, 2):
        before = target.clock_now
        driver.type("reboot")
        assert target.clock_now > before
        assert f"restart {count}\n".encode() in driver.svsm
    assert (target.core, target.launch_digest, target.silicon) == (core, digest, silicon)
    # All vCPUs of the new guest come up.
    driver.type("selftest", b" failed")
    assert b" 0 failed" in driver.console


def test_another_payload_is_not_started_again() -> None:
    driver = Driver(machine())
    driver.run(PROMPT)
    driver.machine._payload.append = "other words"
    end = driver.type("reboot")
    assert end.exit_code == ExitCode.GUEST_CRASHED
    assert end.reason.startswith("the SVSM asked to be terminated (vCPU 0, VMPL0)")
    assert "reason set 2, code 0x2: the host restarts its guest with other pages" in end.reason
    assert b"are not those of the launch" in driver.svsm


def test_reboot_can_be_the_end() -> None:
    driver = Driver(machine(on_reboot=OnReboot.EXIT))
    driver.run(PROMPT)
    end = driver.type("reboot")
    assert (end.exit_code, end.reason) == (ExitCode.OK, "the guest reset the machine")


def test_stop_request_ends_a_slice() -> None:
    target = machine(append="selftest")
    target.request_stop()
    assert target.run_slice() == Stopped()
    assert target.clock_now < 10_000


def hostile_machine(tmp_path: Path, name: str) -> Machine:
    kernel = tmp_path / "kernel"
    kernel.write_bytes(hostile_kernel(name))
    return machine(kernel=kernel, memory=1024 * MIB)


def test_a_guest_that_exits_uses_its_time_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its ticks take very long; the clock here moves with each look at it."""
    target = hostile_machine(tmp_path, "nothing but VMGEXIT")
    for _ in range(400):  # until it has booted
        target.run_slice()
    looks = itertools.count()
    monkeypatch.setattr(machine_module, "monotonic", lambda: next(looks) * SLICE_SECONDS / 100)
    before = target.clock_now
    assert target.run_slice() == Stopped()
    assert 0 < target.clock_now - before <= 101


def test_a_reset_ends_its_slice(tmp_path: Path) -> None:
    """What was asked of the old CPU, the new one does not know."""
    target = hostile_machine(tmp_path, "reset")
    hypervisor = target.hypervisor
    while target.hypervisor is hypervisor:
        assert target.run_slice() == Stopped()
    before = target.clock_now
    target.request_stop()
    assert target.run_slice() == Stopped()
    assert target.clock_now - before < 10_000


@pytest.mark.parametrize("memory", [32 * MIB, 3072 * MIB, 4096 * MIB])
def test_memory_sizes(memory: int) -> None:
    driver = Driver(machine(memory=memory))
    driver.run(PROMPT)


def test_as_many_vcpus_as_can_be() -> None:
    driver = Driver(machine(cpus=255))
    driver.run(PROMPT)
    assert b"panic" not in driver.svsm


def test_not_a_kernel(tmp_path: Path) -> None:
    path = tmp_path / "kernel"
    path.write_bytes(b"\x7fELF" + bytes(100))
    with pytest.raises(UserError):
        machine(kernel=path)
