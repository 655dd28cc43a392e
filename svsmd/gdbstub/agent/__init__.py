# SPDX-License-Identifier: MIT
"""Agent expressions: what gdb has the stub evaluate at breakpoints, without being asked each time.

`packet` takes them out of Z packets, `bytecode` makes checked programs of them, `printf` does what
their `printf` op code asks for.
"""
