# SPDX-License-Identifier: MIT
"""The drivers of svsmd's devices that a distribution builds as modules of its kernel.

They come from where the kernel comes from: from /lib/modules if it is installed here, else from its
package, unpacked into the cache beside it.

Spec: tools/apt_packages.py; kernel.org's layout of /lib/modules.
"""

from __future__ import annotations

import lzma
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import zstandard

from tools.apt_packages import AptError, AptRoot, debian_root, release_root

MODULES: Final = ("virtio", "virtio_ring", "virtio_mmio", "virtio_blk", "rng-core", "virtio-rng")
"""In the order in which they are loaded; what a kernel has built in it has no module for."""

SEV_GUEST_MODULES: Final = (
    "configfs", "tsm", "crypto_null", "gf128mul", "ghash-generic", "gcm", "sev-guest",
)  # fmt: skip
"""The driver of /dev/sev-guest and what it needs, in the same order."""


def _member(names: Sequence[str]) -> str:
    return rf"(usr/)?lib/modules/.*/({'|'.join(names)})\.ko(\.(xz|zst))?"


def decompressed(path: Path) -> bytes:
    """The contents of a module, which may be stored compressed."""
    data = path.read_bytes()
    match path.suffix:
        case ".xz":
            return lzma.decompress(data)
        case ".zst":
            return zstandard.ZstdDecompressor().decompressobj().decompress(data)
    return data


def in_order(files: list[Path], names: Sequence[str] = MODULES) -> dict[str, bytes]:
    """The modules among some files, by name, as they have to be loaded."""
    by_name = {path.name.partition(".ko")[0]: path for path in files}
    return {name: decompressed(by_name[name]) for name in names if name in by_name}


def _root(directory: Path) -> AptRoot:
    """Where the kernel of one of tools/fetch_kernel.py's directories comes from."""
    family, _, release = directory.name.partition("-")
    return debian_root(release) if family == "debian" else release_root()


def fetch_modules(kernel: Path, names: Sequence[str] = MODULES) -> dict[str, bytes]:
    """The modules for a kernel, by name, in the order of `names`.

    Args:
        kernel: vmlinuz-RELEASE, installed here or from tools/fetch_kernel.py.
        names: of modules; those that are cached are found by the last of them.

    Raises:
        AptError: its package cannot be had, or the kernel is from nowhere known.
    """
    name, _, release = kernel.name.partition("-")
    if name != "vmlinuz" or not kernel.is_file():
        raise AptError(f"{kernel} is no kernel called vmlinuz-RELEASE")
    installed = Path("/lib/modules") / release
    if installed.is_dir():
        files = [path for path in installed.rglob("*.ko*") if re.search(_member(names), str(path))]
        return in_order(files, names)
    cached = kernel.parent / f"modules-{release}-{names[-1]}"
    if not cached.is_dir():
        temporary = cached.with_name(f".{cached.name}.{os.getpid()}")
        try:
            _extract(release, temporary, names)
            temporary.rename(cached)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return in_order(list(cached.iterdir()), names)


def _extract(release: str, target: Path, names: Sequence[str]) -> None:
    """Unpack the modules; newer kernels and Ubuntu's have them in a package of their own."""
    root = _root(target.parent)
    try:
        root.extract_all(f"linux-modules-{release}", _member(names), target)
    except AptError:
        root.extract_all(f"linux-image-{release}", _member(names), target)
