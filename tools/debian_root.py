# SPDX-License-Identifier: MIT
"""Make an ext4 image with a small Debian, without root and without mounting anything.

    python tools/debian_root.py OUTPUT

It is what the packages contain and no more: nothing is configured, and dpkg knows all of them as
unpacked. /sbin/init is a script that ends in a bash on the first serial port. Files belong to who
runs this program.

    python tools/make_initrd.py initrd.cpio KERNEL
    svsmd run --kernel KERNEL --initrd initrd.cpio --disk OUTPUT \\
        --append "console=ttyS0 root=/dev/vda"

Spec: mke2fs(8), dpkg-deb(1); /var/lib/dpkg/status as dpkg(1) has it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Final

# Run as a program, this file has nothing of the source tree in sys.path.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tools.apt_packages import (
    AptError,
    AptRoot,
    debian_root,
    os_release,
    release_root,
    unpack_archive,
)
from tools.fetch_kernel import DEBIAN_SUITE
from tools.programs import find_program

PACKAGES: Final = (
    "apt", "base-files", "base-passwd", "bash", "busybox-static", "coreutils", "dash", "dpkg",
    "grep", "mount", "sed",
)  # fmt: skip
"""They and what they depend on."""
IMAGE_SIZE: Final = "256M"
READY: Final = "SVMBOOT: Debian"
"""What init prints before its shell."""

INIT: Final = f"""\
#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t tmpfs tmpfs /tmp
export HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
echo "{READY} $(cat /etc/debian_version)"
cd
exec busybox setsid sh -c 'exec bash </dev/ttyS0 >/dev/ttyS0 2>&1'
"""
PASSWD: Final = "root:x:0:0:root:/root:/bin/bash\n_apt:x:42:65534::/nonexistent:/usr/sbin/nologin\n"
GROUP: Final = "root:x:0:\nnogroup:x:65534:\n"


def _run(*command: str | Path) -> bytes:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if done.returncode:
        reason = done.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"]
        raise AptError(f"{command[0]} failed: {reason[-1]}")
    return done.stdout


def unpack(archives: Iterable[Path], tree: Path) -> None:
    """Put the contents of packages into a directory, and their names into dpkg's list of them."""
    # Its symbolic links have to be there before others put files behind them.
    status = []
    for archive in sorted(archives, key=lambda path: not path.name.startswith("base-files_")):
        unpack_archive(archive, tree)
        fields = _run("dpkg-deb", "--field", archive).decode()
        status.append(f"{fields.rstrip()}\nStatus: install ok unpacked\n")
    database = tree / "var/lib/dpkg"
    database.mkdir(parents=True, exist_ok=True)
    (database / "status").write_text("\n".join(status))


def finish(tree: Path) -> None:
    """What the packages' own scripts would do, as far as a shell needs it."""
    (tree / "etc/passwd").write_text(PASSWD)
    (tree / "etc/group").write_text(GROUP)
    for name in ("dev", "proc", "root", "sys", "tmp"):
        (tree / name).mkdir(exist_ok=True)
    init = tree / "sbin/init"
    init.write_text(INIT)
    init.chmod(0o755)


def make_image(tree: Path, output: Path) -> None:
    """An ext4 file system with what is in a directory."""
    mke2fs = find_program("mke2fs")
    if mke2fs is None:
        raise AptError("mke2fs is not here: apt install e2fsprogs")
    temporary = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        _run(
            mke2fs, "-q", "-t", "ext4", "-L", "debian", "-E", "root_owner=0:0",
            "-d", tree, temporary, IMAGE_SIZE,
        )  # fmt: skip
        temporary.replace(output)
    finally:
        temporary.unlink(missing_ok=True)


def _apt_root() -> AptRoot:
    """The release that the kernel comes from as well."""
    system = os_release()
    family = [system.get("ID", ""), *system.get("ID_LIKE", "").split()]
    return release_root() if "ubuntu" in family else debian_root(DEBIAN_SUITE)


def debian_image(output: Path) -> None:
    """Make the image.

    Raises:
        AptError: packages or programs are missing.
    """
    archives = _apt_root().download(PACKAGES)
    with tempfile.TemporaryDirectory() as directory:
        tree = Path(directory) / "root"
        unpack(archives, tree)
        finish(tree)
        make_image(tree, output)


def main(arguments: list[str]) -> int:
    """Command line; 0 = done, 1 = one line on stderr says why not, 2 = usage."""
    if len(arguments) != 1:
        print("usage: debian_root.py OUTPUT", file=sys.stderr)
        return 2
    try:
        debian_image(Path(arguments[0]))
    except (AptError, OSError) as error:
        print(f"debian_root: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
