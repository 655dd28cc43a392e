# SPDX-License-Identifier: MIT
"""What is in DRAM: private memory as the memory controller encrypts it.

The RAM of this machine is kept in plaintext, and this module makes the ciphertext when somebody
without the guest's key looks: the host, a shared alias, a page that changed its owner.

Spec: 24593 (APM vol. 2), 7.10 and 15.34.1: AES-128 with a tweak that depends on the physical
address. AMD does not publish the tweak; here it is XTS's (IEEE 1619) with the page's address.
Deviation: one fixed key a machine, and no integrity or freshness, like the silicon.
"""

from __future__ import annotations

from typing import Final

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import XTS

from svsmd.snp.types import PAGE_MASK, PAGE_SIZE

KEY_SIZE: Final = 32
"""Two AES-128 keys: data and tweak."""


class MemoryEncryption:
    """The encryption engine with the key of one ASID.

    The same page at the same address always gives the same ciphertext, which is what the host of a
    real machine sees, too.
    """

    def __init__(self, key: bytes) -> None:
        """Take a key of `KEY_SIZE` bytes whose halves differ; ValueError otherwise."""
        if len(key) != KEY_SIZE:
            raise ValueError(f"the key has {KEY_SIZE} bytes, not {len(key)}")
        if key[: KEY_SIZE // 2] == key[KEY_SIZE // 2 :]:
            raise ValueError("the data key and the tweak key are the same")
        self._algorithm: Final = AES(key)

    def _cipher(self, spa: int) -> Cipher[XTS]:
        return Cipher(self._algorithm, XTS(spa.to_bytes(16, "little")))

    def encrypt_page(self, spa: int, plaintext: bytes | memoryview) -> bytes:
        """Return the ciphertext of the 4 KiB page at `spa`."""
        self._check(spa, plaintext)
        return self._cipher(spa).encryptor().update(plaintext)

    def decrypt_page(self, spa: int, ciphertext: bytes | memoryview) -> bytes:
        """Return what the guest reads through its key from a page that holds `ciphertext`."""
        self._check(spa, ciphertext)
        return self._cipher(spa).decryptor().update(ciphertext)

    @staticmethod
    def _check(spa: int, page: bytes | memoryview) -> None:
        if spa & PAGE_MASK or len(page) != PAGE_SIZE:
            raise ValueError(f"{len(page)} bytes at {spa:#x} are not a page")
