"""A mask-conditioned DDPM for MRI, from scratch.

Ho, Jain & Abbeel, "Denoising Diffusion Probabilistic Models", 2020, arXiv:2006.11239,
is what "the paper" means everywhere in this package.
"""


class UserError(Exception):
    """Something the user can mend. Its text is one line: what was found where, and what to do."""

    def __init__(self, message: object):
        super().__init__(printable(str(message)))


def printable(text: str) -> str:
    """Text in one line that can be printed, whatever a file's name in it holds: newlines, bytes that are no letters."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
