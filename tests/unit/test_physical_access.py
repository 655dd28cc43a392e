# SPDX-License-Identifier: MIT
"""Accesses outside the engine: what each kind of page answers (docs/access-checks.md)."""

from __future__ import annotations

import pytest

from svsmd.snp.access import AccessKind
from svsmd.snp.faults import GuestFault, NestedFault, NpfError, Vector
from svsmd.snp.memory import GuestMemory
from svsmd.snp.physical_access import PhysicalAccess
from svsmd.snp.rmp import GUEST_ASID, Perm, Rmp, RmpUpdate
from svsmd.snp.types import C_BIT, PAGE_SIZE, Gpa, PageSize, Spa

READ, WRITE, WALK = AccessKind.READ, AccessKind.WRITE, AccessKind.WALK
PRIVATE_WRITE = NpfError.P | NpfError.W | NpfError.RMP | NpfError.VMPL | NpfError.ENC
SHARED, PRIVATE, READ_ONLY, UNVALIDATED, VMSA = 0x1000, 0x2000, 0x3000, 0x4000, 0x5000


class Inverted:
    """A cipher that a test can undo."""

    def encrypt_page(self, spa: int, plaintext: bytes | memoryview) -> bytes:
        return bytes(byte ^ 0xFF for byte in plaintext)


@pytest.fixture
def memory() -> GuestMemory:
    return GuestMemory(16 << 20)


@pytest.fixture
def access(memory: GuestMemory) -> PhysicalAccess:
    rmp = Rmp(memory.ranges)
    for gpa in (PRIVATE, READ_ONLY, UNVALIDATED, VMSA):
        state = RmpUpdate(True, page_size=PageSize.SIZE_4K, gpa=Gpa(gpa), asid=GUEST_ASID)
        rmp.rmpupdate(Spa(gpa), state)
        rights = Perm.READ if gpa == READ_ONLY else Perm.ALL
        rmp.firmware_update(
            Spa(gpa), validated=gpa != UNVALIDATED, vmsa=gpa == VMSA,
            permissions=(Perm.ALL, rights, rights, 0),
        )  # fmt: skip
        memory.write(gpa, b"plaintext")
    memory.write(SHARED, b"shared")
    return PhysicalAccess(memory, rmp, Inverted())


def test_private_and_shared(access, memory):
    assert access.read(2, PRIVATE | C_BIT, 9) == b"plaintext"
    assert access.read(2, SHARED, 6) == b"shared"
    assert access.write(2, PRIVATE + 8 | C_BIT, b"12345678") == PRIVATE + 8
    assert access.read_u64(2, PRIVATE + 8 | C_BIT) == int.from_bytes(b"12345678", "little")
    access.write(2, SHARED + 1, b"HA")
    assert memory.read(SHARED, 6) == b"sHAred"


def test_the_shared_alias_of_a_private_page_is_ciphertext(access, memory):
    whole = access.read(2, PRIVATE, PAGE_SIZE)
    assert whole == Inverted().encrypt_page(PRIVATE, memory.page(PRIVATE))
    assert access.read(2, PRIVATE + 4, 5) == whole[4:9]
    assert access.ciphertext(PRIVATE) == whole
    # Whether the hardware reads a table through C=0 or not: a walk is always private.
    assert access.read_u64(2, PRIVATE, WALK) == int.from_bytes(b"plaintex", "little")


@pytest.mark.parametrize(
    ("vmpl", "gpa", "kind", "bits"),
    [
        (2, PRIVATE, WRITE, NpfError.P | NpfError.W | NpfError.RMP),
        (3, PRIVATE | C_BIT, READ, NpfError.P | NpfError.RMP | NpfError.VMPL | NpfError.ENC),
        (2, READ_ONLY | C_BIT, WRITE, PRIVATE_WRITE),
        (2, SHARED | C_BIT, READ, NpfError.P | NpfError.RMP | NpfError.ENC),
    ],
)
def test_refusals(access, memory, vmpl, gpa, kind, bits):
    before = memory.read(0, 1 << 16)
    use = access.write if kind is WRITE else access.read
    with pytest.raises(NestedFault) as caught:
        use(vmpl, gpa, b"evil" if kind is WRITE else 4)
    assert caught.value.gpa == gpa & ~C_BIT
    assert NpfError(caught.value.error_code) == bits | NpfError.U | NpfError.FINAL
    assert memory.read(0, 1 << 16) == before


def test_a_page_that_is_not_validated(access):
    for vmpl in range(3):
        with pytest.raises(GuestFault) as caught:
            access.read(vmpl, UNVALIDATED | C_BIT, 1)
        assert (caught.value.vector, caught.value.error_code) == (Vector.VC, 0x404)


@pytest.mark.parametrize("gpa", [16 << 20, (1 << 39) - PAGE_SIZE])
@pytest.mark.parametrize("alias", [0, C_BIT])
@pytest.mark.parametrize("kind", [READ, WRITE])
def test_no_ram(access, gpa, alias, kind):
    with pytest.raises(NestedFault, match="no RAM") as caught:
        access.resolve(0, gpa | alias, kind)
    assert bool(NpfError(caught.value.error_code) & NpfError.W) is (kind is WRITE)
