"""Fixed-point networks that Lava can run, drawn by hypothesis: every number by hypothesis, arrays from a drawn seed.

What is drawn is a `Network` of frozen values. Its repr can be pasted into a test, and gives the same graph and raster.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from hypothesis import strategies as st

import slamp
from slamp.arithmetic import BIAS_MANTISSA, MAX_DELAY, SHIFT, WEIGHT_EXPONENTS
from slamp.graph import SpikingGraph
from slamp.nodes import (
    IF,
    LI,
    LIF,
    Conv2d,
    CubaLI,
    CubaLIF,
    Delay,
    Flatten,
    Input,
    Linear,
    Node,
    Output,
    Shape,
    frozen_array,
    uniform,
)
from slamp.raster import SpikeRaster

DT = 1e-3
STEPS = 250
INPUT = -1  # the source that is no layer
MANTISSAS = {"excitatory": (0, 255), "mixed": (-128, 127), "inhibitory": (-255, 0)}  # mixed ones are doubled
READOUTS = ("CubaLI", "LI")
LARGEST_FEED = 2**21  # of Lava's 2^24 for all that drives a layer: eight feeds, more than are drawn


@dataclass(frozen=True)
class Weights:
    """Mantissas of a sign mode times ``2 ** exponent``, as Lava holds them; zero but for a share ``density``."""

    mode: str
    exponent: int
    density: float
    seed: int

    def array(self, shape: Shape) -> np.ndarray:
        rng = np.random.default_rng(self.seed)
        low, high = MANTISSAS[self.mode]
        mantissa = rng.integers(low, high + 1, shape) * (rng.random(shape) < self.density)
        if self.mode == "mixed" and mantissa.max() <= 0:
            mantissa = mantissa.clip(-127)  # -256 is a mantissa beside a positive weight alone
        return frozen_array((mantissa * (2 if self.mode == "mixed" else 1) * 2.0**self.exponent).astype(np.float32))


@dataclass(frozen=True)
class Late:
    """Delays of ``least`` to ``most`` steps, one per feature."""

    least: int
    most: int
    seed: int = 0

    def node(self, shape: Shape) -> Delay:
        steps = np.random.default_rng(self.seed).integers(self.least, self.most + 1, shape)
        return Delay(frozen_array(steps.astype(np.float32)))


@dataclass(frozen=True)
class Wire:
    """From a layer (`INPUT`: the input) to weights."""

    source: int
    late: Late | None = None


@dataclass(frozen=True)
class Dense:
    outputs: int


@dataclass(frozen=True)
class Conv:
    """A `Conv2d`; pairs are (y, x)."""

    outputs: int
    groups: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    def output_shape(self, shape: Shape) -> Shape:
        spans = [dilation * (kernel - 1) + 1 for kernel, dilation in zip(self.kernel, self.dilation, strict=True)]
        sizes = [(shape[1 + k] + 2 * self.padding[k] - spans[k]) // self.stride[k] + 1 for k in range(2)]
        return (self.outputs, *sizes)


@dataclass(frozen=True)
class Feed:
    """Weights that drive a layer, and what they read: the sum of all wires."""

    wires: tuple[Wire, ...]
    kernel: Dense | Conv
    weights: Weights
    behind: Late | None = None


@dataclass(frozen=True)
class Bias:
    """Mantissas from ``low`` to ``high``, one per neuron, times ``2 ** exponent``."""

    low: int
    high: int
    exponent: int
    seed: int

    def array(self, shape: Shape) -> np.ndarray:
        mantissa = np.random.default_rng(self.seed).integers(self.low, self.high + 1, shape)
        return frozen_array((mantissa << self.exponent).astype(np.float32))


@dataclass(frozen=True)
class Neurons:
    """Decays in 4096ths, the threshold as a mantissa; a kind ignores what it has not."""

    kind: str
    decay_syn: int
    decay_mem: int
    vth: int
    bias: Bias | None = None

    def node(self, shape: Shape) -> Node:
        decay_syn, decay_mem = uniform(self.decay_syn / 4096, shape), uniform(self.decay_mem / 4096, shape)
        v_leak = uniform(0.0, shape) if self.bias is None else self.bias.array(shape)
        fires = uniform(self.vth << SHIFT, shape), uniform(0.0, shape)
        match self.kind:
            case "IF":
                return IF(*fires)
            case "LIF":
                return LIF(decay_mem, v_leak, *fires)
            case "CubaLIF":
                return CubaLIF(decay_syn, decay_mem, v_leak, *fires)
            case "LI":
                return LI(decay_mem, v_leak)
            case _:
                return CubaLI(decay_syn, decay_mem, v_leak)


@dataclass(frozen=True)
class Layer:
    feeds: tuple[Feed, ...]
    neurons: Neurons


@dataclass(frozen=True)
class Inputs:
    """A share ``density`` of the cells: spikes, or whole numbers up to ``largest`` of both signs."""

    density: float
    seed: int
    largest: int = 0
    batch: int = 1

    def raster(self, features: Shape) -> SpikeRaster:
        rng = np.random.default_rng(self.seed)
        data = rng.random((STEPS, self.batch, *features)) < self.density
        if not self.largest:
            return SpikeRaster(torch.tensor(data), DT)
        values = data * rng.integers(-self.largest, self.largest + 1, data.shape)
        return SpikeRaster(torch.tensor(values, dtype=torch.float32), DT, kind="analog")


@dataclass(frozen=True)
class Network:
    """Layer k is called ``nk``, its weights ``wk_0``, ``wk_1``, ..."""

    features: Shape
    layers: tuple[Layer, ...]
    inputs: Inputs

    def raster(self) -> SpikeRaster:
        return self.inputs.raster(self.features)

    def graph(self) -> SpikingGraph:
        shapes = {INPUT: self.features} | dict(enumerate(layer_shapes(self)))
        nodes: dict[str, Node] = {"input": Input(self.features)}
        edges: list[tuple[str, str]] = []

        def add(name: str, node: Node, *sources: str) -> str:
            nodes[name] = node
            edges.extend((source, name) for source in sources)
            return name

        for k, layer in enumerate(self.layers):
            arriving = []
            for number, feed in enumerate(layer.feeds):
                here = f"{k}_{number}"
                read = []
                for part, wire in enumerate(feed.wires):
                    shape, name = shapes[wire.source], "input" if wire.source == INPUT else f"n{wire.source}"
                    if wire.late is not None:
                        name = add(f"before{here}_{part}", wire.late.node(shape), name)
                    if isinstance(feed.kernel, Dense) and len(shape) == 3:
                        name = add(f"flat{here}_{part}", Flatten(0, 2), name)
                    read.append(name)
                name = add(f"w{here}", _weighted(feed, shapes[feed.wires[0].source]), *read)
                if feed.behind is not None:
                    name = add(f"behind{here}", feed.behind.node(shapes[k]), name)
                arriving.append(name)
            add(f"n{k}", layer.neurons.node(shapes[k]), *arriving)
        add("output", Output(shapes[len(self.layers) - 1]), f"n{len(self.layers) - 1}")
        return SpikingGraph(nodes, tuple(edges), DT, slamp.FixedPoint())

    def kinds(self) -> Iterator[str]:
        """Say what it holds, for counting."""
        feeds = [(k, feed) for k, layer in enumerate(self.layers) for feed in layer.feeds]
        convs = [feed.kernel for _, feed in feeds if isinstance(feed.kernel, Conv)]
        wires = [(k, wire) for k, feed in feeds for wire in feed.wires]
        lates = [wire.late for _, wire in wires] + [feed.behind for _, feed in feeds]
        neurons = [layer.neurons for layer in self.layers]
        held = {
            "depth 5": len(self.layers) == 5,
            "dense": len(convs) < len(feeds),
            "conv": bool(convs),
            "groups": any(conv.groups > 1 for conv in convs),
            "stride": any(max(conv.stride) > 1 for conv in convs),
            "padding": any(max(conv.padding) for conv in convs),
            "dilation": any(
                step > 1 < size for conv in convs for step, size in zip(conv.dilation, conv.kernel, strict=True)
            ),
            "delays": any(late is not None and late.most for late in lates),
            "uneven delays": any(late is not None and late.least < late.most for late in lates),
            "recurrence": any(wire.source >= k for k, wire in wires),
            "skips": any(wire.source < k - 1 for k, wire in wires),
            "sums": any(len(feed.wires) > 1 for _, feed in feeds),
            "fractions": any(feed.weights.exponent < 0 for _, feed in feeds),
            "graded": bool(self.inputs.largest),
            "batch": self.inputs.batch > 1,
            "biases": any(neuron.bias is not None for neuron in neurons),
            "bias exponents": any(neuron.bias is not None and neuron.bias.exponent for neuron in neurons),
        }
        yield from (kind for kind, found in held.items() if found)
        yield from {neuron.kind for neuron in neurons}
        yield from {feed.weights.mode for _, feed in feeds}


def layer_shapes(network: Network) -> list[Shape]:
    """Shape of every layer's neurons; the first feed decides it."""
    shapes: list[Shape] = []
    for layer in network.layers:
        kernel, source = layer.feeds[0].kernel, layer.feeds[0].wires[0].source
        before = network.features if source == INPUT else shapes[source]
        shapes.append((kernel.outputs,) if isinstance(kernel, Dense) else kernel.output_shape(before))
    return shapes


