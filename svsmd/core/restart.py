# SPDX-License-Identifier: MIT
"""A new start of the guest under the SVSM that stays.

When the guest has reset its machine, the host does not run it any more: RUN_VMPL fails. The SVSM
then looks whether the host offers a restart: files of fw_cfg with the pages of the guest's launch,
and the number of the restart. In this order:

1. No vCPU serves the guest any more: their worlds are taken from them, and calls that are under
   way are waited for.
2. The guest's VMSAs become ordinary pages. One that a vCPU still runs cannot: the SVSM waits for
   the host to stop it.
3. The guest gets all its memory back, deposits too, valid and zero. A page that the guest has not
   shared must still be the one that was validated: it is zeroed, but not validated again, for a
   host that has put another one in its place could otherwise switch between the two. Shared ones
   are validated; the host has made them private meanwhile.
4. The pages of the launch are copied from the host and hashed where the host cannot change them.
   Others than those that the launch info has measured end the machine.
5. Secrets and CPUID page are copied as at launch. The numbers of the guest's messages go on.
6. The boot CPU gets its calling area and VMSA as at launch.

Spec: none of AMD's; fw_cfg is QEMU's (docs/specs/fw_cfg.rst), 24593, 15.36.6 (page validation).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Final

from svsmd.core import costs
from svsmd.core.access import PERM_ALL, flush_tlb, load, mapped, revoke, rmpadjust, store, zero
from svsmd.core.boot import (
    VMSA_OF_SVSM,
    GuestSequenceNumbers,
    Machine,
    copy_pages,
    give_access,
    make_guest,
    pieces,
    small_pages,
    validate,
)
from svsmd.core.fw_cfg import FwCfg, FwCfgError, FwCfgFile
from svsmd.core.gate import Handler, Preempt, SvsmPanic
from svsmd.core.launch_info import LaunchRangeFlags, ValidatedRange
from svsmd.core.log import CoreLog
from svsmd.core.percpu import PerCpu
from svsmd.core.request_loop import set_svme
from svsmd.snp.rmp import RmpReturn
from svsmd.snp.secrets_page import SecretsPage
from svsmd.snp.types import PAGE_SHIFT, PAGE_SIZE, Gpa, PageSize

RESTART_FILE: Final = "opt/org.svsmd/restart"
"""How often the guest has reset the machine, 4 bytes, little-endian."""
PAYLOAD_FILE: Final = "opt/org.svsmd/payload/{}"
"""The pages of one range of the guest's launch, numbered as in the launch info, from 0."""
_COUNT_SIZE: Final = 4


class RestartRefused(Exception):
    """The guest cannot start again; the machine goes on without it."""


class PayloadChanged(SvsmPanic):
    """The host offers other pages than those that were measured at launch."""


