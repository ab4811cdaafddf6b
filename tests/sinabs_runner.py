"""Asks sinabs what networks take of a Speck 2f, and where their layers go. Knows nothing of slamp.

``python sinabs_runner.py NETWORKS.json ANSWERS.json``, in the environment that ``make .venv-witness/sinabs/ready``
makes. All of sinabs runs as it is installed; only samna, the closed driver of the boards, is replaced by a stand-in:
the public package of that name is an installer that fetches the driver on import, and neither memories nor mapping
call it. The answers list every call of the stand-in.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

SAMNA = ("samna", *(f"samna.{part}" for part in ("speck2e", "speck2f", "specksim")), "samnagui")
SAMNA_PARTS = ("samna.speck2e.configuration", "samna.speck2f.configuration", "samna.specksim.nodes")
STAND_IN = MagicMock(name="samna")
sys.modules.update(dict.fromkeys((*SAMNA, *SAMNA_PARTS), STAND_IN))

import sinabs.layers  # noqa: E402  # the stand-in comes first
import torch  # noqa: E402  # the stand-in comes first
from sinabs.backend.dynapcnn import DynapcnnNetwork  # noqa: E402  # the stand-in comes first
from sinabs.backend.dynapcnn.chip_factory import ChipFactory  # noqa: E402  # the stand-in comes first

Layer = dict[str, Any]


def main(networks_path: str, answers_path: str) -> None:
    """Answer for every network of the file."""
    torch.set_num_threads(1)
    builder = ChipFactory("speck2fdevkit").get_config_builder()
    cores = [[c.kernel_memory, c.neuron_memory, c.bias_memory] for c in builder.get_constraints()]
    networks = json.loads(Path(networks_path).read_text())
    with torch.no_grad():
        answers = [_answer(network["input"], network["layers"], builder) for network in networks]
    found = {
        "sinabs": importlib.metadata.version("sinabs"),
        "cores": cores,
        "networks": answers,
        "asked_of_samna": [str(call) for call in STAND_IN.mock_calls],
    }
    Path(answers_path).write_text(json.dumps(found))


def _answer(input_shape: list[int], layers: list[Layer], builder: Any) -> dict[str, Any]:
    network = DynapcnnNetwork(_module(input_shape, layers), tuple(input_shape), discretize=False)
    memory = network.memory_summary()
    order = sorted(network.dynapcnn_layers)
    needs = [[int(memory[kind][index]) for kind in ("kernel", "neuron", "bias")] for index in order]
    try:
        mapping = builder.map_layers_to_cores(network.dynapcnn_layers)
    except ValueError as error:
        if not str(error).startswith("No valid mapping found"):
            raise
        return {"needs": needs, "cores": None}
    return {"needs": needs, "cores": [mapping[index] for index in order]}


def _module(input_shape: list[int], layers: list[Layer]) -> torch.nn.Sequential:
    """Convolution or linear layer, neurons, perhaps pooling, and so on."""
    shape = torch.empty(1, *input_shape)
    modules: list[torch.nn.Module] = []
    for layer in layers:
        added: list[torch.nn.Module] = []
        if layer["kind"] == "linear":
            if shape.dim() > 2:
                added.append(torch.nn.Flatten())
            added.append(torch.nn.Linear(shape[0].numel(), layer["filters"], bias=layer["bias"]))
        else:
            sizes = {key: layer[key] for key in ("stride", "padding")}
            added.append(
                torch.nn.Conv2d(shape.shape[1], layer["filters"], layer["kernel"], bias=layer["bias"], **sizes)
            )
        added.append(sinabs.layers.IAFSqueeze(batch_size=1))
        if layer["pool"] > 1:
            added.append(sinabs.layers.SumPool2d(layer["pool"]))
        for module in added:
            shape = module(shape)
        modules += added
    return torch.nn.Sequential(*modules)


if __name__ == "__main__":
    main(*sys.argv[1:3])
