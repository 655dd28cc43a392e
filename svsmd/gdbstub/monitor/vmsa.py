# SPDX-License-Identifier: MIT
"""`monitor vmsa`: the VMSAs of a vCPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from svsmd.gdbstub.machine_view import MachineView, number
from svsmd.gdbstub.target import MonitorCommand, TargetError
from svsmd.gdbstub.world_view import ACTIVITY

_FIELDS: Final = (
    ("rip", "rsp", "rflags", "cpl"),
    ("cr0", "cr3", "cr4", "efer"),
    ("sev_features", "vintr_ctrl", "guest_exitcode"),
)


def commands(view: MachineView) -> Mapping[str, MonitorCommand]:
    """See the package."""

    def vmsa(arguments: Sequence[str]) -> str:
        if len(arguments) > 1:
            raise TargetError("usage: vmsa [VCPU]")
        index = number(arguments[0]) if arguments else view.selected()[0].index
        vcpus = view.machine.hypervisor.vcpus
        if index >= len(vcpus):
            raise TargetError(f"there is no vCPU {index}")
        lines = []
        for world in vcpus[index].worlds:
            spa = world.vmcb.vmsa_spa
            mark = "*" if world is vcpus[index].world else " "
            lines.append(
                f"{mark} VMPL{int(world.vmpl)}: VMSA at {spa:#x}, {ACTIVITY[world.activity]}"
            )
            page = view.vmsa(world)
            if page is None:
                continue
            lines += [
                "    " + " ".join(f"{name} {getattr(page, name):#x}" for name in names)
                for names in _FIELDS
            ]
        return "\n".join(lines or [f"vCPU {index} has no VMSA"]) + "\n"

    return {"vmsa": MonitorCommand("[VCPU]", "VMSAs of a vCPU, registers up to date", vmsa)}
