# SPDX-License-Identifier: MIT
"""Small kernels that keep the machine as busy as a guest can.

Each one runs at VMPL2 under the SVSM in a machine of 1 GiB. It is entered as svsmd enters an ELF
kernel: in 64-bit mode at CPL 0, interrupts off, on identity page tables of 2 MiB pages, with a
stack and without an IDT. All but a few begin with `_PREPARE`, which leaves the GHCB's address in
RBX and that of the calling area in R15.

Spec: 56421, 2.3 (GHCB) and 4.1 (events); 58019, section 4 (calls of the SVSM).
"""

from __future__ import annotations

from typing import Final

from svsmd.host.acpi_pm import RESET_PORT, RESET_VALUE
from svsmd.host.layout import DIRECT_BOOT_LAYOUT, IOAPIC_BASE
from svsmd.snp.ghcb import SHARED_BUFFER_OFFSET, SHARED_BUFFER_SIZE, Ghcb, GhcbExit, PscOperation
from svsmd.snp.ghcb_msr import GHCB_MSR, GhcbInfo
from svsmd.snp.types import C_BIT, HUGE_PAGE_SIZE, PAGE_SIZE, Vmpl
from svsmd.snp.vmsa import Vmsa
from tests.bare_machine import assemble
from tests.elf_kernel import ENTRY, elf_kernel

MEMORY: Final = "1G"
VCPUS: Final = 4
"""Of the machine of `SPIN_EVERYWHERE`; the others have one."""
SPIN_EVERYWHERE: Final = "spin on 4 vCPUs"
ECHO: Final = "echo in a storm"
"""Prints what is typed, and changes a page's state eight times between looks at the keyboard."""

VMSAS: Final = 0x12_0000
"""Two pages for each vCPU: its VMSA and its calling area. The first two are where they start."""
IDT: Final = 0x14_0000
LIST: Final = 0x30_0000
GHCB: Final = 0x40_0000
"""The GHCB and two pages for messages, alone in 2 MiB that are mapped as shared."""
MESSAGES: Final = (GHCB + PAGE_SIZE, GHCB + 2 * PAGE_SIZE)
ARENA: Final = 0x60_0000
"""Memory that guests convert; up to the SVSM there are more than `PSC_ENTRIES` times 2 MiB."""
PSC_ENTRIES: Final = 253
PVALIDATE_ENTRIES: Final = 180
BUFFER: Final = GHCB + SHARED_BUFFER_OFFSET

_JUMP_TO_ITSELF: Final = bytes.fromhex("ebfe")
_SECRETS_CAA: Final = DIRECT_BOOT_LAYOUT.secrets + 0x150
_PDE_OF_GHCB: Final = DIRECT_BOOT_LAYOUT.page_tables + 2 * PAGE_SIZE + (GHCB >> 21) * 8
_VMGEXIT: Final = ".byte 0xf3, 0x0f, 0x01, 0xd9"
_PVALIDATE, _CREATE_VCPU, _QUERY_PROTOCOL = 1, 2, 6
_VALIDATE, _IGNORE_CF = 1 << 2, 1 << 3
_SIZE_2M: Final = 1
_PSC_2M: Final = 1 << 56
_PSC_OPERATION_SHIFT: Final = 52
_CREATE: Final = 1

# SW_EXITINFO1 of IOIO (24593, 15.10.2), for bytes.
_OUT: Final = 1 << 4
_IN: Final = _OUT | 1
_REP_OUTS: Final = _OUT | 1 << 2 | 1 << 3 | 1 << 9
_PORT_SHIFT: Final = 16
_COM1, _COM1_LSR, _PIT_0, _PIT_CONTROL = 0x3F8, 0x3FD, 0x40, 0x43

_X2APIC_EOI, _X2APIC_SVR, _X2APIC_ICR = 0x80B, 0x80F, 0x830
_X2APIC_LVT_TIMER, _X2APIC_TIMER_COUNT, _X2APIC_TIMER_DIVIDE = 0x832, 0x838, 0x83E


def _set_msr(low: int, high: int = 0) -> str:
    return f"mov ecx, {GHCB_MSR:#x}; mov eax, {low}; mov edx, {high}; wrmsr\n"


def _msr_request(low: int, high: int = 0) -> str:
    """A request by the GHCB MSR."""
    return f"{_set_msr(low, high)} {_VMGEXIT}\n"


def _page_state(gpa: int, operation: PscOperation) -> str:
    return _msr_request(gpa | GhcbInfo.PSC_REQUEST, operation << _PSC_OPERATION_SHIFT - 32)


