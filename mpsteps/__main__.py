"""`python -m mpsteps`: the command line."""

import sys

from mpsteps.cli import main

if __name__ == "__main__":
    sys.exit(main())
