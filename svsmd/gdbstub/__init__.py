# SPDX-License-Identifier: MIT
"""The GDB remote stub: sans-IO codec and session, the packets, and a trio shell round them."""