def _svsm_call(call: int, rcx: str, rdx: int = 0, r8: int = 0) -> str:
    """A call of the core protocol; `rcx` is an expression, or a register that is not used here."""
    return f"""
        mov byte ptr [r15], 1
        {_set_msr(GhcbInfo.RUN_VMPL_REQUEST)}
        mov eax, {call}; mov rcx, {rcx}; mov rdx, {rdx}; mov r8, {r8}
        {_VMGEXIT}
        """


def _share(*pages: int) -> str:
    """Rescinds pages by the SVSM, with a list in the calling area, and makes them shared."""
    entries = "".join(
        f"mov qword ptr [r9 + {8 * index}], {gpa}\n" for index, gpa in enumerate(pages, start=1)
    )
    return f"""
        lea r9, [r15 + 8]
        mov qword ptr [r9], {len(pages)}
        {entries}
        {_svsm_call(_PVALIDATE, "r9")}
        {"".join(_page_state(gpa, PscOperation.SHARED) for gpa in pages)}
        """


_PREPARE: Final = f"""
    mov rax, {_SECRETS_CAA}; mov r15, [rax]
    {_share(GHCB, *MESSAGES)}
    {_msr_request(GHCB | GhcbInfo.REGISTER_GPA_REQUEST)}
    mov rax, {_PDE_OF_GHCB}; mov qword ptr [rax], {GHCB | 0x83}
    mov rax, cr3; mov cr3, rax
    {_set_msr(GHCB)}
    mov rbx, {GHCB}
    mov word ptr [rbx + {Ghcb.protocol_version.offset}], 2
    mov dword ptr [rbx + {Ghcb.ghcb_usage.offset}], 0
    """


def _request(code: int, info_1: int = 0, info_2: int = 0, **registers: str | int) -> str:
    """An event by the GHCB, with what it takes: rax, rbx, rcx, rdx, sw_scratch."""
    fields: list[tuple[str, str | int]] = list(registers.items())
    fields += (("sw_exit_code", code), ("sw_exit_info_1", info_1), ("sw_exit_info_2", info_2))
    valid = 0
    lines = []
    for name, value in fields:
        offset = getattr(Ghcb, name).offset
        valid |= 1 << offset // 8
        lines.append(f"mov rax, {value}; mov [rbx + {offset}], rax")
    for index in range(2):
        word = valid >> 64 * index & (1 << 64) - 1
        lines.append(f"mov rax, {word}; mov [rbx + {Ghcb.valid_bitmap.offset + 8 * index}], rax")
    return "\n".join((*lines, _VMGEXIT, ""))


def _out(port: int, value: str | int) -> str:
    return _request(GhcbExit.SVM_EXIT_IOIO, port << _PORT_SHIFT | _OUT, rax=value)


def _in(port: int) -> str:
    return _request(GhcbExit.SVM_EXIT_IOIO, port << _PORT_SHIFT | _IN)


def _wrmsr(msr: int, value: int) -> str:
    low, high = value & 0xFFFF_FFFF, value >> 32
    return _request(GhcbExit.SVM_EXIT_MSR, 1, rcx=msr, rax=low, rdx=high)


def _for_ever(body: str) -> str:
    return f"for_ever: {body}\n jmp for_ever\n"


def _handler(body: str) -> str:
    """All vectors go to `body`."""
    return f"""
        mov rdi, {IDT}; lea rdx, [rip + handler]; mov ecx, 256
    1:  movzx eax, dx; or eax, 0x100000; mov [rdi], eax
        mov eax, edx; mov ax, 0x8e00; mov [rdi + 4], eax
        mov qword ptr [rdi + 8], 0; add rdi, 16; dec ecx; jnz 1b
        mov rax, {IDT}; push rax; sub rsp, 2; mov word ptr [rsp], 0xfff; lidt [rsp]; add rsp, 10
        jmp 2f
    handler: {body}
    2:
        """


def _timer(count: int) -> str:
    """The local APIC's timer, again and again after so many of its cycles."""
    return (
        _wrmsr(_X2APIC_SVR, 0x1FF)
        + _wrmsr(_X2APIC_TIMER_DIVIDE, 0xB)
        + _wrmsr(_X2APIC_LVT_TIMER, 0x2_0030)
        + _wrmsr(_X2APIC_TIMER_COUNT, count)
    )


_ACKNOWLEDGE: Final = f"push rax; {_wrmsr(_X2APIC_EOI, 0)} pop rax; iretq"


