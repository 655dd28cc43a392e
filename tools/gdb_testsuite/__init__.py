# SPDX-License-Identifier: MIT
"""Runs files of gdb's own testsuite against svsmd and against gdbserver, and compares."""
