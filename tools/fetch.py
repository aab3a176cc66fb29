"""Fetch a data set from Kaggle: `make data KAGGLE=owner/name` (needs kagglehub: requirements/kaggle.txt).

kagglehub keeps what it fetches in its own cache, and fetches nothing twice. Public sets need no account; for the others
it looks for a token in KAGGLE_API_TOKEN, or in ~/.kaggle. Not yet run with a network.
"""

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ddpm import UserError
from ddpm.runtime.command_line import Parser, one_line_errors


@one_line_errors
def main(argv):
    parser = Parser(prog="tools/fetch.py", description=__doc__.splitlines()[0])
    parser.add_argument("name", nargs="?", default="", help="owner/name, as in the address of its page")
    name = parser.parse_args(argv).name
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise UserError(f"KAGGLE={name}: name a data set as owner/name, for example mateuszbuda/lgg-mri-segmentation")
    try:
        import kagglehub
    except ImportError:
        raise UserError("kagglehub is not installed; run: pip install -r requirements/kaggle.txt") from None
    try:
        folder = kagglehub.dataset_download(name)
    except Exception as error:  # its own, those of requests, and of the archive
        raise UserError(f"{name}: {why(error)}") from None
    print(f"{folder}\nnow: python train.py --data {folder}")


def why(error: Exception) -> str:
    """What went wrong, and what to do, in one line."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if status in (401, 403) or "UnauthenticatedError" in kinds:
        return (
            "Kaggle asks who you are; accept the set's terms on its page, put a token where kagglehub looks, try again"
        )
    if status == 404:
        return "Kaggle knows no data set of this name; look at the address of its page"
    if kinds & {"ConnectionError", "Timeout", "URLError", "gaierror"}:
        return "Kaggle cannot be reached; check the network, or fetch it elsewhere and name the folder with --data"
    text = " ".join(str(error).split()) or type(error).__name__
    return f"could not be fetched ({text[:200]}); try again, or fetch it in a browser and name the folder with --data"


if __name__ == "__main__":
    sys.exit(main())
