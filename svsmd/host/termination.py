# SPDX-License-Identifier: MIT
"""What a guest means that asks to be terminated: reason sets and codes in words.

Spec: 56421, 2.3.1 (termination request) for set 0; Linux arch/x86/include/asm/sev-common.h for set
1, which is Linux's and which other guests have adopted; docs/protocols/core.md for set 2, that of
the SVSM that comes with svsmd.
"""

from typing import Final

REASONS: Final[dict[int, tuple[str, ...]]] = {
    0: (
        "it said no more",
        "it speaks no version of the GHCB protocol that is offered",
        "SEV-SNP, or a feature of it, is not supported",
    ),
    1: (
        "its GHCB could not be registered",
        "a page state change failed",
        "PVALIDATE failed",
        "it does not run at VMPL0 and cannot do without",
        "its CPUID table is not valid",
        "the hypervisor did not answer CPUID",
        "its secrets page is not valid",
        "it does not run at VMPL0, and no SVSM is announced",
        "the SVSM is announced to run the guest at VMPL0",
        "its calling area is not aligned to a page",
        "Secure TSC could not be set up",
        "the SVSM did not accept another calling area",
        "Secure AVIC failed",
    ),
    2: (
        "it panicked, and its log says why",
        "it took an exception",
        "the host restarts its guest with other pages than those of the launch",
        "its first stage finds launch info, CPUID page and SEV_STATUS that do not fit together",
        "its second stage and the host do not agree on a GHCB",
        "its second stage panicked, and its log says why",
        "a page of its memory is not as the host has to leave it",
    ),
}
"""By set and code."""


def describe(reason_set: int, reason_code: int) -> str:
    """The reason as numbers and, if they are known, in words."""
    numbers = f"reason set {reason_set}, code {reason_code:#x}"
    words = REASONS.get(reason_set, ())
    return f"{numbers}: {words[reason_code]}" if reason_code < len(words) else numbers
