"""The notebook: whole, with its outputs, and (slowly) executed anew."""

import ast
import importlib
import json
import re
import sys
from pathlib import Path

import pytest

import train
from tools import notebook

ROOT = Path(train.__file__).parent
CELLS = json.loads(notebook.NOTEBOOK.read_text())["cells"]
CODE = [cell for cell in CELLS if cell["cell_type"] == "code"]


def source(cell):
    return "".join(cell["source"])


def test_it_has_its_six_sections_and_was_executed_in_order_without_an_error():
    text = "\n".join(source(cell) for cell in CELLS if cell["cell_type"] == "markdown")
    assert re.findall(r"^## (\d)\.", text, re.MULTILINE) == list("123456")
    assert [cell["execution_count"] for cell in CODE] == list(range(1, len(CODE) + 1))
    outputs = [output for cell in CODE for output in cell["outputs"]]
    assert all(output["output_type"] != "error" for output in outputs)
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 8
    assert notebook.NOTEBOOK.stat().st_size < 1.5e6


def test_it_tells_nothing_of_the_machine_and_no_warning():
    for cell in CODE:
        told = json.dumps([{**output, "data": None} for output in cell["outputs"]])
        assert not re.search(r"/(home|tmp|root|work|Users)/|Warning", told + source(cell)), source(cell)


def test_links_and_names_are_there():
    for cell in CELLS:
        if cell["cell_type"] == "markdown":
            for target in re.findall(r"\]\(([^)#\s]+)\)", source(cell)):
                assert "://" in target or (notebook.NOTEBOOK.parent / target).exists(), target
            for path in re.findall(r"`((?:ddpm|tools|benchmarks|requirements)/[\w/]+\.\w+)`", source(cell)):
                assert (ROOT / path).exists(), path
        else:
            for node in ast.walk(ast.parse(source(cell))):
                if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] in ("ddpm", "benchmarks"):
                    module = importlib.import_module(node.module)
                    for name in node.names:  # a function, or a module of the package
                        assert hasattr(module, name.name) or importlib.import_module(f"{node.module}.{name.name}")


def test_without_nbclient_one_line_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "nbclient", None)
    monkeypatch.setitem(sys.modules, "nbformat", None)
    assert notebook.main([]) == 2
    assert "pip install -r requirements/notebook.txt" in capsys.readouterr().err


@pytest.mark.slow
def test_it_runs(tmp_path):
    pytest.importorskip("nbclient", reason="pip install -r requirements/notebook.txt")
    assert notebook.main(["--out", str(tmp_path / "tour.ipynb")]) == 0
    cells = json.loads((tmp_path / "tour.ipynb").read_text())["cells"]
    assert [len(cell["outputs"]) > 0 for cell in cells if cell["cell_type"] == "code"] == [
        len(cell["outputs"]) > 0 for cell in CODE
    ]
