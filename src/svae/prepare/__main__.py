"""So that `python -m svae.prepare` runs the command."""

from svae.prepare import main

main()
