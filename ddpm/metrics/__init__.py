"""How good are the samples? Each file is one question, answered from arrays alone.

Nothing here knows of diffusion. Features are arrays (N, D), one row an image, from whatever network or pixels the
caller chose; a score means what its features mean, so a caller prints where they came from.
"""
