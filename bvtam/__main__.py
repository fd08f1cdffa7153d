"""`python -m bvtam` is the command line."""

from .cli import main

main()
