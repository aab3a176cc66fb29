"""A mask-conditioned DDPM for MRI, from scratch.

Ho, Jain & Abbeel, "Denoising Diffusion Probabilistic Models", 2020, arXiv:2006.11239,
is what "the paper" means everywhere in this package.
"""


class UserError(Exception):
    """Something the user can mend. Its text is one line: what was found where, and what to do."""