def _weighted(feed: Feed, shape: Shape) -> Node:
    if isinstance(feed.kernel, Dense):
        return Linear(feed.weights.array((feed.kernel.outputs, math.prod(shape))))
    conv = feed.kernel
    weight = feed.weights.array((conv.outputs, shape[0] // conv.groups, *conv.kernel))
    return Conv2d(weight, None, conv.stride, conv.padding, conv.dilation, conv.groups)


# (delays or none, chain or branches); with both there may be recurrence.
WIRINGS = [(False, False), (False, True), (True, False), (True, True), (True, True)]
SEEDS = st.integers(0, 2**16 - 1)
SHARES = st.integers(1, 20).map(lambda twentieths: twentieths / 20)


@st.composite
def networks(draw: st.DrawFn, *, delays: bool = True) -> Network:
    """One to five layers, the first of them convolutions or not; skip paths, and with ``delays`` also recurrence."""
    depth, spatial = draw(st.sampled_from([1, 2, 3, 4, 5, 1, 2])), draw(st.booleans())
    sides = st.integers(3, 7)
    features: Shape = (draw(st.integers(1, 4)), draw(sides), draw(sides)) if spatial else (draw(st.integers(1, 20)),)
    inputs = Inputs(draw(st.integers(1, 18)) / 20, draw(SEEDS))
    if draw(st.integers(0, 4)) == 4:
        inputs = replace(inputs, largest=draw(st.integers(1, 200)))
    if draw(st.integers(0, 19)) == 19:
        inputs = replace(inputs, batch=2)
    late, branched = draw(st.sampled_from(WIRINGS if delays else [wiring for wiring in WIRINGS if not wiring[0]]))
    kernels: list[Dense | Conv] = []
    shapes = {INPUT: features}
    for k in range(depth):
        shape = shapes[k - 1]
        if len(shape) == 3 and draw(st.integers(0, 3 if k == 0 else 1)):
            conv = draw(convolutions(shape))
            kernels.append(conv)
            shapes[k] = conv.output_shape(shape)
        else:
            kernels.append(Dense(draw(st.integers(1, 12))))
            shapes[k] = (kernels[k].outputs,)
    kinds = [draw(st.sampled_from(["CubaLIF", "CubaLIF", "LIF", "IF"])) for _ in range(depth)]
    if draw(st.integers(0, 2)) == 2:
        kinds[-1] = draw(st.sampled_from(READOUTS))
    structure = _Structure(shapes, tuple(kernels), kinds[-1] not in READOUTS, inputs, late, branched)
    layers = []
    for k in range(depth):
        feeds = draw(feeds_of(structure, k))
        layers.append(Layer(feeds, draw(neurons_of(structure, kinds[k], feeds))))
    return Network(features, tuple(layers), inputs)


@st.composite
def convolutions(draw: st.DrawFn, shape: Shape) -> Conv:
    """Any geometry that fits ``shape``, other along y than along x."""
    groups = draw(st.sampled_from([count for count in range(1, shape[0] + 1) if shape[0] % count == 0]))
    axes = []
    for size in shape[1:]:
        padding = draw(st.integers(0, 2))
        room = size + 2 * padding
        kernel = draw(st.integers(1, min(3, room)))
        dilation = draw(st.integers(1, min(3, (room - 1) // (kernel - 1)) if kernel > 1 else 3))
        axes.append((kernel, draw(st.integers(1, 2)), padding, dilation))
    outputs = groups * draw(st.integers(1, max(1, 4 // groups)))
    kernel, stride, padding, dilation = zip(*axes, strict=True)
    return Conv(outputs, groups, kernel, stride, padding, dilation)


@dataclass(frozen=True)
class _Structure:
    """What the layers of a network under construction know of each other."""

    shapes: dict[int, Shape]
    kernels: tuple[Dense | Conv, ...]
    spiking_output: bool
    inputs: Inputs
    late: bool
    branched: bool

    @property
    def depth(self) -> int:
        return len(self.kernels)

    def size(self, source: int) -> int:
        return math.prod(self.shapes[source])

    def largest(self, wires: tuple[Wire, ...]) -> int:
        return sum(max(1, self.inputs.largest) if wire.source == INPUT else 1 for wire in wires)


@st.composite
def feeds_of(draw: st.DrawFn, structure: _Structure, k: int) -> tuple[Feed, ...]:
    """What drives layer ``k``: the layer before, and perhaps a second feed."""
    kernel = structure.kernels[k]
    sources = [k - 1]
    if structure.branched and isinstance(kernel, Conv):
        sources += draw(st.lists(st.just(k - 1), max_size=1))
    elif structure.branched:
        possible = st.sampled_from([*range(k), INPUT])
        later = range(k, structure.depth if structure.spiking_output else structure.depth - 1)
        if structure.late and later:  # recurrence needs a delay, and a readout is no source
            possible = st.sampled_from(later) | possible
        sources += draw(st.lists(possible, max_size=1))
    alone = len(sources) == 1
    return tuple(draw(feed_of(structure, k, source, alone=alone)) for source in sources)


@st.composite
def feed_of(draw: st.DrawFn, structure: _Structure, k: int, source: int, *, alone: bool) -> Feed:
    kernel = structure.kernels[k]
    if isinstance(kernel, Conv):  # Lava's Conv has neither delays nor an exponent
        inputs = structure.shapes[source][0] // kernel.groups * math.prod(kernel.kernel)
        wires = (Wire(source),)
        return Feed(wires, kernel, draw(weights_of(inputs, structure.largest(wires), whole=True)))
    # A layer that waits for a longer path adds up to a step per layer, and Lava has 62 in all.
    most = MAX_DELAY if alone else MAX_DELAY - structure.depth
    least = max(0, source - k + 1)  # each synapse of a cycle takes a step in Lava
    # Two edges between the same nodes are refused: the same source once more needs a delay, or a Flatten, between.
    others = [
        other
        for other in sorted({source, *range(k), INPUT})
        if structure.size(other) == structure.size(source)
        and (other != source or structure.late or len(structure.shapes[source]) == 3)
    ]
    added = []
    if structure.branched and others and draw(st.integers(0, 3)) == 3:
        added.append(draw(st.sampled_from(others)))
    if added:
        most = MAX_DELAY - structure.depth
    wires = [Wire(source, draw(lates(least, most)) if structure.late and (least or draw(st.booleans())) else None)]
    for other in added:
        wait = structure.late and (other == source or draw(st.booleans()))
        wires.append(Wire(other, draw(lates(max(0, other - k + 1), most)) if wait else None))
    longest = max((wire.late.most for wire in wires if wire.late is not None), default=0)
    behind = draw(lates(0, most - longest)) if structure.late and draw(st.integers(0, 2)) == 2 else None
    uneven = any(wire.late is not None and wire.late.least < wire.late.most for wire in wires)
    largest = structure.largest(tuple(wires))
    weights = draw(weights_of(structure.size(source), largest, whole=uneven or len(wires) > 1))
    return Feed(tuple(wires), kernel, weights, behind)


def lates(least: int, most: int) -> st.SearchStrategy[Late]:
    """One delay for all, or one each, up to the longest there is."""
    steps = st.integers(least, max(least, min(most, 8))) | st.integers(least, most)
    even = steps.map(lambda late: Late(late, late))
    return even | st.builds(lambda a, b, seed: Late(min(a, b), max(a, b), seed), steps, steps, SEEDS)


@st.composite
def weights_of(draw: st.DrawFn, fan_in: int, largest: int, *, whole: bool) -> Weights:
    """Any sign mode, density and exponent with which no sum leaves Lava's integers."""
    mode = draw(st.sampled_from(["excitatory", "mixed", "mixed", "excitatory", "inhibitory"]))
    most = min(WEIGHT_EXPONENTS[1], math.floor(math.log2(LARGEST_FEED / (256 * fan_in * largest))))
    least = 0 if whole else WEIGHT_EXPONENTS[0]
    exponents = st.integers(least, max(least, most)) | st.just(max(least, most))
    return Weights(mode, draw(exponents), draw(SHARES), draw(SEEDS))


@st.composite
def neurons_of(draw: st.DrawFn, structure: _Structure, kind: str, feeds: tuple[Feed, ...]) -> Neurons:
    """Any decays; a threshold of any size, mostly one about as large as what arrives."""
    decays = st.integers(0, 400) | st.integers(0, 4096)
    drive = 0.0
    for feed in feeds:
        source = feed.wires[0].source
        inputs = structure.size(source)
        if isinstance(feed.kernel, Conv):
            inputs = structure.shapes[source][0] // feed.kernel.groups * math.prod(feed.kernel.kernel)
        count = inputs * feed.weights.density * structure.inputs.density
        drive += (
            128
            * 2.0**feed.weights.exponent
            * structure.largest(feed.wires)
            * (math.sqrt(count) if feed.weights.mode == "mixed" else count)
        )
    shares = st.sampled_from([1.0, 0.3, 4.0, 0.0, 30.0]).map(lambda share: min(int(drive * share), 131071))
    vth = 0 if kind in READOUTS else draw(shares if draw(st.integers(0, 4)) else st.integers(0, 131071))
    neurons = Neurons(kind, draw(decays), draw(decays), vth)
    if kind == "IF" or not draw(st.booleans()):
        return neurons
    exponent = draw(st.integers(0, 7))
    low, high = BIAS_MANTISSA
    if (structure.late or structure.branched) and kind not in READOUTS:
        # Lava adds biases before the first input arrives; spikes they cause by then must not last.
        high = min(high, ((vth << SHIFT) // structure.depth) >> exponent)
    ends = sorted([draw(st.integers(low, high)), draw(st.integers(low, high))])
    return replace(neurons, bias=Bias(*ends, exponent, draw(SEEDS)))


@st.composite
def batches(draw: st.DrawFn, size: int) -> list[Network]:
    """``size`` networks, seldom fewer: one start of Lava serves all, and a failure shrinks to one."""
    drawn = [draw(networks())]
    while len(drawn) < size and draw(st.integers(0, 127)):
        drawn.append(draw(networks()))
    return drawn
