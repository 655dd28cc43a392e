# SPDX-License-Identifier: MIT
"""The protocols that the SVSM offers its guest, one module each."""
