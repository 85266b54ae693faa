"""Files of electron microscopy: MRC stacks, RELION's STAR files, cryoSPARC's `.cs` files.

Pixels here are as the files have them: x to the right, y **down**, angles and shifts in the
conventions of the program that wrote them. `svae.geometry` has the project's own.
"""
