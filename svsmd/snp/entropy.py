# SPDX-License-Identifier: MIT
"""The one source of entropy of the machine: a stream that its seed determines.

Whoever needs random bytes takes a stream of its own by name. So one consumer reading more does not
change what another one gets, and a machine with a known seed repeats itself bit by bit. It also has
no secrets.

Spec: none of AMD's. ChaCha20 is RFC 8439; the stream keys are HMAC-SHA-256 (RFC 2104).
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Final

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

_NONCE: Final = bytes(16)
"""Counter and nonce; each key is used for one stream only."""


class EntropySource:
    """A deterministic stream of bytes; `seed` may have any length.

    At most 256 GiB can be read from one stream, the length of a ChaCha20 key stream.
    """

    def __init__(self, seed: bytes) -> None:
        self._key: Final = hashlib.sha256(b"svsmd entropy\0" + seed).digest()
        self._key_stream = Cipher(ChaCha20(self._key, _NONCE), mode=None).encryptor()
        self._position = 0

    @property
    def position(self) -> int:
        """Bytes read so far."""
        return self._position

    def read(self, nbytes: int) -> bytes:
        """Return the next `nbytes` of the stream."""
        self._position += nbytes
        return self._key_stream.update(bytes(nbytes))

    def stream(self, name: str) -> EntropySource:
        """Return the stream called `name`, from its start.

        It depends on this source's seed and the name alone, not on what was read.
        """
        return EntropySource(hmac.digest(self._key, name.encode(), "sha256"))
