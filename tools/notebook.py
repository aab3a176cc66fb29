"""Execute docs/notebooks/tour.ipynb and write it back with its outputs: `make notebook`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ddpm import UserError
from ddpm.runtime.command_line import Parser, one_line_errors
from ddpm.runtime.files import check_file, write_whole

NOTEBOOK = Path(__file__).resolve().parents[1] / "docs" / "notebooks" / "tour.ipynb"


@one_line_errors
def main(argv):
    parser = Parser(prog="tools/notebook.py", description=__doc__)
    parser.add_argument("--out", type=Path, default=NOTEBOOK, help="where to write it (default: in its own place)")
    args = parser.parse_args(argv)
    try:
        import nbformat
        from nbclient import NotebookClient
    except ImportError:
        raise UserError("nbclient is not installed; run: pip install -r requirements/notebook.txt") from None
    check_file(args.out)  # before the work
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    # Without the times of each cell, so that only what changed differs. The kernel is this Python's.
    client = NotebookClient(
        notebook, timeout=1800, record_timing=False, resources={"metadata": {"path": NOTEBOOK.parent}}
    )
    client.create_kernel_manager()
    client.km.kernel_spec.argv[0] = sys.executable
    client.execute()
    notebook.metadata["language_info"] = {"name": "python"}
    text = nbformat.writes(notebook).replace(sys.executable, "python")  # the outputs tell no path of this machine
    write_whole(args.out, lambda file: file.write(text.encode()))
    print(args.out)


if __name__ == "__main__":
    sys.exit(main())
