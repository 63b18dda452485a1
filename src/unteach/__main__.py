"""`python -m unteach`: what a launcher of several processes starts."""

import sys

from unteach.cli import main

if __name__ == "__main__":
    sys.exit(main())
