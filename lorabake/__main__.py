"""Run the command line as `python -m lorabake`."""

from lorabake.cli import entry

if __name__ == "__main__":
    entry()
