# SPDX-License-Identifier: MIT
"""The certificate table that a host gives to its guest with an extended guest request.

Spec: 56421, 4.1.8.1: entries of GUID, offset and length, then a zero entry, then the certificates.
The GUIDs are in the order of RFC 4122, the numbers are little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from enum import Enum
from typing import Final
from uuid import UUID

ENTRY: Final = struct.Struct("<16sII")
"""GUID, offset from the start of the table, length; both in bytes."""
CERT_TABLE_END: Final = bytes(ENTRY.size)
"""The entry that ends a table: alone, it says that there are no certificates."""


class CertificateGuid(Enum):
    """What a certificate is."""

    VCEK = UUID("63da758d-e664-4564-adc5-f4b93be8accd")
    ASK = UUID("4ab7b379-bbac-4fe4-a02f-05aef327c782")
    ARK = UUID("c0b406a4-a803-4952-9743-3fb6014cd0ae")


def certificate_table(certificates: Mapping[CertificateGuid, bytes]) -> bytes:
    """Pack certificates, each in DER."""
    offset = (len(certificates) + 1) * ENTRY.size
    entries = []
    for guid, certificate in certificates.items():
        entries.append(ENTRY.pack(guid.value.bytes, offset, len(certificate)))
        offset += len(certificate)
    return b"".join((*entries, CERT_TABLE_END, *certificates.values()))
