# SPDX-License-Identifier: MIT
"""What a debugger wants to know of a Linux kernel, out of the kernel's own image."""
