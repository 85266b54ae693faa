"""So that `python -m svae.bench` runs the command."""

from svae.bench import main

main()
