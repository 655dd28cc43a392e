# SPDX-License-Identifier: MIT
"""What processes share with one another, with the core and with the guest, all by handles."""
