"""Files and folders."""

import os

from ddpm import UserError


def check_writable(folder: str) -> None:
    """Make the folder, or raise UserError; what cannot be written must fail before the work, not after."""
    try:
        os.makedirs(folder, exist_ok=True)
        probe = os.path.join(folder, f".probe-{os.getpid()}")
        open(probe, "w").close()
        os.remove(probe)
    except OSError as error:
        raise UserError(f"--out {folder}: cannot write there ({error.strerror}); name another folder") from None
