# SPDX-License-Identifier: MIT
"""System calls of CPL 3 programs."""
