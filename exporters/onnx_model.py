"""A spiking graph as two ONNX models: one step with its states, and the same step under `Scan` for whole sequences.

Values are named as the nodes they leave, states ``node/v``, ``node/i``, ... in and ``node/v_out``, ... out, parameters
``node/weight``, ...; in the body of the `Scan` all of them stand behind ``./``. Every tensor has the axes (batch,
*features), in a sequence (time, batch, *features). Weights are dense: `onnx` has sparse initializers, but onnxruntime
makes them dense when it loads a model and takes them in no subgraph, so they would save bytes in the file alone, which
any compression saves as well.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from exporters.onnx_integers import largest_input, write_fixed_layer
from exporters.onnx_layers import (
    memory_steps,
    write_delay,
    write_late_delay,
    write_layer,
    write_memory,
)
from exporters.onnx_neurons import (
    DOMAIN,
    OPSETS,
    function_name,
    neuron_function,
    parameters_of,
    said_of,
    states_of,
    summary,
)
from slamp.arithmetic import FixedPoint
from slamp.delays import holds_back
from slamp.graph import SpikingGraph, graph_header
from slamp.nodes import LSNN, NEURON, SYNAPTIC, Delay, Neuron, Shape, arrays_of
from slamp.simulate import is_spiking_output

FORMAT = "slamp-onnx-1"
IR_VERSION = 9
INSIDE = "./"  # before every name in the body of the Scan; no node's name holds a dot
CONTRACT = {
    "update_order": "nodes in topological order within one step; a spike arrives in the step it leaves",
    "tie_rule": "v > v_threshold",
    "recurrence": "every cycle passes a delay of at least one step, whose memory (zero at first) is a state",
    "sums": "several edges into a node are added in their order: into a synaptic current one by one, else to one "
    "another first",
    "latency_steps": "0",
}
Values = dict[str, np.ndarray]


@dataclass(frozen=True)
class StateValue:
    """A state of a model.

    Attributes:
        name: Of the value that enters a step; what leaves it is ``name_out``.
        shape: Without the batch axis.
        start: What it starts as, everywhere, or the name of the initializer it starts as.
        whole: Whether it is int64, not float32.
    """

    name: str
    shape: Shape
    start: float | str
    whole: bool = False

    @property
    def out(self) -> str:
        """Name of the value that leaves a step."""
        return f"{self.name}_out"


@dataclass
class Step:
    """The operators of one time step, being written; names are given a prefix."""

    graph: SpikingGraph
    prefix: str = ""
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    arrays: Values = field(default_factory=dict)
    states: list[StateValue] = field(default_factory=list)

    @property
    def fixed(self) -> bool:
        """Whether the graph is in fixed point."""
        return isinstance(self.graph.arithmetic, FixedPoint)

    def operator(self, kind: str, inputs: list[str], output: str, **attributes: object) -> str:
        """Append an operator with one output; return the output's name, without the prefix."""
        self.append(kind, inputs, [output], output, **attributes)
        return output

    def append(self, kind: str, inputs: Iterable[str], outputs: Sequence[str], name: str, **attributes: object) -> None:
        """Append an operator, or the call of a function of ours."""
        found: dict[str, Any] = {key: value for key, value in attributes.items() if value is not None}
        entering = [self.prefix + value if value else "" for value in inputs]
        leaving = [self.prefix + value for value in outputs]
        self.nodes.append(helper.make_node(kind, entering, leaving, name=name, **found))

    def constant(self, name: str, array: np.ndarray) -> str:
        """Add an initializer; return its name, without the prefix."""
        self.arrays[name] = array
        return name

    def parameter(self, name: str, key: str) -> str:
        """Add a parameter of a neuron, as one number where it is the same everywhere; return its name."""
        return self.constant(f"{name}/{key}", _collapsed(arrays_of(self.graph.nodes[name])[key]))

    def state(self, name: str, shape: Shape, start: float | str, *, whole: bool = False) -> StateValue:
        """Add a state."""
        found = StateValue(name, shape, start, whole)
        self.states.append(found)
        return found

    def total(self, name: str) -> str:
        """Add what the edges into a node bring one by one; return the name of the sum."""
        first, *more = self.graph.sources(name)
        return self.add_to(first, more, name)

    def add_to(self, first: str, more: Sequence[str], name: str) -> str:
        """Add values one by one to ``first``; return the name of the sum."""
        for index, source in enumerate(more):
            first = self.operator("Add", [first, source], f"{name}/sum{index}")
        return first


def check(graph: SpikingGraph) -> None:
    """Raise `UnsupportedNodeError` if the files cannot say a node exactly enough; the message names it."""
    if isinstance(graph.arithmetic, FixedPoint):
        largest_input(graph)


