"""So that `python -m svae.results` runs the command."""

from svae.results import main

main()
