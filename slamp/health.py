"""What is installed here and what it can do: the content of `slamp doctor`."""

from __future__ import annotations

import importlib.util
import platform
from importlib.metadata import PackageNotFoundError, entry_points, version

import torch

from slamp.exporting import exporter_problems, installed_exporters
from slamp.witnesses import find_witness, installed_witnesses

PACKAGES = ("slamp", "torch", "norse", "nir", "h5py", "numpy", "safetensors", "onnx", "onnxruntime", "tonic")
REPORT = ("matplotlib", "jinja2")
DEMO = {"mlxtend": "mlxtend==0.25.0", "aeon": "--no-deps aeon==1.6.0"}
ABILITIES = ("write", "replay", "read", "read_golden")


def health() -> dict[str, dict[str, str]]:
    """Return, by section and name, what is installed, what each exporter can do, and what is missing."""
    sections = {"packages": {"python": platform.python_version()}}
    for package in PACKAGES:
        sections["packages"][package] = _version(package)
    sections["devices"] = {"cpu": f"{torch.get_num_threads()} threads"}
    sections["devices"]["cuda"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    sections["exporters"] = {
        name: "can " + ", ".join(ability for ability in ABILITIES if ability in dir(exporter))
        for name, exporter in installed_exporters().items()
    }
    for name, problem in exporter_problems().items():
        sections["exporters"][name] = f"cannot be used: {problem}; pip install 'slamp[{name}]'"
    sections["witnesses"] = {}
    for name in installed_witnesses():
        python = find_witness(name).environment_python()
        sections["witnesses"][name] = str(python) if python else f"not installed; slamp witness install {name}"
    for entry in entry_points(group="slamp.environments"):
        python = entry.load()()
        sections["witnesses"][entry.name] = str(python) if python else f"not installed; slamp {entry.name} install"
    sections["report"] = {name: _version(name) for name in REPORT}
    sections["demo data"] = {
        name: "present" if importlib.util.find_spec(name) else f"missing: pip install {command}"
        for name, command in DEMO.items()
    }
    return sections


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