def step_of(graph: SpikingGraph, prefix: str = "") -> Step:
    """Write one time step of a graph."""
    step = Step(graph, prefix)
    for name in graph.order:
        _write_node(step, name)
    for name, node in graph.nodes.items():
        if isinstance(node, Delay) and holds_back(node):
            write_memory(step, name, node, f"{name}/past", step.total(name), f"{name}/past_out")
    return step


def step_model(graph: SpikingGraph) -> onnx.ModelProto:
    """Return the model of one step: ``(input, *states) -> (output, *layers, *states)``."""
    step = step_of(graph)
    inputs = [
        _value(graph.input, graph.shapes[graph.input]),
        *(_value(each.name, each.shape, whole=each.whole) for each in step.states),
    ]
    outputs = [_value(name, graph.shapes[name]) for name in shown(graph)]
    outputs += [_value(each.out, each.shape, whole=each.whole) for each in step.states]
    known = _known_shapes(step)
    made = helper.make_graph(step.nodes, "step", inputs, outputs, _tensors(step.arrays), value_info=known)
    return _model(graph, made, step, "step")


def sequence_model(graph: SpikingGraph) -> onnx.ModelProto:
    """Return the model of whole sequences: ``input -> (output, *layers, *states)``, the step under `Scan`.

    The states leave as they are after the last step.
    """
    step = step_of(graph, INSIDE)
    entering = [_value(INSIDE + each.name, each.shape, whole=each.whole) for each in step.states]
    entering.append(_value(INSIDE + graph.input, graph.shapes[graph.input]))
    leaving = [_value(INSIDE + each.out, each.shape, whole=each.whole) for each in step.states]
    leaving += [_value(INSIDE + name, graph.shapes[name]) for name in shown(graph)]
    body = helper.make_graph(
        step.nodes,
        "step",
        entering,
        leaving,
        _tensors({INSIDE + name: array for name, array in step.arrays.items()}),
    )
    outer = Step(graph)
    outer.operator("Shape", [graph.input], "batch/", start=1, end=2)
    for each in step.states:
        _write_start(outer, each, step.arrays)
    results = [*(each.out for each in step.states), *shown(graph)]
    outer.append(
        "Scan", [*(each.name for each in step.states), graph.input], results, "steps", body=body, num_scan_inputs=1
    )
    made = helper.make_graph(
        outer.nodes,
        "sequence",
        [_value(graph.input, graph.shapes[graph.input], "time")],
        [
            *(_value(name, graph.shapes[name], "time") for name in shown(graph)),
            *(_value(each.out, each.shape, whole=each.whole) for each in step.states),
        ],
        _tensors(outer.arrays),
    )
    return _model(graph, made, step, "sequence")


def shown(graph: SpikingGraph) -> list[str]:
    """Return the values a model shows: the output, then every layer of neurons."""
    return [graph.output, *(name for name in graph.order if isinstance(graph.nodes[name], NEURON))]


def _write_node(step: Step, name: str) -> None:
    graph, node = step.graph, step.graph.nodes[name]
    if name == graph.input:
        return  # it is the model's input
    if isinstance(node, NEURON):
        _write_neuron(step, name, node)
    elif isinstance(node, Delay) and holds_back(node):
        past = step.state(f"{name}/past", (memory_steps(node), *node.steps.shape), 0.0)
        write_delay(step, name, node, past.name)
    elif isinstance(node, Delay) and memory_steps(node):
        past = step.state(f"{name}/past", (memory_steps(node), *node.steps.shape), 0.0)
        write_late_delay(step, name, node, past.name, step.total(name), past.out)
    elif isinstance(node, Delay):
        step.operator("Identity", [step.total(name)], name)
    else:
        write = write_fixed_layer if step.fixed else write_layer
        write(step, name, node, step.total(name), graph.shapes[graph.sources(name)[0]], graph.shapes[name])


def _write_neuron(step: Step, name: str, node: Neuron) -> None:
    """Write the call of a neuron's function; further edges into a current are added to it before or behind the call."""
    shape = step.graph.shapes[name]
    parameters = [step.parameter(name, key) for key in parameters_of(node, fixed=step.fixed)]
    states: dict[str, StateValue] = {}
    for state in states_of(node, fixed=step.fixed):
        start = state.start
        if isinstance(start, str):
            array = _collapsed(arrays_of(node)[start])
            start = float(array) if array.ndim == 0 else step.parameter(name, start)
        states[state.letter] = step.state(f"{name}/{state.letter}", shape, start, whole=step.fixed)
    entering = {letter: each.name for letter, each in states.items()}
    leaving = {letter: each.out for letter, each in states.items()}
    sources = list(step.graph.sources(name))
    if step.fixed or not isinstance(node, SYNAPTIC):
        x = step.total(name)
    elif isinstance(node, LSNN):
        x = sources[0]
        if sources[1:]:
            leaving["i"] = f"{name}/i_first"
    else:
        x = sources[-1]
        entering["i"] = step.add_to(entering["i"], sources[:-1], name)
    step.append(
        function_name(node, fixed=step.fixed),
        [x, *entering.values(), *parameters],
        [name, *leaving.values()],
        name,
        domain=DOMAIN,
        doc_string=summary(name, node, step.graph.dt),
        **said_of(node, step.graph.dt),
    )
    if isinstance(node, LSNN) and sources[1:]:
        current = step.add_to(leaving["i"], sources[1:], name)
        step.operator("Identity", [current], states["i"].out)


