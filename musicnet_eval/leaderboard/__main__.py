"""`python -m musicnet_eval.leaderboard`."""

import sys

from musicnet_eval.leaderboard.command import main

if __name__ == "__main__":
    sys.exit(main())
