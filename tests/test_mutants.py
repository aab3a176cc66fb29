"""Which mutants are judged again: tools/mutants.py, with neither its libraries nor a mutation."""

import subprocess
import sys
from pathlib import Path

import train

ROOT = Path(train.__file__).parent
SCRIPT = """
import sys, types

def made_up(name, *parts):
    sys.modules[name] = module = types.ModuleType(name)
    vars(module).update(dict.fromkeys(parts, object))

made_up("libcst", "FunctionDef", "Raise")
made_up("libcst.metadata", "MetadataWrapper")
made_up("mutmut")
made_up("mutmut.mutation")
made_up("mutmut.mutation.file_mutation", "MutationVisitor")
made_up("mutmut.mutation.mutators", "mutation_operators")
made_up("mutmut.mutation.pragma_handling", "IgnoredCode")

from pathlib import Path
from tools import mutants

place = Path(sys.argv[1])
mutants.ROOT, mutants.KILLED, mutants.LIVING = place, place / "cache" / "mutants.txt", place / "living.txt"
mutants.JUDGES, judged = {"a.py": ("a",), "b.py": ("b",)}, []
mutants.mutants_of = lambda source: [(1, "x = 2", "x = 2"), (2, "y = 3", "y = 3")]
mutants.survives = lambda path, text: text.startswith("x = 1") or judged.append((path, text))
for change in (None, None, "tests/test_a.py", "a.py"):
    if change:
        (place / change).write_text("x = 1  # changed")
    judged.clear()
    assert mutants.main(["a.py", "b.py"]) == 0
    print(*(path for path, _ in judged))
"""


def test_a_mutant_is_judged_once_and_again_when_its_file_or_its_tests_have_changed(tmp_path):
    (tmp_path / "tests").mkdir()
    (tmp_path / "living.txt").touch()
    for name in ("a.py", "b.py", "tests/test_a.py", "tests/test_b.py"):
        (tmp_path / name).write_text("x = 1")
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    judged = [line for line in done.stdout.splitlines() if not line.startswith("|")]
    assert judged == ["a.py a.py b.py b.py", "", "a.py a.py", "a.py a.py"]
