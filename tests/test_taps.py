from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from networks import build
from slamp.capture import read_graph
from slamp.nodes import Affine, Conv1d, Conv2d, Linear, Weighted, frozen_array
from slamp.taps import (
    connections,
    dense_connections,
    fan_out,
    per_weight,
    tap_shape,
    tap_sums,
    weighted_sum,
)

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")


def geometry(node: Conv1d | Conv2d) -> tuple[list[int], list[int]]:
    """Zeros in front of every axis and in both ends together, as torch pads."""
    kernel = node.weight.shape[2:]
    if node.padding == "same":
        both = [dilation * (size - 1) for dilation, size in zip(node.dilation, kernel, strict=True)]
        return [total // 2 for total in both], both
    return list(node.padding), [2 * size for size in node.padding]


def readings(
    node: Conv1d | Conv2d, features: tuple[int, ...]
) -> list[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]:
    """Every (input position, weight position, tap) that meet, one by one: the definition, in loops."""
    weight = node.weight.shape
    front, both = geometry(node)
    per_group = weight[0] // node.groups
    sizes = [
        (size + total - dilation * (kernel - 1) - 1) // stride + 1
        for size, total, dilation, kernel, stride in zip(
            features[1:], both, node.dilation, weight[2:], node.stride, strict=True
        )
    ]
    found = []
    for position in product(*map(range, sizes)):
        for entry in product(*map(range, weight)):
            where = tuple(
                at * stride + offset * dilation - pad
                for at, stride, offset, dilation, pad in zip(
                    position, node.stride, entry[2:], node.dilation, front, strict=True
                )
            )
            if all(0 <= at < size for at, size in zip(where, features[1:], strict=True)):
                group = entry[0] // per_group
                found.append(((group * weight[1] + entry[1], *where), entry, (group, *entry[1:])))
    return found


def draw(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return frozen_array(rng.normal(size=shape) * (rng.random(shape) < 0.6))


def conv2d(weight: tuple[int, ...], stride: object, padding: object, dilation: object, groups: int) -> Conv2d:
    pair = [value if isinstance(value, (tuple, str)) else (value, value) for value in (stride, padding, dilation)]
    return Conv2d(draw(weight), None, pair[0], pair[1], pair[2], groups)


CONVOLUTIONS: list[tuple[Conv1d | Conv2d, tuple[int, ...]]] = [
    *[
        (conv2d((4, 2 // groups, 3, 3), stride, padding, 1, groups), (2, 6, 5))
        for stride in (1, 2, (1, 2), 3)
        for padding in (0, 1, 2, (1, 0), (0, 2))
        for groups in (1, 2)
    ],
    *[
        (conv2d((3, 2, *kernel), 1, "same", dilation, 1), (2, 5, 6))
        for kernel in ((3, 3), (2, 2), (4, 1))
        for dilation in (1, 2)
    ],
    (conv2d((3, 2, 2, 3), 1, 1, (2, 1), 1), (2, 6, 6)),
    (conv2d((3, 2, 1, 1), 2, 0, 1, 1), (2, 5, 5)),
    (conv2d((4, 1, 3, 3), 2, 1, 1, 2), (2, 6, 6)),
    *[
        (Conv1d(draw((4, 2 // groups, 3)), None, (stride,), (padding,), (dilation,), groups), (2, 11))
        for stride in (1, 2)
        for padding in (0, 1, 3)
        for dilation in (1, 2)
        for groups in (1, 2)
    ],
    (Conv1d(draw((3, 2, 4)), None, (1,), "same", (1,), 1), (2, 9)),
]


@pytest.mark.parametrize("index", range(len(CONVOLUTIONS)))
def test_convolutions_are_counted_as_loops_count_them(index: int) -> None:
    node, features = CONVOLUTIONS[index]
    rng = np.random.default_rng(index)
    values = rng.normal(size=features)
    sums, reached = np.zeros(tap_shape(node)), np.zeros(features)
    met = np.zeros(node.weight.shape)
    total = 0.0
    for source, entry, tap in readings(node, features):
        met[entry] += 1
        sums[tap] += values[source] / (node.weight.shape[0] // node.groups)
        if node.weight[entry] != 0:
            reached[source] += 1
            total += values[source]
    np.testing.assert_allclose(tap_sums(node, values), sums, rtol=1e-10, atol=1e-12)
    assert np.array_equal(fan_out(node, features, node.weight != 0), reached)
    assert np.array_equal(per_weight(node, connections(node, features)), met)
    assert dense_connections(node, features) == met.sum()
    assert weighted_sum(node, node.weight != 0, tap_sums(node, values)) == pytest.approx(total, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("index", range(0, len(CONVOLUTIONS), 5))
def test_the_loops_read_what_torch_reads(index: int) -> None:
    """The loops themselves are checked: they compute torch's convolution."""
    node, features = CONVOLUTIONS[index]
    x = np.random.default_rng(index).normal(size=features)
    convolve = F.conv1d if isinstance(node, Conv1d) else F.conv2d
    weight = torch.tensor(node.weight, dtype=torch.float64)
    out = convolve(torch.tensor(x)[None], weight, None, node.stride, node.padding, node.dilation, node.groups)
    assert out.sum().item() == pytest.approx(
        sum(x[source] * node.weight[entry] for source, entry, _ in readings(node, features))
    )


@pytest.mark.parametrize("node", [Linear(draw((4, 3))), Affine(draw((4, 3)), draw((4,)))])
def test_linear_layers(node: Weighted) -> None:
    values = np.array([2.0, 0.0, 5.0])
    assert tap_sums(node, values).tolist() == [[2.0, 0.0, 5.0]]
    assert fan_out(node, (3,), node.weight != 0).tolist() == (node.weight != 0).sum(0).tolist()
    assert per_weight(node, tap_sums(node, values)).tolist() == [[2.0, 0.0, 5.0]] * 4
    assert weighted_sum(node, node.weight != 0, values[None]) == ((node.weight != 0) * values).sum()
    assert connections(node, (3,)).tolist() == [[1.0, 1.0, 1.0]]
    assert dense_connections(node, (3,)) == 12
    assert tap_shape(node) == (1, 3)


def test_tap_arrays_fit_every_layer_of_a_network() -> None:
    net, raster = build("conv_pool_norm")
    graph, _ = read_graph(net, raster.features, raster.dt)
    for name, node in graph.weighted.items():
        shape = graph.shapes[graph.sources(name)[0]]
        assert tap_sums(node, np.ones(shape)).shape == tap_shape(node)
        assert per_weight(node, np.ones(tap_shape(node))).shape == node.weight.shape


def test_counting_leaves_gradients_off() -> None:
    with torch.no_grad():
        node, features = CONVOLUTIONS[0]
        assert tap_sums(node, np.ones(features)).any()
        assert fan_out(node, features, np.ones(node.weight.shape)).any()
        assert not torch.is_grad_enabled()
