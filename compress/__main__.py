"""`python -m compress` is the `compress` command."""

from compress.cli.main import main

main()
