"""``python -m stepmend.cli``."""

from stepmend.cli import main

main()
