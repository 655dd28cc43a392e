# SPDX-License-Identifier: MIT
"""What a debugger wants to know of a Linux kernel, out of the kernel's own image.

All of it comes out of the kernel (bzImage or ELF) itself; no debug package is needed. `svsmd
symbols` writes it to a file, and the debugger stub serves it as the guest's executable.
"""
