# SPDX-License-Identifier: MIT
"""Backtraces of the SVSM: native frames, and the frames of the handlers behind the gate."""
