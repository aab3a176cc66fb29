"""Break the core on purpose, one small change at a time, and count the changes that no test notices.

    python tools/mutants.py [FILE ...]

The changes (mutants) are mutmut's: another operator or number, an argument left out or None, a string altered, a case
dropped, ... Not mutated are docstrings, annotations, and what a `raise` says. mutmut's own runner is not used, as it
skips properties and constants; here each mutant is judged in a process forked from one that has already imported torch.

A mutant that a test notices (or that needs over a minute) is killed, and noted in .cache/mutants.txt, so that a run
that was stopped goes on; where the file or its tests have changed since, it is judged again. For the others
tools/mutants_that_live.txt gives reasons. docs/mutants.md is written at the end of a run over all files.
"""

import ast
import gc
import hashlib
import importlib.machinery
import os
import resource
import sys
import tempfile
from collections import Counter
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # a process with threads must not be forked

import hypothesis.strategies  # noqa: E402
import libcst as cst  # noqa: E402
import pytest  # noqa: E402
import scipy.linalg  # noqa: E402, F401
from libcst.metadata import MetadataWrapper  # noqa: E402
from mutmut.mutation.file_mutation import MutationVisitor  # noqa: E402
from mutmut.mutation.mutators import mutation_operators  # noqa: E402
from mutmut.mutation.pragma_handling import IgnoredCode  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import ddpm.runtime.start  # noqa: E402, F401 (for all that it imports; what is ours each child must import anew)

for name in [name for name in sys.modules if name.split(".")[0] == "ddpm"]:
    del sys.modules[name]
gc.freeze()

hypothesis.settings.register_profile(
    "mutants",
    phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],  # no time for a smallest example
    suppress_health_check=[hypothesis.HealthCheck.too_slow],  # a busy machine kills no mutant
    derandomize=True,
    database=None,
)

KILLED, LIVING, REPORT = ROOT / ".cache/mutants.txt", ROOT / "tools/mutants_that_live.txt", ROOT / "docs/mutants.md"
SECONDS = 60  # of processor time for the tests of one mutant
JUDGES = {  # cheap tests first: the first failure is the end
    "ddpm/schedule.py": ("schedule", "forward", "reverse"),
    "ddpm/forward.py": ("forward",),
    "ddpm/unet.py": ("unet",),
    "ddpm/reverse.py": ("reverse", "model"),
    "ddpm/muon.py": ("muon",),
    "ddpm/inverse.py": ("inverse",),
    "ddpm/metrics/fid.py": ("metrics_fid",),
    "ddpm/metrics/kid.py": ("metrics_kid",),
}
EVERY = [path for path in JUDGES if path != "ddpm/inverse.py"]  # which takes an hour by itself: name it

HEAD = """# Mutants: what the tests would notice

Written by `make mutants` (tools/mutants.py), which makes one small change at a time to the files that the paper's
equations stand in, and runs the tests of that file. A change that no test notices lives. Not mutated are docstrings,
annotations, and what a `raise` says. Each reason stands in tools/mutants_that_live.txt, given by hand; a mutant is
*equivalent* if no input that can come could tell it from the original, apart from the last digits, speed and memory.

| file | mutants | killed | equivalent | survived | killed of those that are not equivalent |
|---|---|---|---|---|---|
"""
MIDDLE = """

## Those that live

| line | what stands there then | reason |
|---|---|---|
"""


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
        hypothesis.settings.load_profile("mutants")
        with tempfile.TemporaryDirectory() as folder:
            options = [
                "-x",
                "-q",
                "-m",
                "not slow",
                "-p",
                "no:cacheprovider",
                "-p",
                "no:unraisableexception",
                f"--basetemp={folder}/pytest",
            ]
            status = pytest.main([*options, *(f"tests/test_{name}.py" for name in JUDGES[path])])
    except BaseException:
        status = 1
    os._exit(int(status))


def state(path: str) -> str:
    """Of a file and the tests that judge it: a mutant that was killed in another state may live in this one."""
    files = [path, *(f"tests/test_{name}.py" for name in JUDGES[path])]
    return hashlib.sha256(b"".join(Path(file).read_bytes() for file in files)).hexdigest()[:12]


def main(paths: list[str]) -> int:
    """The exit status: 1 if a mutant lives that no reason is given for."""
    os.chdir(ROOT)
    KILLED.parent.mkdir(exist_ok=True)
    KILLED.touch()
    killed, reasons = set(KILLED.read_text().splitlines()), reasons_to_live()
    counts, living = [], []
    for path in paths or EVERY:
        source, judged_in = Path(path).read_text(), state(path)
        assert survives(path, source), f"the tests of {path} fail without a mutant"
        kinds = Counter()
        for line, now, text in mutants_of(source):
            name = f"{path}:{line}: {now}"
            note = f"{judged_in} {name}"
            if note in killed or not survives(path, text):
                kinds["killed"] += 1
                if note not in killed:
                    with KILLED.open("a") as file:
                        print(note, file=file)
            else:
                reason = reasons.get(f"{path}: {now}", "NO REASON")
                kinds["equivalent" if reason.startswith("equivalent") else "survived"] += 1
                living.append(f"| {path.removeprefix('ddpm/')}:{line} | `{now}` | {reason} |")
                print(name, flush=True)
        share = kinds["killed"] / (kinds["killed"] + kinds["survived"])
        row = (path, kinds.total(), kinds["killed"], kinds["equivalent"], kinds["survived"], f"{share:.1%}")
        counts.append("| " + " | ".join(map(str, row)) + " |")
        print(counts[-1], flush=True)
    if not paths:
        REPORT.write_text(HEAD + "\n".join(counts) + MIDDLE + "\n".join(living) + "\n")
    return any("NO REASON" in row for row in living)


def reasons_to_live() -> dict[str, str]:
    """Each line that begins at the margin is the reason for the mutants that are indented below it."""
    reasons, reason = {}, ""
    for line in LIVING.read_text().splitlines():
        if line.startswith(" "):
            reasons[line.strip()] = reason
        else:
            reason = line
    return reasons


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
