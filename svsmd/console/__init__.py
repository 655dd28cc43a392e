# SPDX-License-Identifier: MIT
"""Serial consoles: a hub per serial line, and the endpoints through which people reach it."""
