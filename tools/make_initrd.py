# SPDX-License-Identifier: MIT
"""Make an initial RAM disk with a busybox shell on the first serial port.

    python tools/make_initrd.py OUTPUT [KERNEL]

With a kernel (the path that tools/fetch_kernel.py prints) it also has the modules that drive
svsmd's disks and its entropy device. A `root=DEVICE` on the kernel's command line is mounted, and
its /sbin/init takes over.

The bytes depend on busybox and the modules alone: no dates, no owners, no paths of this machine. A
static busybox in PATH is taken; else the one of the package busybox-static, unpacked and not
installed.

Spec: Linux, Documentation/driver-api/early-userspace/buffer-format.rst (newc).
"""

from __future__ import annotations

import io
import shutil
import stat
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from elftools.elf.elffile import ELFFile

# Run as a program, this file has nothing of the source tree in sys.path.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tools.apt_packages import AptError, cache_directory, release_root
from tools.kernel_modules import fetch_modules

BUSYBOX_PACKAGE: Final = "busybox-static"
READY: Final = "SVMBOOT: shell"
"""What init prints before its shell, or before its script."""
SCRIPT: Final = "script"
"""File in which the commands are that init runs in place of a shell."""

INIT: Final = f"""\
#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
for module in /lib/modules/*; do [ -e "$module" ] && insmod "$module"; done
for word in $(cat /proc/cmdline); do
  case $word in root=*) root=${{word#root=}} ;; esac
done
if [ -n "$root" ]; then
  mount "$root" /newroot
  mount -t devtmpfs devtmpfs /newroot/dev
  exec switch_root /newroot /sbin/init
fi
echo "{READY} $(uname -r)"
[ -e /{SCRIPT} ] && exec sh /{SCRIPT}
exec setsid sh -c 'exec sh -i </dev/ttyS0 >/dev/ttyS0 2>&1'
"""

_MAGIC: Final = b"070701"
_ALIGNMENT: Final = 4
_TRAILER: Final = "TRAILER!!!"


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of the archive: its name without a leading slash, its st_mode, its contents.

    `device` is the (major, minor) of a device file.
    """

    name: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def _padding(size: int) -> bytes:
    return bytes(-size % _ALIGNMENT)


def newc(entries: Iterable[Entry]) -> bytes:
    """A cpio archive in the format "newc" with these entries, dated 1970, owned by root."""
    archive = io.BytesIO()
    for inode, entry in enumerate([*entries, Entry(_TRAILER, 0)], start=1):
        name = entry.name.encode() + b"\0"
        links = 2 if stat.S_ISDIR(entry.mode) else 1
        # ino, mode, uid, gid, nlink, mtime, filesize, dev (2), rdev (2), namesize, check
        fields = (inode, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, *entry.device)
        header = _MAGIC + b"".join(b"%08X" % field for field in (*fields, len(name), 0))
        archive.write(header + name + _padding(len(header) + len(name)))
        archive.write(entry.data + _padding(len(entry.data)))
    return archive.getvalue()


def initrd(
    busybox: bytes,
    modules: Mapping[str, bytes] | None = None,
    programs: Mapping[str, bytes] | None = None,
    script: str | None = None,
) -> bytes:
    """The archive with this busybox, `INIT`, and the console that the kernel gives to it.

    Args:
        busybox: the program.
        modules: kernel modules by name, in the order in which `INIT` loads them.
        programs: other programs by name; they are in /bin.
        script: commands that `INIT` runs in place of a shell; the last one powers the machine off.
    """
    names = ("bin", "dev", "lib", "lib/modules", "newroot", "proc", "sys")
    return newc(
        [
            *(Entry(name, stat.S_IFDIR | 0o755) for name in names),
            Entry("dev/console", stat.S_IFCHR | 0o600, device=(5, 1)),
            Entry("bin/busybox", stat.S_IFREG | 0o755, busybox),
            Entry("init", stat.S_IFREG | 0o755, INIT.encode()),
            *(
                Entry(f"lib/modules/{number:02}-{name}.ko", stat.S_IFREG | 0o644, data)
                for number, (name, data) in enumerate((modules or {}).items())
            ),
            *(
                Entry(f"bin/{name}", stat.S_IFREG | 0o755, data)
                for name, data in (programs or {}).items()
            ),
            *([] if script is None else [Entry(SCRIPT, stat.S_IFREG | 0o644, script.encode())]),
        ]
    )


def is_static(path: Path) -> bool:
    """Whether a file is an ELF program that needs no loader."""
    with path.open("rb") as file:
        if file.read(4) != b"\x7fELF":
            return False
        return all(segment["p_type"] != "PT_INTERP" for segment in ELFFile(file).iter_segments())


def find_busybox() -> Path:
    """A static busybox for this kind of computer.

    Raises:
        AptError: there is none, and none can be downloaded.
    """
    installed = shutil.which("busybox")
    if installed is not None and is_static(Path(installed)):
        return Path(installed)
    cached = cache_directory() / "busybox" / "busybox"
    if not cached.is_file():
        cached = release_root().extract(BUSYBOX_PACKAGE, r"(usr/)?bin/busybox", cached.parent)
    return cached


def main(arguments: list[str]) -> int:
    """Command line; 0 = done, 1 = one line on stderr says why not, 2 = usage."""
    if len(arguments) not in (1, 2):
        print("usage: make_initrd.py OUTPUT [KERNEL]", file=sys.stderr)
        return 2
    try:
        modules = fetch_modules(Path(arguments[1])) if len(arguments) == 2 else None
        Path(arguments[0]).write_bytes(initrd(find_busybox().read_bytes(), modules))
    except (AptError, OSError) as error:
        print(f"make_initrd: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
