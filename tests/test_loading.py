"""From what a user names to an object, or to one clear error."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from slamp.cli.loading import load_function, load_network, load_object
from slamp.errors import ArtifactError, RunFileError
from user_networks import factory


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory that is not on the path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["/nowhere"])
    return tmp_path


def test_the_current_directory_is_searched(here: Path) -> None:
    (here / "a_users_module.py").write_text("class Holder:\n    value = 7\n")
    assert load_object("a_users_module:Holder.value", role="thing") == 7


def test_a_package_in_the_current_directory_is_searched(here: Path) -> None:
    (here / "a_users_package").mkdir()
    (here / "a_users_package" / "__init__.py").touch()
    (here / "a_users_package" / "nets.py").write_text("def factory():\n    return 3\n")
    assert load_function("a_users_package.nets:factory", role="factory")() == 3


@pytest.mark.parametrize(
    "reference", ["", ":", "module", "module:", ":name", "a/b:name", "./a:name", "a b:name", "..a:b"]
)
def test_a_reference_has_one_form(reference: str) -> None:
    with pytest.raises(RunFileError, match=r"role: .*allowed is package\.module:name"):
        load_object(reference, role="role")


def test_a_module_that_cannot_be_imported_is_named(here: Path) -> None:
    with pytest.raises(RunFileError, match=r"train: cannot import 'nowhere_at_all' \(No module named"):
        load_object("nowhere_at_all:train", role="train")
    (here / "imports_what_is_not_there.py").write_text("import not_installed_anywhere\n")
    with pytest.raises(RunFileError, match="No module named 'not_installed_anywhere'"):
        load_object("imports_what_is_not_there:train", role="train")


def test_a_module_with_a_typing_error_is_named_with_its_line(here: Path) -> None:
    (here / "not_python.py").write_text("x = 1\ndef broken(:\n")
    with pytest.raises(RunFileError, match=r"'not_python' is not valid Python .*not_python\.py, line 2"):
        load_object("not_python:x", role="train")


def test_a_missing_name_lists_what_the_module_defines() -> None:
    with pytest.raises(RunFileError, match="user_networks has no 'fabrik'; it has samples, layers, factory"):
        load_object("user_networks:fabrik", role="factory")


def test_a_function_is_needed() -> None:
    with pytest.raises(RunFileError, match="metric: user_networks:not_a_function is int; allowed is a function"):
        load_function("user_networks:not_a_function", role="metric")


def test_a_factory_takes_no_arguments() -> None:
    with pytest.raises(RunFileError, match=r"cannot be called without arguments .*'width'"):
        load_network("user_networks:needs_width", None)


def test_a_factory_returns_a_module() -> None:
    with pytest.raises(RunFileError, match=r"returned int; allowed is a torch\.nn\.Module"):
        load_network("user_networks:a_number", None)


def test_an_error_inside_the_factory_is_the_users_own() -> None:
    with pytest.raises(ZeroDivisionError, match="own mistake"):
        load_network("user_networks:raising", None)


def test_weights_are_loaded_and_masks_beside_them_ignored(tmp_path: Path) -> None:
    state = {name: torch.full_like(tensor, 0.5) for name, tensor in factory().state_dict().items()}
    save_file({**state, "mask:0": torch.ones(3)}, tmp_path / "state.safetensors")
    net = load_network("user_networks:factory", tmp_path / "state.safetensors")
    assert all(bool((tensor == 0.5).all()) for tensor in net.state_dict().values())


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    save_file({"0.weight": torch.zeros(2, 2)}, tmp_path / "state.safetensors")
    with pytest.raises(ArtifactError, match=r"does not fit user_networks:factory: .*Missing key\(s\).*size mismatch"):
        load_network("user_networks:factory", tmp_path / "state.safetensors")


@pytest.mark.parametrize("content", [None, b"", b"\x08\x00\x00\x00\x00\x00\x00\x00{}", b"torch.save made this"])
def test_weights_that_cannot_be_read_are_refused(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ArtifactError, match="not a readable safetensors file"):
        load_network("user_networks:factory", path)
