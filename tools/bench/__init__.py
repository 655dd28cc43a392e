# SPDX-License-Identifier: MIT
"""Benchmarks: `registry` has the list of them, `python -m tools.bench` runs them."""
