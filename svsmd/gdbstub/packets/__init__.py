# SPDX-License-Identifier: MIT
"""The packets of the GDB remote serial protocol, one module for each family.

Each module has a table `HANDLERS`: packet name to a function that is given the session's `Context`
and what follows the name, and returns the body of the reply or an `Action`.
"""