def _write_start(outer: Step, state: StateValue, arrays: Mapping[str, np.ndarray]) -> None:
    sizes = outer.constant(f"{state.name}/sizes", np.array(state.shape, np.int64))
    shape = outer.operator("Concat", ["batch/", sizes], f"{state.name}/shape", axis=0)
    if isinstance(state.start, str):
        outer.operator("Expand", [outer.constant(state.start, arrays[state.start]), shape], state.name)
        return
    value = numpy_helper.from_array(np.array([state.start], np.int64 if state.whole else np.float32))
    outer.operator("ConstantOfShape", [shape], state.name, value=value)


def _model(graph: SpikingGraph, made: onnx.GraphProto, step: Step, form: str) -> onnx.ModelProto:
    functions = {
        function_name(node, fixed=step.fixed): node for node in graph.nodes.values() if isinstance(node, NEURON)
    }
    model = helper.make_model(
        made,
        functions=[neuron_function(node, fixed=step.fixed) for _, node in sorted(functions.items())],
        opset_imports=[helper.make_opsetid(domain, version) for domain, version in OPSETS.items()],
        ir_version=IR_VERSION,
        producer_name="slamp",
        doc_string=f"a spiking network, {form}; see the metadata for what a step means",
    )
    helper.set_model_props(
        model,
        {
            "format": FORMAT,
            "form": form,
            "dt": repr(graph.dt),
            "graph_hash": graph.hash,
            "graph": json.dumps(graph_header(graph)),
            "input": json.dumps({"name": graph.input, "shape": graph.shapes[graph.input]}),
            "output": json.dumps({"name": graph.output, "kind": "spikes" if is_spiking_output(graph) else "values"}),
            "layers": json.dumps({name: "v" if name not in graph.spiking else "spikes" for name in shown(graph)[1:]}),
            "states": json.dumps([[each.name, each.shape, each.start, each.whole] for each in step.states]),
            "arithmetic": graph.arithmetic.name,
            **({"largest_input": repr(largest_input(graph))} if step.fixed else {}),
            "constants": json.dumps(_left_out(graph, step.arrays)),
            **CONTRACT,
        },
    )
    return model


def _left_out(graph: SpikingGraph, arrays: Values) -> dict[str, Any]:
    """Return the arrays of nodes that no operator reads, by name: shape, and one number or all in row-major order."""
    found: dict[str, Any] = {}
    for name, node in graph.nodes.items():
        for key, array in arrays_of(node).items():
            if f"{name}/{key}" not in arrays:
                values = _collapsed(array)
                found[f"{name}/{key}"] = [
                    array.shape,
                    float(values) if values.ndim == 0 else values.reshape(-1).tolist(),
                ]
    return found


def _known_shapes(step: Step) -> list[onnx.ValueInfoProto]:
    """Shapes of the values between nodes, for whoever looks at the file."""
    outside = {step.graph.input, *shown(step.graph)}
    return [_value(name, shape) for name, shape in step.graph.shapes.items() if name not in outside]


def _tensors(arrays: Mapping[str, np.ndarray]) -> list[onnx.TensorProto]:
    return [
        numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name)
        for name, array in arrays.items()
    ]


def _value(name: str, shape: Shape, *before: str, whole: bool = False) -> onnx.ValueInfoProto:
    kind = TensorProto.INT64 if whole else TensorProto.FLOAT
    return helper.make_tensor_value_info(name, kind, [*before, "batch", *shape])


def _collapsed(array: np.ndarray) -> np.ndarray:
    """Return a parameter without axes where it is the same everywhere, sign of zero included."""
    everywhere = not any(array.strides)  # a view of one number
    flat = array[(0,) * array.ndim].reshape(1) if everywhere else array.reshape(-1)
    same = bool((flat == flat[0]).all()) and (flat[0] != 0 or len(np.unique(np.signbit(flat))) == 1)
    return np.array(flat[0]) if same else array