def _nonsense() -> str:
    """A GHCB of random bytes with a random event, but for those that end the guest's turn."""
    return f"""
        mov rdi, rbx; mov ecx, 512
    1:  mov rax, r12; shl rax, 13; xor r12, rax; mov rax, r12; shr rax, 7; xor r12, rax
        mov rax, r12; shl rax, 17; xor r12, rax
        mov [rdi], r12; add rdi, 8; dec ecx; jnz 1b
        mov word ptr [rbx + {Ghcb.protocol_version.offset}], 2
        mov dword ptr [rbx + {Ghcb.ghcb_usage.offset}], 0
        mov qword ptr [rbx + {Ghcb.valid_bitmap.offset}], -1
        mov qword ptr [rbx + {Ghcb.valid_bitmap.offset + 8}], -1
        movzx eax, r12b; and eax, 0x1f
        test r12d, 0x100; jz 2f; or eax, 0x60
    2:  test r12d, 0x200; jz 3f; and eax, 0x1f; or eax, 0x80000000
    3:  mov ecx, {int(GhcbExit.AP_RESET_HOLD)}; cmp eax, ecx; je 4f
        mov [rbx + {Ghcb.sw_exit_code.offset}], rax
        and qword ptr [rbx + {Ghcb.sw_exit_info_1.offset}], 0xffff
        {_VMGEXIT}
    4:
        """


def _page_state_lists() -> str:
    """All the entries that fit, each of 2 MiB: to private, to shared, and again."""
    private, shared = (
        _PSC_2M | operation << _PSC_OPERATION_SHIFT | ARENA
        for operation in (PscOperation.PRIVATE, PscOperation.SHARED)
    )
    return f"""
        mov r8, {private}; mov r9, {shared}
    next:
        mov rdi, {BUFFER}
        mov rax, {PSC_ENTRIES - 1 << 16}; mov [rdi], rax
        mov rax, r8; xchg r8, r9; mov ecx, {PSC_ENTRIES}
    1:  add rdi, 8; mov [rdi], rax; add rax, {HUGE_PAGE_SIZE}; dec ecx; jnz 1b
    again:
        {_request(GhcbExit.SNP_PSC, sw_scratch=BUFFER)}
        cmp word ptr [rbx + {SHARED_BUFFER_OFFSET}], {PSC_ENTRIES}; jne again
        jmp next
        """


def _smash() -> str:
    """Splits the RMP entries of the arena: each of its 4 KiB pages is changed by itself then."""
    psc = GhcbInfo.PSC_REQUEST | PscOperation.SHARED << _PSC_OPERATION_SHIFT
    return f"""
        mov rsi, {ARENA | psc}; mov edi, {PSC_ENTRIES}
    smash:
        mov ecx, {GHCB_MSR:#x}; mov eax, esi; mov rdx, rsi; shr rdx, 32; wrmsr; {_VMGEXIT}
        add rsi, {HUGE_PAGE_SIZE}; dec edi; jnz smash
        {_set_msr(GHCB)}
        """


def _pvalidate_lists() -> str:
    """Rescinds and validates as many 2 MiB pages as fit into a call."""
    return f"""
        mov r12, {ARENA | _SIZE_2M | _IGNORE_CF}
    next:
        xor r12d, {_VALIDATE}
        mov rdi, {LIST}; mov qword ptr [rdi], {PVALIDATE_ENTRIES}
        mov rax, r12; mov ecx, {PVALIDATE_ENTRIES}
    1:  add rdi, 8; mov [rdi], rax; add rax, {HUGE_PAGE_SIZE}; dec ecx; jnz 1b
    again:
        {_svsm_call(_PVALIDATE, str(LIST))}
        mov ecx, 0x80000000; cmp rax, rcx; je again
        jmp next
        """


def _start_vcpus() -> str:
    lines = []
    for apic_id in range(1, VCPUS):
        vmsa = _vmsa_of(apic_id)
        target = apic_id << 32 | Vmpl.VMPL2 << 16 | _CREATE
        lines += [
            _svsm_call(_CREATE_VCPU, str(vmsa), vmsa + PAGE_SIZE, apic_id),
            _set_msr(GHCB),
            _request(GhcbExit.SNP_AP_CREATION, target, vmsa, rax=1),
        ]
    return "\n".join(lines)


def _vmsa_of(apic_id: int) -> int:
    return VMSAS + 2 * PAGE_SIZE * apic_id


