# SPDX-License-Identifier: MIT
"""Hatchling's build hook: wheels, and editable installs, carry the compiled images."""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

# Hatchling runs this file by its path, with nothing of the source tree in sys.path.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tools import build_images


class ImagesBuildHook(BuildHookInterface[Any]):
    """Runs build_images before hatchling collects the files.

    Without a compiler the images that are there already serve; without both there is nothing to
    ship, and the build ends with a line that says what to install.
    """

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Hatchling calls this first, for both kinds of wheel."""
        try:
            build_images.build()
        except build_images.BuildError as error:
            missing = [path for path in build_images.OUTPUTS if not path.is_file()]
            if missing:
                raise SystemExit(
                    f"svsmd: {error}; not built: {', '.join(path.name for path in missing)}"
                ) from None
            self.app.display_warning(f"svsmd: {error}; the images that are there are used")
        # The libraries are machine code of this kind of computer, whatever Python is there.
        build_data["pure_python"] = False
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["tag"] = f"py3-none-{platform}"
