"""`python -m musicnet_eval.report`."""

import sys

from musicnet_eval.report.command import main

if __name__ == "__main__":
    sys.exit(main())
