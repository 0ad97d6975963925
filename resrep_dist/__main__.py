"""`python -m resrep_dist` is `resrep`."""

import sys

from resrep_dist.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
