"""So that `python -m svae.sweep` runs the command."""

from svae.sweep import main

main()
