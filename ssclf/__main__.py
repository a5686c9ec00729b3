"""`python -m ssclf` is `ssclf`."""

from ssclf.cli.app import main

main()
