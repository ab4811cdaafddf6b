"""The wheel holds what it should, and works where the repository is not."""

from __future__ import annotations

import configparser
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import slamp
import user_networks as users

ROOT = Path(__file__).parent.parent
NOT_SOURCES = ("build", "dist", "*.egg-info", "__pycache__", ".*")

pytestmark = pytest.mark.slow


def call(*words: object, cwd: Path, **changes: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | changes
    return subprocess.run(
        [sys.executable, *map(str, words)], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of the sources."""
    place = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, place / "source", ignore=shutil.ignore_patterns(*NOT_SOURCES))
    words = ["-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", place / "dist", "."]
    done = call(*words, cwd=place / "source")
    assert done.returncode == 0, done.stderr
    (built,) = (place / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, installed into a directory of its own."""
    target = tmp_path_factory.mktemp("site")
    words = ["-m", "pip", "install", "--no-deps", "--no-index", "--target", target, wheel]
    done = call(*words, cwd=target)
    assert done.returncode == 0, done.stderr
    return target


def test_the_wheel_holds_every_module_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    information = f"slamp-{slamp.__version__}.dist-info"
    assert {name.partition("/")[0] for name in names} == {"slamp", "exporters", "hw_profiles", information}
    sources = {
        path.relative_to(ROOT).as_posix()
        for package in ("slamp", "exporters", "hw_profiles")
        for pattern in ("*.py", "py.typed", "*.html", "*.toml", "*.json")
        for path in (ROOT / package).rglob(pattern)
    }
    assert {name for name in names if not name.startswith(information)} == sources
    assert {"slamp/report.html", "slamp/py.typed", "slamp/cli/app.py", "slamp/demo/run.py"} <= sources


def test_the_entry_points_are_declared(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    parser = configparser.ConfigParser(delimiters=("=",))
    parser.read_string(archive.read(f"slamp-{slamp.__version__}.dist-info/entry_points.txt").decode())
    assert parser["console_scripts"]["slamp"] == "slamp.cli:main"
    assert parser["slamp.exporters"]["nir"] == "exporters.to_nir:NirExporter"
    assert parser["slamp.witnesses"]["spikingjelly"] == "exporters.witness_spikingjelly"


def test_the_license_travels(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert any(name.endswith("LICENSE") for name in names)


def test_the_installed_package_is_the_one_that_runs(installed: Path, tmp_path: Path) -> None:
    code = "import slamp, exporters, hw_profiles; print(slamp.__file__, exporters.__file__, hw_profiles.__file__)"
    done = call("-c", code, cwd=tmp_path, PYTHONPATH=str(installed))
    assert done.returncode == 0, done.stderr
    assert [Path(name).parent.parent for name in done.stdout.split()] == [installed] * 3
    done = call("-m", "slamp", "--version", cwd=tmp_path, PYTHONPATH=str(installed))
    assert done.stdout == f"slamp {slamp.__version__}\n", done.stderr


def test_the_installed_package_does_the_whole_job(installed: Path, tmp_path: Path) -> None:
    slamp.save_samples(users.samples(), tmp_path / "samples.npz")
    for name in ("user_networks.py", "networks.py"):
        shutil.copy(Path(__file__).parent / name, tmp_path)
    words = [
        "-m",
        "slamp",
        "compress",
        "user_networks:factory",
        "samples.npz",
        "--budget",
        "density=0.3",
        "--out",
        "out",
    ]
    done = call(*words, cwd=tmp_path, PYTHONPATH=str(installed), OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "nir" / "network.nir").is_file()
    assert (tmp_path / "out" / "report.json").is_file()
    assert slamp.verify_directory(tmp_path / "out" / "nir").equivalent
