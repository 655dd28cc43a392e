"""svsmd: an AMD SEV-SNP machine made of software, with an SVSM inside."""

# SPDX-License-Identifier: MIT

from typing import Final

__version__: Final = "0.1.0"
