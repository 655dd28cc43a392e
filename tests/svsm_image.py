# SPDX-License-Identifier: MIT
"""The SVSM's image as it was built, for tests that want its addresses."""

from __future__ import annotations

from svsmd.images import image_path
from svsmd.snp.types import PAGE_SIZE
from svsmd.svsm_image import SvsmImage, load_svsm_image


def built_svsm_image() -> SvsmImage:
    """With an empty page in place of the core's digest."""
    stages, kernel = (image_path(name).read_bytes() for name in ("stages", "svsm"))
    return load_svsm_image(stages, kernel, bytes(PAGE_SIZE))
