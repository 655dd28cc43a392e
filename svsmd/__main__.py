# SPDX-License-Identifier: MIT
"""`python -m svsmd` is the program `svsmd`."""

from svsmd.cli import main

if __name__ == "__main__":
    main()
