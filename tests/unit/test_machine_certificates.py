# SPDX-License-Identifier: MIT
"""The certificates that a machine's host has: of its chip, its seed and its date."""

from datetime import UTC, datetime, timedelta

import pytest

from svsmd import machine
from svsmd.config import DEMO_RTC, MIB, MachineConfig
from svsmd.host.hypervisor import Hypervisor, HypervisorConfig
from svsmd.host.platform import Platform
from svsmd.host.silicon_port import HostSilicon
from tests.verifier import Chain


def test_certificates(monkeypatch: pytest.MonkeyPatch) -> None:
    configs: list[HypervisorConfig] = []

    def hypervisor(
        silicon: HostSilicon, platform: Platform, config: HypervisorConfig
    ) -> Hypervisor:
        configs.append(config)
        return Hypervisor(silicon, platform, config)

    monkeypatch.setattr(machine, "Hypervisor", hypervisor)

    def table(seed: bytes, rtc: int = DEMO_RTC) -> tuple[bytes, machine.Machine]:
        built = machine.build_machine(MachineConfig(seed=seed, rtc=rtc, memory=64 * MIB))
        return configs[-1].certificates(), built

    first, built = table(b"one")
    chain = Chain.of_table(first)
    power_on = datetime.fromtimestamp(DEMO_RTC, UTC)
    chain.verify(power_on)
    assert chain.hwid == built.silicon.psp.chip_id
    assert chain.vcek_key == built.silicon.psp.vcek_public_key
    assert table(b"one")[0] == first
    assert table(b"two")[0] != first
    Chain.of_table(table(b"one", 0)[0]).verify(power_on - timedelta(seconds=DEMO_RTC))
