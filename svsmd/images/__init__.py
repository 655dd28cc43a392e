# SPDX-License-Identifier: MIT
"""The compiled code that ships with svsmd: the demo guest, and the SVSM with its modules.

``tools/build_images.py`` makes them; the build of the wheel (and of an editable install) runs it.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Final

IMAGES: Final = {
    "demo": "demo.elf",
    "stages": "stages.elf",
    "svsm": "svsm.elf",
    "modules": "modules.tar",
}
"""Names that `image_path` knows: the demo guest, the SVSM's two boot stages, its kernel, and the
archive of its modules."""


class ImageMissingError(FileNotFoundError):
    """An image has not been built; the text says how to build it."""


def image_path(name: str) -> Path:
    """Path of the file ``name`` (one of `IMAGES`).

    Raises ValueError for another name, ImageMissingError if the file is not there.
    """
    if name not in IMAGES:
        raise ValueError(f"no image is called {name!r}; there are {', '.join(IMAGES)}")
    path = Path(str(files(__name__) / IMAGES[name]))
    if not path.is_file():
        raise ImageMissingError(
            f"{path} is not built: run `python tools/build_images.py` in the source tree "
            "(it needs a C compiler, cc)"
        )
    return path
