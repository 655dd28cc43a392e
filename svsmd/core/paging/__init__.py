# SPDX-License-Identifier: MIT
"""VMPL0's page tables, and the areas of its CPUs."""

from svsmd.core.page_entry import Mapping, PageFlags
from svsmd.core.paging.page_table import AlreadyMapped, NotMapped, PageTable

__all__ = ["AlreadyMapped", "Mapping", "NotMapped", "PageFlags", "PageTable"]
