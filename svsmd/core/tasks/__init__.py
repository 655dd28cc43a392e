# SPDX-License-Identifier: MIT
"""Tasks of the SVSM: kernel threads and CPL 3 processes, and what runs them."""