class Restarter:
    """Restarts the guest of `machine` when the host offers it; `cpus` are all vCPUs."""

    def __init__(self, machine: Machine, cpus: Mapping[int, PerCpu], log: CoreLog) -> None:
        self._machine = machine
        self._cpus = cpus
        self._log = log
        self._fw_cfg: FwCfg | None = None
        self._done = 0

    def offered(self, cpu: PerCpu) -> Handler[bool]:
        """Look for an offer after the host has refused to run the guest; take it if there is one.

        Returns whether there is a guest to run again. Raises PayloadChanged.
        """
        try:
            if self._fw_cfg is None:
                self._fw_cfg = yield from FwCfg.open(cpu, self._machine.maps)
            files = yield from self._fw_cfg.directory(cpu)
            count = yield from self._count(cpu, self._fw_cfg, files)
            if count == self._done:
                return False
            self._log.write(f"the guest starts again: restart {count}")
            yield from self._restart(cpu, self._fw_cfg, files)
        except (FwCfgError, RestartRefused) as error:
            self._log.write(f"no restart: {error}")
            return False
        self._done = count
        return True

    @staticmethod
    def _count(cpu: PerCpu, fw_cfg: FwCfg, files: Mapping[str, FwCfgFile]) -> Handler[int]:
        file = files.get(RESTART_FILE)
        if file is None or file.size != _COUNT_SIZE:
            raise FwCfgError("the host offers none")
        return int.from_bytes((yield from fw_cfg.read(cpu, file)), "little")

    def _restart(self, cpu: PerCpu, fw_cfg: FwCfg, files: Mapping[str, FwCfgFile]) -> Handler[None]:
        machine = self._machine
        yield from self._stop_serving(cpu)
        numbers = yield from self._sequence_numbers(cpu)
        yield from self._take_vmsas_back(cpu)
        self._return_deposits(cpu)
        for owned in machine.memory.owned:
            for gpa, size in pieces(owned):
                with mapped(cpu, gpa, size):
                    yield from self._renew(cpu, gpa, size)
                yield Preempt()
            npages = len(owned) >> PAGE_SHIFT
            machine.memory.validated.set(cpu, owned.start, npages, True)
        flush_tlb(cpu)
        payload = [v for v in machine.launch.validated if not v.flags & LaunchRangeFlags.SVSM]
        for number, expected in enumerate(payload):
            file = files.get(PAYLOAD_FILE.format(number))
            try:
                yield from self._load(cpu, fw_cfg, file, expected)
            except FwCfgError as error:
                raise PayloadChanged(str(error)) from error
        # They lie within the payload's pages, or overwrite them as at launch.
        yield from copy_pages(cpu, machine, numbers)
        yield from make_guest(cpu, machine)
        self._log.write(f"guest starts at {machine.launch.entry.rip:#x}")

    def _stop_serving(self, cpu: PerCpu) -> Handler[None]:
        """After this no vCPU has a world, and none can get one."""
        while True:
            for each in self._cpus.values():
                each.world = None
            if not self._machine.memory.is_any_locked(cpu):
                return
            # A call under way may have given one of them a world.
            yield Preempt()

    def _sequence_numbers(self, cpu: PerCpu) -> Handler[GuestSequenceNumbers]:
        """Those in the guest's secrets page, if it is still there."""
        gpa = self._machine.launch.guest_secrets
        if not self._machine.memory.validated.is_validated(cpu, gpa):
            return GuestSequenceNumbers()
        return GuestSequenceNumbers.of(SecretsPage.copy_of((yield from load(cpu, gpa, PAGE_SIZE))))

    def _take_vmsas_back(self, cpu: PerCpu) -> Handler[None]:
        memory, vmpl = self._machine.memory, self._machine.guest_vmpl
        for world in memory.worlds:
            yield from set_svme(cpu, world.vmsa, False)
            attributes = VMSA_OF_SVSM if world.svsm_owned else PERM_ALL | vmpl
            while code := (yield from rmpadjust(cpu, world.vmsa, PageSize.SIZE_4K, attributes)):
                if code != RmpReturn.FAIL_INUSE:
                    raise SvsmPanic(f"RMPADJUST of the VMSA at {world.vmsa:#x} fails with {code}")
                yield Preempt()
            memory.unregister(world)

    def _return_deposits(self, cpu: PerCpu) -> None:
        """Make what the last guest has deposited memory of the guest again, without any right yet.

        The next one knows nothing of it. Raises RestartRefused if the SVSM uses some of it.
        """
        pages, validated = self._machine.pages, self._machine.memory.validated
        while (gpa := pages.withdraw(cpu)) is not None:
            self._machine.maps.unmap_own(cpu, gpa, 1)
            validated.set(cpu, gpa, 1, True)
        if pages.deposited:
            raise RestartRefused(f"{pages.deposited} pages of the guest's deposits are in use")

    def _renew(self, cpu: PerCpu, gpa: int, size: PageSize) -> Handler[None]:
        """Make a page of the guest valid, zero, and open to the guest's VMPL alone."""
        validated, vmpl = self._machine.memory.validated, self._machine.guest_vmpl
        if validated.all_validated(cpu, gpa, size.npages):
            yield from zero(cpu, gpa, size)
            code = yield from revoke(cpu, gpa, size, vmpl + 1)
            if code == RmpReturn.FAIL_SIZEMISMATCH:
                yield from self._renew_small(cpu, gpa)
                return
            if code != RmpReturn.SUCCESS:
                raise SvsmPanic(f"RMPADJUST of page {gpa:#x} fails with {code}")
        elif size is PageSize.SIZE_2M and validated.any_validated(cpu, gpa, size.npages):
            yield from self._renew_small(cpu, gpa)
            return
        else:
            yield from validate(cpu, gpa, size)
        yield from give_access(cpu, gpa, size, vmpl)

    def _renew_small(self, cpu: PerCpu, gpa: int) -> Handler[None]:
        for page in small_pages(gpa):
            yield from self._renew(cpu, page, PageSize.SIZE_4K)

    def _load(
        self, cpu: PerCpu, fw_cfg: FwCfg, file: FwCfgFile | None, expected: ValidatedRange
    ) -> Handler[None]:
        """Copy the pages of one range from the host, and check them."""
        nbytes = expected.npages * PAGE_SIZE
        if file is None or file.size != nbytes:
            raise PayloadChanged(f"the host does not offer the {nbytes} bytes of {expected.gpa:#x}")
        digest = hashlib.sha256()
        gpa = expected.gpa
        for key, size in fw_cfg.pieces(file):
            data = yield from fw_cfg.piece(cpu, key, size)
            cpu.port.charge(costs.HASH_PAGE * size // PAGE_SIZE)
            digest.update(data)
            yield from store(cpu, gpa, data)
            gpa = Gpa(gpa + size)
        if digest.digest() != expected.sha256:
            raise PayloadChanged(f"the pages at {expected.gpa:#x} are not those of the launch")
