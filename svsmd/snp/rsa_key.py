# SPDX-License-Identifier: MIT
"""RSA keys out of a stream of entropy, and RSASSA-PSS signatures that repeat themselves.

The keys of the `cryptography` package come from the operating system's randomness, and so do the
salts of its signatures. These come from the machine's seed. A key has eight primes instead of two:
that it is found in a fifth of a second, not in ten, matters more here than its strength, since the
seed is no secret. Whoever verifies a signature sees no difference.

Spec: RFC 8017 (PKCS #1), 3.2 (multi-prime keys), 5.2.1 (RSASP1), 8.1.1 (RSASSA-PSS) and 9.1.1
(EMSA-PSS); FIPS 186-5, B.3.1 (Miller-Rabin).
"""

from __future__ import annotations

import hashlib
import hmac
import math
from typing import Final

from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.hashes import SHA384, HashAlgorithm

from svsmd.snp.entropy import EntropySource

KEY_BITS: Final = 4096
PUBLIC_EXPONENT: Final = 65537
HASH: Final = SHA384()
SALT_SIZE: Final = HASH.digest_size
"""Bytes of a salt: as many as the digest has."""
PSS: Final = padding.PSS(padding.MGF1(HASH), SALT_SIZE)

_PRIMES: Final = 8
_PRIME_BITS: Final = KEY_BITS // _PRIMES
_TOP_BITS: Final = 0b1111 << (_PRIME_BITS - 4)
"""Eight numbers that have them make a product of `KEY_BITS` bits: (15/16)^8 is more than 1/2."""
_SMALL_PRIMES: Final = tuple(
    n for n in range(3, 4096, 2) if all(n % d for d in range(3, math.isqrt(n) + 1, 2))
)
_SMALL_PRODUCT: Final = math.prod(_SMALL_PRIMES)
_WITNESSES: Final = (2, *_SMALL_PRIMES[:12])
"""Bases of Miller-Rabin; for random numbers of this size more than enough."""

_EM_SIZE: Final = KEY_BITS // 8
_EM_TRAILER: Final = b"\xbc"


def _is_prime(candidate: int) -> bool:
    """Miller-Rabin for a random odd number that is larger than `_SMALL_PRIMES`."""
    if math.gcd(candidate, _SMALL_PRODUCT) > 1:
        return False
    even = candidate - 1
    twos = (even & -even).bit_length() - 1
    for base in _WITNESSES:
        power = pow(base, even >> twos, candidate)
        if power in (1, even):
            continue
        for _ in range(twos - 1):
            power = power * power % candidate
            if power == even:
                break
        else:
            return False
    return True


def _prime(entropy: EntropySource) -> int:
    """The next prime that serves an RSA key with `PUBLIC_EXPONENT`."""
    while True:
        candidate = int.from_bytes(entropy.read(_PRIME_BITS // 8), "big") | _TOP_BITS | 1
        if (candidate - 1) % PUBLIC_EXPONENT and _is_prime(candidate):
            return candidate


def _mgf1(seed: bytes, size: int) -> bytes:
    """MGF1 with SHA-384 (RFC 8017, B.2.1)."""
    blocks = -(-size // SALT_SIZE)
    mask = b"".join(hashlib.sha384(seed + i.to_bytes(4, "big")).digest() for i in range(blocks))
    return mask[:size]


class SeededRsaKey:
    """A private key of 4096 bits that `entropy` determines.

    It stands in for a key of the `cryptography` package where certificates are signed: with SHA-384
    and `PSS`, and nothing else.
    """

    def __init__(self, entropy: EntropySource) -> None:
        primes = [_prime(entropy) for _ in range(_PRIMES)]
        self._salt_key: Final = entropy.read(SALT_SIZE)
        self._modulus: Final = math.prod(primes)
        self._residues: Final = tuple(
            (p, pow(PUBLIC_EXPONENT, -1, p - 1), rest * pow(rest, -1, p))
            for p in primes
            for rest in (self._modulus // p,)
        )
        """For each prime: itself, the exponent, and what is 1 modulo it and 0 modulo the others."""

    @property
    def key_size(self) -> int:
        """Bits of the modulus."""
        return KEY_BITS

    def public_key(self) -> rsa.RSAPublicKey:
        """The key that verifies."""
        return rsa.RSAPublicNumbers(PUBLIC_EXPONENT, self._modulus).public_key()

    def sign(
        self, data: bytes, padding: padding.AsymmetricPadding, algorithm: HashAlgorithm
    ) -> bytes:
        """Sign `data`; the same bytes give the same signature.

        ValueError for a padding or hash other than `PSS` and SHA-384.
        """
        if padding is not PSS or algorithm.name != HASH.name:
            raise ValueError("this key signs with RSASSA-PSS and SHA-384 only")
        message = int.from_bytes(self._encode(data), "big")
        signature = sum(pow(message, d, p) * one for p, d, one in self._residues)
        return (signature % self._modulus).to_bytes(KEY_BITS // 8, "big")

    def _encode(self, data: bytes) -> bytes:
        """EMSA-PSS for a modulus whose bits fill its bytes."""
        salt = hmac.digest(self._salt_key, data, "sha384")
        digest = hashlib.sha384(bytes(8) + hashlib.sha384(data).digest() + salt).digest()
        size = _EM_SIZE - len(digest) - len(_EM_TRAILER)
        block = (b"\1" + salt).rjust(size, b"\0")
        masked = bytearray(a ^ b for a, b in zip(block, _mgf1(digest, size), strict=True))
        # The encoded message has a bit less than the modulus.
        masked[0] &= 0x7F
        return bytes(masked) + digest + _EM_TRAILER


# What signs a certificate has to be one of the package's keys, which this is by its methods.
rsa.RSAPrivateKey.register(SeededRsaKey)
