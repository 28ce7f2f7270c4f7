"""`python -m irl_exp.dashboard multirun/<study>`."""

import sys

from irl_exp.dashboard.workspaces import main

if __name__ == "__main__":
    sys.exit(main())
