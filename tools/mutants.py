"""Break the core on purpose, one small change at a time, and count the changes that no test notices.

    python tools/mutants.py [FILE ...]

The changes (mutants) are mutmut's: another operator or number, an argument left out or None, a string altered, a case
dropped, ... Not mutated are docstrings, annotations, and what a `raise` says. mutmut's own runner is not used, as it
skips properties and constants; here each mutant is judged in a process forked from one that has already imported torch.

A mutant that a test notices (or that needs over a minute) is killed, and noted in .cache/mutants.txt, so that a run
that was stopped goes on; remove that file to begin anew. tools/mutants_that_live.txt gives reasons for the others.
docs/mutants.md is written at the end of a run over all files.
"""

import ast
import importlib.machinery
import os
import resource
import sys
import tempfile
from collections import Counter
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # a process with threads must not be forked

import h5py  # noqa: E402, F401
import hypothesis.strategies  # noqa: E402, F401
import libcst as cst  # noqa: E402
import nibabel  # noqa: E402, F401
import pytest  # noqa: E402
import scipy.linalg  # noqa: E402, F401
import torch  # noqa: E402, F401
from libcst.metadata import MetadataWrapper, PositionProvider  # noqa: E402
from mutmut.mutation.file_mutation import MutationVisitor  # noqa: E402
from mutmut.mutation.mutators import mutation_operators  # noqa: E402
from mutmut.mutation.pragma_handling import IgnoredCode  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
KILLED, LIVING, REPORT = ROOT / ".cache/mutants.txt", ROOT / "tools/mutants_that_live.txt", ROOT / "docs/mutants.md"
SECONDS = 60  # of processor time for the tests of one mutant
JUDGES = {  # cheap tests first: the first failure is the end
    "ddpm/schedule.py": ("schedule", "forward", "reverse"),
    "ddpm/forward.py": ("forward",),
    "ddpm/unet.py": ("unet",),
    "ddpm/reverse.py": ("reverse", "model"),
    "ddpm/metrics/fid.py": ("metrics_fid",),
    "ddpm/metrics/kid.py": ("metrics_kid",),
}


class Visitor(MutationVisitor):
    def _skip_node_and_children(self, node):
        if isinstance(node, cst.FunctionDef):
            return False  # mutmut would skip decorated ones, because it copies them
        return isinstance(node, cst.Raise) or super()._skip_node_and_children(node)


def mutants_of(source: str):
    """Each mutant's line number, what stands there now, and the whole text."""
    wrapper, seen = MetadataWrapper(cst.parse_module(source)), {ast.dump(ast.parse(source))}
    visitor = Visitor(mutation_operators, IgnoredCode(set(), set(), set()))
    wrapper.visit(visitor)
    for mutation in visitor.mutations:
        mutant = wrapper.module.deep_replace(mutation.original_node, mutation.mutated_node).code
        try:
            tree = ast.dump(ast.parse(mutant))
        except SyntaxError:
            continue
        if tree not in seen:
            seen.add(tree)
            yield (*difference(source.splitlines(), mutant.splitlines()), mutant)


def difference(old: list[str], new: list[str]) -> tuple[int, str]:
    first = next(i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b)
    while old[-1] == new[-1] and min(len(old), len(new)) > first:
        old, new = old[:-1], new[:-1]
    now = " ".join(line.strip() for line in new[first:])
    return first + 1, now or "without " + " ".join(line.strip() for line in old[first:])


def survives(path: str, text: str) -> bool:
    """Whether the tests of a file pass with this text in its place, in a child process."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1] == 0
    try:
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
        for stream in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        load = importlib.machinery.SourceFileLoader.get_code
        importlib.machinery.SourceFileLoader.get_code = lambda self, name: (
            compile(text, path, "exec") if self.path == str(ROOT / path) else load(self, name)
        )
        profile = {"phases": [hypothesis.Phase.explicit, hypothesis.Phase.generate], "database": None}
        hypothesis.settings.register_profile("mutants", derandomize=True, **profile)
        hypothesis.settings.load_profile("mutants")
        with tempfile.TemporaryDirectory() as folder:
            options = ["-x", "-q", "-m", "not slow", "-p", "no:cacheprovider", f"--basetemp={folder}/pytest"]
            status = pytest.main([*options, *(f"tests/test_{name}.py" for name in JUDGES[path])])
    except BaseException:
        status = 1
    os._exit(int(status))


def main(paths: list[str]) -> None:
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    KILLED.parent.mkdir(exist_ok=True)
    killed = set(KILLED.read_text().splitlines()) if KILLED.exists() else set()
    for path in paths or JUDGES:
        source = Path(path).read_text()
        assert survives(path, source), f"the tests of {path} fail without a mutant"
        for line, now, text in mutants_of(source):
            name = f"{path}:{line}: {now}"
            if name in killed:
                continue
            if survives(path, text):
                print(name, flush=True)
            else:
                with KILLED.open("a") as file:
                    print(name, file=file)


if __name__ == "__main__":
    main(sys.argv[1:])
