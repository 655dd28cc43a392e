# SPDX-License-Identifier: MIT
"""`info os vcpus`, `info os vmsa` and `info os ghcb`: vCPUs, their worlds, and what those exchange
with the host."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from svsmd.gdbstub.machine_view import MachineView, name_of
from svsmd.gdbstub.target import Table
from svsmd.gdbstub.world_view import ACTIVITY
from svsmd.snp.ghcb import Ghcb, GhcbExit, GhcbField

_FIELDS = tuple(name for name, field in vars(Ghcb).items() if isinstance(field, GhcbField))


def tables(view: MachineView) -> Mapping[str, Table]:
    """See the package."""
    machine = view.machine

    def vcpus() -> Iterator[Sequence[str]]:
        for vcpu in machine.hypervisor.vcpus:
            world = vcpu.world
            vmsa = None if world is None else view.vmsa(world)
            yield (
                str(vcpu.index),
                str(vcpu.apic_id),
                "" if world is None else str(int(vcpu.vmpl)),
                "not started" if world is None else ACTIVITY[world.activity],
                "" if vmsa is None else f"{vmsa.rip:#x}",
                "" if vmsa is None else str(vmsa.cpl),
                " ".join(str(int(each.vmpl)) for each in vcpu.worlds),
                "yes" if vcpu.index == machine.current_vcpu else "",
            )

    def vmsas() -> Iterator[Sequence[str]]:
        for vcpu in machine.hypervisor.vcpus:
            for world in vcpu.worlds:
                vmsa = view.vmsa(world)
                head = (
                    str(vcpu.index),
                    str(int(world.vmpl)),
                    f"{world.vmcb.vmsa_spa:#x}",
                    ACTIVITY[world.activity],
                )
                if vmsa is None:
                    yield (*head, *("",) * 9)
                    continue
                yield (
                    *head,
                    str(vmsa.cpl),
                    *(
                        f"{value:#x}"
                        for value in (
                            vmsa.rip, vmsa.rsp, vmsa.rflags, vmsa.cr0, vmsa.cr3, vmsa.cr4,
                            vmsa.efer, vmsa.guest_exitcode,
                        )
                    ),
                )  # fmt: skip

    def ghcbs() -> Iterator[Sequence[str]]:
        for vcpu in machine.hypervisor.vcpus:
            for world in vcpu.worlds:
                gpa = world.ghcb_gpa
                page = None if gpa is None else machine.silicon.host_page(gpa)
                head = (str(vcpu.index), str(int(world.vmpl)), f"{world.vmcb.ghcb_msr:#x}")
                if gpa is None:
                    yield (*head, "not registered", "", "", "", "")
                elif page is None:
                    yield (*head, f"{gpa:#x}", "", "", "", "the page is not shared")
                else:
                    yield (*head, f"{gpa:#x}", *_ghcb(Ghcb(page)))

    return {
        "vcpus": Table(
            "vCPUs",
            "vCPUs, the VMPL that each runs, and the VMPLs that have a VMSA",
            ("vcpu", "apic id", "vmpl", "state", "rip", "cpl", "worlds", "current"),
            vcpus,
        ),
        "vmsa": Table(
            "VMSAs",
            "Register state of each VMPL of each vCPU",
            ("vcpu", "vmpl", "spa", "state", "cpl", "rip", "rsp", "rflags", "cr0", "cr3", "cr4",
             "efer", "exit code"),
            vmsas,
        ),
        "ghcb": Table(
            "GHCBs",
            "GHCB MSR and registered GHCB of each world, with the fields that are marked valid",
            ("vcpu", "vmpl", "msr", "gpa", "version", "usage", "exit", "fields"),
            ghcbs,
        ),
    }  # fmt: skip


def _ghcb(page: Ghcb) -> Sequence[str]:
    code = page.get(Ghcb.sw_exit_code)
    values = ((name, page.get(getattr(Ghcb, name))) for name in _FIELDS)
    return (
        str(page.protocol_version),
        f"{page.ghcb_usage:#x}",
        "" if code is None else name_of(GhcbExit, code),
        " ".join(f"{name}={value:#x}" for name, value in values if value is not None),
    )
