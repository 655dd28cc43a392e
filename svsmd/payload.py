# SPDX-License-Identifier: MIT
"""The guest's files, read once, and its kernel, unpacked while the rest of svsmd is imported.

Unpacking takes as long as all imports together, and none of it holds Python's lock.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

from svsmd.config import Decompress, MachineConfig
from svsmd.errors import UserError
from svsmd.host.bzimage import decompress_payload, is_bzimage, parse_bzimage
from svsmd.images import image_path


class Payload:
    """What the guest is made of.

    Attributes:
        kernel: the file's contents; the demo guest if there is no file.
        initrd: the same, or None.
        append: command line of the guest.
        archive: modules of the SVSM; empty if there is none.
    """

    def __init__(
        self, kernel: bytes, initrd: bytes | None, append: str, archive: bytes = b""
    ) -> None:
        self.kernel = kernel
        self.initrd = initrd
        self.append = append
        self.archive = archive
        self._unpacking: Future[bytes] | None = None

    def start_unpacking(self) -> None:
        """Begin, in a thread of its own, with what unpack() will be asked for first."""
        pool = ThreadPoolExecutor(1, "unpack")
        self._unpacking = pool.submit(self._unpack_kernel)
        pool.shutdown(wait=False)

    def _unpack_kernel(self) -> bytes:
        return decompress_payload(parse_bzimage(self.kernel).payload)

    def unpack(self, packed: bytes) -> bytes:
        """The kernel in `packed`, the payload of the bzImage; only this call's caller keeps it.

        Raises:
            LoaderError: as decompress_payload().
        """
        unpacking, self._unpacking = self._unpacking, None
        return decompress_payload(packed) if unpacking is None else unpacking.result()


def read_payload(config: MachineConfig) -> Payload:
    """Reads the guest's files.

    Raises:
        UserError: one cannot be read.
    """
    kernel_path = config.kernel or image_path("demo")
    try:
        kernel = kernel_path.read_bytes()
        initrd = config.initrd.read_bytes() if config.initrd is not None else None
        archive = (config.archive or image_path("modules")).read_bytes() if config.svsm else b""
    except OSError as error:
        raise UserError(f"cannot read {error.filename}: {error.strerror}") from None
    payload = Payload(kernel, initrd, config.append, archive)
    if config.decompress is Decompress.HOST and is_bzimage(kernel):
        payload.start_unpacking()
    return payload
