# SPDX-License-Identifier: MIT
"""Get a distribution's stock kernel as a file, unpacked and not installed, and print its path.

    python tools/fetch_kernel.py [SUITE]

On Debian it is the cloud kernel of the suite trixie (6.12), on Ubuntu the release's own generic
kernel if that is 6.11 or newer. A suite of Debian may be named: bookworm has 6.1, which runs at
VMPL0 only, sid the newest. Packages are asked for by name; what is in the cache already is taken
from there, without network.

Spec: tools/apt_packages.py.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Final

# Run as a program, this file has nothing of the source tree in sys.path.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tools.apt_packages import (
    AptError,
    AptRoot,
    cache_directory,
    debian_root,
    os_release,
    release_root,
)

DEBIAN_SUITE: Final = "trixie"
DEBIAN_SUITES: Final = ("bookworm", "trixie", "sid")
"""The suites whose kernels svsmd is tested with, oldest first."""
DEBIAN_PACKAGE: Final = "linux-image-cloud-amd64"
UBUNTU_PACKAGE: Final = "linux-image-generic"
MIN_VERSION: Final = (6, 11)
"""The first Linux that runs below VMPL0, under an SVSM."""
VMLINUZ: Final = r"boot/vmlinuz-.*|(usr/)?lib/modules/.*/vmlinuz"
"""Where packages have it; the second is that of Debian's newer ones, and says no release."""

_VERSION = re.compile(r"(\d+)\.(\d+)(?:\.(\d+))?")


def version_of(name: str) -> tuple[int, ...]:
    """The version in the name of a kernel or of its package: (major, minor, patch)."""
    match = _VERSION.search(name)
    return tuple(int(part or 0) for part in match.groups()) if match else ()


def cached_kernel(directory: Path) -> Path | None:
    """The newest kernel of a directory; None if there is none."""
    kernels = directory.glob("vmlinuz-*")
    return max(kernels, key=lambda path: version_of(path.name), default=None)


def newest_image(
    root: AptRoot, packages: tuple[str, ...], minimum: tuple[int, ...] = MIN_VERSION
) -> str:
    """The package with the kernel that the first usable one of these meta packages stands for.

    Raises:
        AptError: none of them has a kernel that is new enough.
    """
    for package in packages:
        images = [name for name in root.dependencies(package) if name.startswith("linux-image-")]
        for image in images:
            if version_of(image) >= minimum:
                # Newer packages of this name only depend on the one that has the file.
                release = image.removeprefix("linux-image-")
                binary = f"linux-binary-{release}"
                return binary if binary in root.dependencies(image) else image
    wanted = ".".join(map(str, minimum))
    raise AptError(f"none of {', '.join(packages)} is a kernel of version {wanted} or newer")


def extract_kernel(root: AptRoot, package: str, directory: Path) -> Path:
    """The kernel of a package, called vmlinuz-RELEASE.

    Raises:
        AptError: it cannot be had.
    """
    kernel = root.extract(package, VMLINUZ, directory)
    if "-" in kernel.name:
        return kernel
    release = package.split("-", maxsplit=2)[2]
    return kernel.rename(kernel.with_name(f"{kernel.name}-{release}"))


def debian_kernel(suite: str, minimum: tuple[int, ...]) -> Path:
    """The cloud kernel of a suite of Debian.

    Raises:
        AptError: it cannot be had here, or is older than `minimum`.
    """
    directory = cache_directory() / "kernels" / f"debian-{suite}"
    kernel = cached_kernel(directory)
    if kernel is None:
        root = debian_root(suite)
        image = newest_image(root, (DEBIAN_PACKAGE,), minimum)
        kernel = extract_kernel(root, image, directory)
    return kernel


def fetch_kernel(suite: str | None = None) -> Path:
    """The path of a kernel that runs under an SVSM, or of the one of a suite of Debian.

    Raises:
        AptError: there is none for this machine.
    """
    system = os_release()
    family = [system.get("ID", ""), *system.get("ID_LIKE", "").split()]
    if suite is not None:
        if "ubuntu" in family:
            raise AptError("Ubuntu has no suites of Debian: its own kernel has no argument")
        return debian_kernel(suite, ())
    if "ubuntu" in family:
        release = system.get("VERSION_ID", "")
        directory = cache_directory() / "kernels" / f"ubuntu-{release}"
        kernel = cached_kernel(directory)
        if kernel is None:
            root = release_root()
            # A release of two years of age has its newer kernels under a name of their own.
            image = newest_image(root, (f"{UBUNTU_PACKAGE}-hwe-{release}", UBUNTU_PACKAGE))
            kernel = extract_kernel(root, image, directory)
        return kernel
    if "debian" in family:
        return debian_kernel(DEBIAN_SUITE, MIN_VERSION)
    raise AptError("this is neither Debian nor Ubuntu: set SVSMD_TEST_KERNEL to a kernel's path")


def main(arguments: list[str]) -> int:
    """Command line; 0 = the path is printed, 1 = one line on stderr says why not, 2 = usage."""
    if len(arguments) > 1:
        print("usage: fetch_kernel.py [SUITE]", file=sys.stderr)
        return 2
    try:
        print(fetch_kernel(*arguments))
    except (AptError, OSError) as error:
        print(f"fetch_kernel: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
