# SPDX-License-Identifier: MIT
"""Whether a Linux can run here at all: what its image says about SEV-SNP and SVSMs.

A kernel without the support does not come to say so: it dies of its first #VC, or asks to be
terminated with a number. Versions tell little, since distributions backport; so the image is asked
for the configuration that it may carry (CONFIG_IKCONFIG), and for messages that only a kernel with
the support has. A kernel that might work is not refused.

Spec: Linux kernel/configs.c (IKCFG_ST); arch/x86/mm/mem_encrypt.c, arch/x86/coco/sev/core.c and
init/main.c for the messages. SNP guests are in Linux since 5.19, those under an SVSM since 6.11.
"""

from __future__ import annotations

import logging
import re
import zlib
from typing import Final

from svsmd.host.loader_error import LoaderError

log = logging.getLogger(__name__)

SNP_GUEST_SINCE: Final = (5, 19)
SVSM_GUEST_SINCE: Final = (6, 11)
NEEDED_OPTION: Final = "CONFIG_AMD_MEM_ENCRYPT"

_BANNER: Final = re.compile(rb"Linux version ((\d{1,3})\.(\d{1,3})[\x21-\x7e]{0,100})")
_SNP_MESSAGE: Final = b" SEV-SNP"
"""What "Memory Encryption Features active:" goes on with."""
_SVSM_MESSAGE: Final = b"SNP running at VMPL"
_OTHER_SVSM_MESSAGES: Final = (b"SVSM ", b"svsm_")
"""What a backport of another shape would hardly do without."""
_ANY_MESSAGE: Final = b"Kernel command line: "
"""Each kernel has it whose messages were not left out (CONFIG_PRINTK)."""
_CONFIG_START: Final = b"IKCFG_ST"
_MAX_CONFIG_SIZE: Final = 4 << 20
_HINT: Final = f"it takes Linux 5.19 with {NEEDED_OPTION}=y or newer, and 6.11 under an SVSM"


def check_linux(vmlinux: bytes, *, under_svsm: bool) -> None:
    """Refuse a Linux that cannot run, and warn of one that probably cannot.

    What is no Linux is none of our business.

    Args:
        vmlinux: the kernel, unpacked.
        under_svsm: it is to run below VMPL0.

    Raises:
        LoaderError: it cannot run, for sure.
    """
    if (_SVSM_MESSAGE if under_svsm else _SNP_MESSAGE) in vmlinux:
        return
    banner = _BANNER.search(vmlinux)
    if banner is None:
        return
    name = f"the kernel (Linux {banner[1].decode('ascii')})"
    version = int(banner[2]), int(banner[3])
    config = embedded_config(vmlinux)
    if config is not None and f"{NEEDED_OPTION}=y" not in config.splitlines():
        raise LoaderError(f"{name} was built without {NEEDED_OPTION}", _HINT)
    sure = _ANY_MESSAGE in vmlinux
    if _SNP_MESSAGE not in vmlinux:
        reason = f"{name} cannot run as an SEV-SNP guest"
        if version >= SNP_GUEST_SINCE:
            reason += f": it was built without {NEEDED_OPTION}"
        hint = _HINT
    else:
        if any(message in vmlinux for message in _OTHER_SVSM_MESSAGES):
            return
        sure = sure and version < SVSM_GUEST_SINCE
        reason = f"{name} cannot run under an SVSM"
        hint = "run it without one (--no-svsm), or take Linux 6.11 or newer"
    if sure:
        raise LoaderError(reason, hint)
    log.warning("%s, as it seems; %s", reason, hint)


def embedded_config(vmlinux: bytes) -> str | None:
    """The configuration that a kernel carries; None if it carries none that can be read."""
    start = vmlinux.find(_CONFIG_START)
    if start < 0:
        return None
    stream = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    packed = memoryview(vmlinux)[start + len(_CONFIG_START) :][:_MAX_CONFIG_SIZE]
    try:
        return stream.decompress(packed, _MAX_CONFIG_SIZE).decode("ascii", "replace")
    except zlib.error:
        return None
