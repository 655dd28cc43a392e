# SPDX-License-Identifier: MIT
"""The host's side of the GHCB MSR protocol: requests in the MSR itself, without a GHCB page.

Spec: 56421, 2.3.1 (GHCB MSR protocol).
"""

from __future__ import annotations

from typing import Final, assert_never

from svsmd.host.outcome import Crashed, End, Terminated
from svsmd.host.page_state_change import PageStateChange
from svsmd.host.vcpu import INITIAL_GHCB_MSR, Activity, Vcpu, World
from svsmd.snp import ghcb_msr
from svsmd.snp.cpuid_policy import cpuid
from svsmd.snp.rmp import Rmp

MSR_PROTOCOL_ERROR: Final = 1
"""Error of a refused page state change or VMPL switch: any value but 0 (56421, 2.3.1)."""

HV_FEATURES: Final = (
    ghcb_msr.HvFeature.SNP
    | ghcb_msr.HvFeature.SNP_AP_CREATION
    | ghcb_msr.HvFeature.SNP_MULTI_VMPL
    | ghcb_msr.HvFeature.SNP_PSC
)
"""What this hypervisor offers. Injection stays the plain one: no #HV, no alternate injection."""


class GhcbMsrExits:
    """Answers requests of the GHCB MSR protocol."""

    def __init__(self, rmp: Rmp, page_state: PageStateChange, ncpus: int) -> None:
        self._rmp: Final = rmp
        self._page_state: Final = page_state
        self._ncpus: Final = ncpus

    def handle(self, vcpu: Vcpu, world: World) -> End | None:
        """Answer the request in the MSR of `world`, or return how the machine ends.

        The MSR must not name a GHCB page.
        """
        vmcb = world.vmcb
        match ghcb_msr.parse_request(vmcb.ghcb_msr):
            case ghcb_msr.SevInfoRequest():
                vmcb.ghcb_msr = INITIAL_GHCB_MSR
            case ghcb_msr.CpuidRequest(function, register):
                # The protocol has no room for an index: it is 0.
                leaf = cpuid(function, 0, vcpu.apic_id, self._ncpus)
                vmcb.ghcb_msr = ghcb_msr.cpuid_response(leaf[register])
            case ghcb_msr.ApResetHold():
                # Answered when a SIPI comes.
                vcpu.wait(Activity.RESET_HOLD_BY_MSR)
            case ghcb_msr.PreferredGpa():
                vmcb.ghcb_msr = ghcb_msr.preferred_gpa_response()
            case ghcb_msr.RegisterGpa(gfn):
                vmcb.ghcb_msr = ghcb_msr.register_gpa_response(self._register(world, gfn))
            case ghcb_msr.PageStateChange(gfn, operation):
                done = self._page_state.handle_one(gfn, operation)
                vmcb.ghcb_msr = ghcb_msr.psc_response(0 if done else MSR_PROTOCOL_ERROR)
            case ghcb_msr.RunVmpl(vmpl):
                done = vcpu.run_vmpl(vmpl)
                vmcb.ghcb_msr = ghcb_msr.run_vmpl_response(0 if done else MSR_PROTOCOL_ERROR)
            case ghcb_msr.HvFeatures():
                vmcb.ghcb_msr = ghcb_msr.hv_features_response(HV_FEATURES)
            case ghcb_msr.Terminate(reason_set, reason_code):
                return Terminated(reason_set, reason_code, vcpu.index, world.vmpl)
            case ghcb_msr.Malformed(value):
                if value & 0xFFF == ghcb_msr.GhcbInfo.PSC_REQUEST:
                    vmcb.ghcb_msr = ghcb_msr.psc_response(MSR_PROTOCOL_ERROR)
                else:
                    return Crashed(
                        f"vCPU {vcpu.index} at VMPL{world.vmpl}: GHCB MSR {value:#x} is no request"
                    )
            case ghcb_msr.GhcbGpa():
                raise ValueError("a GHCB page, not a request in the MSR")
            case unreachable:
                assert_never(unreachable)
        return None

    def _register(self, world: World, gfn: int) -> int:
        """Remember the GHCB of `world`; returns the page number, or that it is refused.

        Whether the page is shared counts when it is used: a guest may register it before.
        """
        if not self._rmp.covers(gfn):
            return ghcb_msr.GHCB_GPA_REFUSED
        world.register_ghcb(gfn)
        return gfn
