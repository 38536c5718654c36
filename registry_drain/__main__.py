"""``python -m registry_drain``: the command ``registry-drain``."""

import sys

from registry_drain.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
