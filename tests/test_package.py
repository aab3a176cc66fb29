"""What `pip install .` takes along."""

import re
import tomllib
from pathlib import Path

import ddpm

ROOT = Path(ddpm.__file__).parents[1]


def test_the_package_holds_its_data_and_names_what_it_needs():
    described = tomllib.loads((ROOT / "pyproject.toml").read_text())
    data = {path for path in (ROOT / "ddpm").rglob("*.*") if path.suffix not in (".py", ".pyc")}
    declared = described["tool"]["setuptools"]["package-data"].items()
    assert data == {ROOT / package.replace(".", "/") / name for package, names in declared for name in names}
    pinned = dict(line.split("==") for line in (ROOT / "requirements.txt").read_text().split())
    ranges = dict(line.split(">=") for line in described["project"]["dependencies"])
    assert pinned.keys() == ranges.keys()
    for name, least in ranges.items():
        assert [int(n) for n in re.findall(r"\d+", least)] <= [int(n) for n in re.findall(r"\d+", pinned[name])]
