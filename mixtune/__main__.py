"""``python -m mixtune``."""

from mixtune.cli import main

if __name__ == "__main__":
    main()
