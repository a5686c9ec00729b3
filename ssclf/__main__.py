"""`python -m ssclf` is `ssclf`."""

from ssclf.cli import main

main()
