# SPDX-License-Identifier: MIT
"""RSA from a seed: `cryptography` verifies what it signs."""

from __future__ import annotations

import math

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.hashes import SHA256, SHA384

from svsmd.snp.entropy import EntropySource
from svsmd.snp.rsa_key import HASH, PSS, SeededRsaKey, _is_prime

VERIFIER_PSS = padding.PSS(padding.MGF1(SHA384()), 48)


@pytest.fixture(scope="module")
def key() -> SeededRsaKey:
    return SeededRsaKey(EntropySource(b"test"))


def test_the_seed_is_the_key(key: SeededRsaKey):
    again = SeededRsaKey(EntropySource(b"test"))
    other = SeededRsaKey(EntropySource(b"other"))
    assert again.public_key() == key.public_key() != other.public_key()
    assert again.sign(b"message", PSS, HASH) == key.sign(b"message", PSS, HASH)


def test_public_key(key: SeededRsaKey):
    public = key.public_key()
    assert public.key_size == key.key_size == 4096
    assert public.public_numbers().e == 65537


@pytest.mark.parametrize("message", [b"", b"message", bytes(1000)])
def test_signatures_verify(key: SeededRsaKey, message: bytes):
    signature = key.sign(message, PSS, HASH)
    assert len(signature) == 512
    public = key.public_key()
    public.verify(signature, message, VERIFIER_PSS, SHA384())
    with pytest.raises(InvalidSignature):
        public.verify(signature, message + b"!", VERIFIER_PSS, SHA384())


def test_messages_have_salts_of_their_own(key: SeededRsaKey):
    salts = set()
    public = key.public_key().public_numbers()
    for message in (b"one", b"two"):
        signature = int.from_bytes(key.sign(message, PSS, HASH), "big")
        encoded = pow(signature, public.e, public.n).to_bytes(512, "big")
        assert encoded[-1] == 0xBC
        salts.add(encoded[:-49])
    assert len(salts) == 2


def test_another_scheme_is_refused(key: SeededRsaKey):
    with pytest.raises(ValueError, match="PSS"):
        key.sign(b"message", padding.PKCS1v15(), HASH)
    with pytest.raises(ValueError, match="SHA-384"):
        key.sign(b"message", PSS, SHA256())


def test_primes_against_trial_division():
    numbers = range(4099, 20_000, 2)
    primes = [n for n in numbers if all(n % d for d in range(3, math.isqrt(n) + 1, 2))]
    assert [n for n in numbers if _is_prime(n)] == primes


@pytest.mark.parametrize("prime", [2**127 - 1, 2**521 - 1, 2**255 - 19])
def test_known_primes(prime: int):
    assert _is_prime(prime)
    assert not _is_prime(prime * prime)
    assert not _is_prime(prime * (2**107 - 1))


def test_a_strong_pseudoprime_to_the_first_eleven_bases():
    assert not _is_prime(3_825_123_056_546_413_051)
