"""Spectral norms of stateless nodes: by how much, at most, a node scales what passes it."""

from __future__ import annotations

import numpy as np
import torch

from slamp.dynamics import exact_float32, stateless_function
from slamp.graph import SpikingGraph

POWER_STEPS = 30


def spectral_norm(graph: SpikingGraph, name: str) -> float:
    """Return the largest factor by which a stateless node scales the norm of its input, biases left out.

    Power iteration from a fixed start, so the same node gives the same number; of a node that is not linear, such as a
    pool that takes maxima, it is that of its derivative at random positive inputs.
    """
    function = stateless_function(graph.nodes[name], "cpu")
    shape = (1, *graph.shapes[graph.sources(name)[0]])
    point = torch.as_tensor(1 + np.random.default_rng(0).random(shape), dtype=torch.float32)
    norm = 0.0
    with exact_float32(), torch.enable_grad():
        point.requires_grad_()
        output = function(point)
        # J v is the derivative, in the direction of u, of J^T u, which is linear in u.
        direction = torch.zeros_like(output, requires_grad=True)
        (transposed,) = torch.autograd.grad(output, point, direction, create_graph=True)
        vector = point.detach()
        for _ in range(POWER_STEPS):
            vector = vector / vector.norm()
            (image,) = torch.autograd.grad(transposed, direction, vector, retain_graph=True)
            norm = float(image.norm())
            if norm == 0.0:
                return 0.0
            (vector,) = torch.autograd.grad(output, point, image, retain_graph=True)
    return norm
