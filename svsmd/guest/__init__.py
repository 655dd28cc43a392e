# SPDX-License-Identifier: MIT
"""Sources of the guests that ship with svsmd; ``svsmd.images`` has them compiled."""
