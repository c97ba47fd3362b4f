"""`python -m musicnet_eval.audit`."""

import sys

from musicnet_eval.audit.command import main

if __name__ == "__main__":
    sys.exit(main())
