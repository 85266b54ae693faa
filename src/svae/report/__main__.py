"""So that `python -m svae.report` runs the command."""

from svae.report import main

main()
