"""`python -m tatscli` is `tats`."""

import sys

from tatscli.cli import main

if __name__ == "__main__":
    sys.exit(main())
