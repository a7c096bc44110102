"""Run the command line as `python -m lorabake`."""

import os
import sys

# Python looks for modules in the current folder first, which may be a model's: there may be a torch.py in it.
if sys.path[:1] in ([""], [os.getcwd()]) and not sys.flags.safe_path:
    del sys.path[0]

from lorabake.cli import entry

if __name__ == "__main__":
    entry()
