# SPDX-License-Identifier: MIT
"""Make an archive for the SVSM: a tar file with the programs that it runs at CPL 3.

    python tools/make_archive.py OUTPUT DIRECTORY [FILE...]

All files below DIRECTORY get their paths there, each FILE becomes /bin/ plus its name. The bytes
depend on the contents alone: no dates, no owners.

Spec: POSIX.1-2017, pax, "ustar Interchange Format".
"""

from __future__ import annotations

import io
import sys
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path


def make_archive(files: Mapping[str, bytes]) -> bytes:
    """The tar file of these files, by path."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for path, data in sorted(files.items()):
            info = tarfile.TarInfo(path.lstrip("/"))
            info.size = len(data)
            info.mode = 0o555
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def collect(directory: Path, programs: Iterable[Path]) -> dict[str, bytes]:
    """The files below `directory`, and the programs in /bin, by their paths in the archive."""
    files = {
        f"/{path.relative_to(directory)}": path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }
    return files | {f"/bin/{path.name}": path.read_bytes() for path in programs}


def main(arguments: list[str]) -> int:
    """Exit code of the program."""
    if len(arguments) < 2:
        print(__doc__, file=sys.stderr)
        return 2
    output, directory, *programs = map(Path, arguments)
    output.write_bytes(make_archive(collect(directory, programs)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
