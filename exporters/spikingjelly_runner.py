"""Runs a NIR file in SpikingJelly. Started by the witness's own interpreter, never imported; knows nothing of slamp.

``python spikingjelly_runner.py NETWORK.nir INPUT.npz OUTPUT.npz DT``: the input file holds ``inputs`` (time, batch,
*features); the output file gets ``output`` and, for each neuron module found by its node's name, ``spikes/NAME``.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import nir
import numpy as np
import torch
from spikingjelly.activation_based.nir_exchange import import_from_nir


def main(network_path: str, input_path: str, output_path: str, dt: str) -> None:
    """Run the network step by step, float32, and write the result by rename."""
    torch.set_num_threads(1)
    network = nir.read(network_path, type_check=False)  # its inference is wrong for kernels that are not square
    module = import_from_nir(network, dt=float(dt))
    seen: dict[str, list[np.ndarray]] = {}
    for name, child in module.named_modules():
        if name in network.nodes and isinstance(network.nodes[name], (nir.IF, nir.LIF, nir.CubaLIF)):
            child.register_forward_hook(_keep(seen.setdefault(name, [])))
    with np.load(input_path, allow_pickle=False) as archive:
        inputs = torch.from_numpy(archive["inputs"].astype(np.float32))
    outputs, state = [], None
    with torch.no_grad():
        for x in inputs:
            spikes, state = module(x, state)
            outputs.append(spikes.numpy())
    arrays: dict[str, Any] = {f"spikes/{name}": np.stack(steps) for name, steps in seen.items()}
    with open(f"{output_path}.partial", "wb") as file:
        np.savez(file, output=np.stack(outputs), **arrays)
    os.replace(f"{output_path}.partial", output_path)


def _keep(steps: list[np.ndarray]) -> Any:
    def hook(module: Any, inputs: Any, output: Any) -> None:
        steps.append(output[0].numpy() > 0)

    return hook


if __name__ == "__main__":
    main(*sys.argv[1:5])
