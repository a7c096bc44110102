"""Run the command line as `python -m lorabake`."""

from lorabake.cli import main

if __name__ == "__main__":
    main()
