"""What `make` sets up by itself is whole, or not there."""

import shutil
import subprocess
from pathlib import Path

import pytest

import train

ROOT = Path(train.__file__).parent

# Stands for python3 and, once copied there, for the environment's own: `-m venv DIR` makes bin/python, then bin/pip.
PYTHON = """#!/bin/sh
mkdir -p "$3/bin"
cp "$0" "$3/bin/python"
{ending}
"""
WITHOUT_PYTHON3_VENV = 'echo "ensurepip is not available" >&2; exit 1'
WHOLE = 'printf "#!/bin/sh\\necho \\"\\$@\\" >> installed\\n" > "$3/bin/pip"; chmod +x "$3/bin/pip"'
DIES_AFTER_PIP = f"{WHOLE}; exit 1"


@pytest.mark.skipif(not shutil.which("make"), reason="there is no make")
def test_a_failed_environment_is_not_taken_for_one(tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    shutil.copy(ROOT / "requirements.txt", tmp_path)
    shutil.copytree(ROOT / "requirements", tmp_path / "requirements")

    def make(target, ending):
        (tmp_path / "python").write_text(PYTHON.format(ending=ending))
        (tmp_path / "python").chmod(0o755)
        return subprocess.run(["make", target, "PYTHON=./python"], cwd=tmp_path, capture_output=True, text=True)

    for target, environment in (("setup", ".venv"), ("parity", ".venv-parity")):
        for ending in (WITHOUT_PYTHON3_VENV, DIES_AFTER_PIP):
            done = make(target, ending)
            assert done.returncode != 0 and "apt install python3-venv" in done.stderr
            assert not (tmp_path / environment).exists() and not (tmp_path / "installed").exists()
    assert make("setup", WHOLE).returncode == 0
    assert "-r requirements.txt" in (tmp_path / "installed").read_text()
    assert (tmp_path / ".venv" / ".installed").exists()
    again = make("setup", WITHOUT_PYTHON3_VENV)  # nothing to do
    assert again.returncode == 0 and len((tmp_path / "installed").read_text().splitlines()) == 1
