# SPDX-License-Identifier: MIT
"""The virtio entropy device. What it gives is a stream that the machine's seed determines.

Spec: VIRTIO 1.2, 5.4 (entropy device). Deviations: the bytes are random only to who does not know
the seed (svsmd.snp.entropy).
"""

from __future__ import annotations

from typing import Final

from svsmd.host.virtio_queue import Chain
from svsmd.snp.entropy import EntropySource

DEVICE_ID: Final = 4
MAX_FILL: Final = 4096
"""Bytes that one request gets at most; the device says how many it gave (5.4.6.2)."""


class VirtioRng:
    """Fills buffers from `entropy`, which has no other reader."""

    device_id: Final = DEVICE_ID
    features: Final = 0
    config: Final = b""

    def __init__(self, entropy: EntropySource) -> None:
        # Runtime glue.
        self._entropy: Final = entropy

    def serve(self, request: Chain) -> int:
        """Fill the start of a request; returns how many bytes of it, `DmaError` if it cannot."""
        size = min(request.writable_size, MAX_FILL)
        request.write(0, self._entropy.read(size))
        return size