GUESTS: Final[dict[str, str]] = {
    "spin": "spin: jmp spin",
    SPIN_EVERYWHERE: f"{_PREPARE} {_start_vcpus()} spin: jmp spin",
    "CR3": "mov rax, cr3;" + _for_ever("mov cr3, rax"),
    "long string": "cld;" + _for_ever(f"mov edi, {ARENA}; mov ecx, 0x10000000; rep stosb"),
    "self-modifying code": "lea rdi, [rip + target];"
    + _for_ever("inc byte ptr [rdi + 1]; target: mov al, 1; xor eax, eax"),
    "page faults": f"{_handler('add rsp, 8; iretq')} mov rdi, {1 << 40};"
    + _for_ever("mov rax, [rdi]"),
    "ciphertext": f"{_PREPARE} lea rdi, [rbx + 0x10000];"
    + _for_ever(".rept 200; mov rax, [rdi]; .endr"),
    "VMGEXIT": _for_ever(_msr_request(GhcbInfo.HV_FEATURES_REQUEST)),
    "nothing but VMGEXIT": _PREPARE + _for_ever(f".rept 25000; {_VMGEXIT}; .endr"),
    "nonsense": f"{_PREPARE} mov r12, 0x123456789abcdef;" + _for_ever(_nonsense()),
    "console": _PREPARE + _for_ever(_out(_COM1, ord("a"))),
    "console by string": _PREPARE
    + _for_ever(
        _request(
            GhcbExit.SVM_EXIT_IOIO, _COM1 << _PORT_SHIFT | _REP_OUTS, SHARED_BUFFER_SIZE,
            sw_scratch=BUFFER,
        )
    ),
    ECHO: _PREPARE
    + _for_ever(
        "".join(
            _page_state(ARENA, operation)
            for operation in (PscOperation.PRIVATE, PscOperation.SHARED) * 4
        )
        + _set_msr(GHCB) + _in(_COM1_LSR)
        + f"test byte ptr [rbx + {Ghcb.rax.offset}], 1; jz for_ever\n"
        + _in(_COM1) + f"movzx r9d, byte ptr [rbx + {Ghcb.rax.offset}]\n" + _out(_COM1, "r9")
    ),
    "ports": _PREPARE
    + _for_ever(_out(_PIT_CONTROL, 0x34) + _out(_PIT_0, 1) + _out(_PIT_0, 0)),
    "MMIO": _PREPARE
    + _for_ever(
        _request(GhcbExit.MMIO_WRITE, IOAPIC_BASE, 4, sw_scratch=BUFFER)
        + _request(GhcbExit.MMIO_READ, IOAPIC_BASE + 0x10, 4, sw_scratch=BUFFER)
    ),
    "MSRs": _PREPARE
    + _for_ever(
        _wrmsr(_X2APIC_SVR, 0x1FF) + _wrmsr(_X2APIC_ICR, 0x000C_0020) + _wrmsr(_X2APIC_EOI, 0)
    ),
    "timer": f"{_PREPARE} {_handler(_ACKNOWLEDGE)} {_timer(1)} sti; spin: jmp spin",
    "timer and HLT": f"{_PREPARE} {_handler(_ACKNOWLEDGE)} {_timer(10)}" + _for_ever("sti; hlt"),
    "page state": _for_ever(
        _page_state(ARENA, PscOperation.PRIVATE) + _page_state(ARENA, PscOperation.SHARED)
    ),
    "page states of 2 MiB": _PREPARE + _page_state_lists(),
    "page states of 4 KiB": _PREPARE + _smash() + _page_state_lists(),
    "SVSM": _PREPARE + _for_ever(_svsm_call(_QUERY_PROTOCOL, "1")),
    "validation by the SVSM": _PREPARE + _pvalidate_lists(),
    "certificates": _PREPARE
    + _for_ever(_request(GhcbExit.SNP_EXT_GUEST_REQUEST, *MESSAGES, rax=0, rbx=0)),
    "reset": f"{_PREPARE} {_out(RESET_PORT, RESET_VALUE)} spin: jmp spin",
}  # fmt: skip


def hostile_kernel(name: str) -> bytes:
    """The ELF of one of `GUESTS`."""
    code = assemble(GUESTS[name], origin=ENTRY)
    assert len(code) <= VMSAS - ENTRY
    image = bytearray(code.ljust(_vmsa_of(VCPUS) - ENTRY, b"\0"))
    image[VMSAS - ENTRY : VMSAS - ENTRY + len(_JUMP_TO_ITSELF)] = _JUMP_TO_ITSELF
    for apic_id in range(1, VCPUS):
        vmsa = Vmsa.long_mode_start(
            VMSAS, DIRECT_BOOT_LAYOUT.stack_top, DIRECT_BOOT_LAYOUT.page_tables | C_BIT,
            vmpl=Vmpl.VMPL2,
        )  # fmt: skip
        at = _vmsa_of(apic_id) - ENTRY
        image[at : at + PAGE_SIZE] = vmsa.tobytes()
    return elf_kernel(bytes(image))
