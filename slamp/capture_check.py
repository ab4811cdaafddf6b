"""The proof of a capture: module and graph run side by side, every cell of every neuron layer compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import torch

from slamp.as_found import left_as_found
from slamp.dynamics import exact_float32
from slamp.errors import CaptureError
from slamp.graph import SpikingGraph
from slamp.neuron_calls import loops_over_time
from slamp.nodes import NEURON, SPIKING
from slamp.raster import SpikeRaster, join
from slamp.read_sites import Parts
from slamp.running import Run, joined_outputs, run_style, split_result
from slamp.simulate import stream
from slamp.sites import IN_PIECES
from slamp.tracing import tensors_in
from slamp.unrolled import Read

# What a module that loops over time gives at once is kept until the graph has come as far; the batch is cut so that it
# stays below this.
KEPT_BYTES = 256 << 20
LINE = 16  # float32 numbers in 64 bytes


def compare_with_module(
    net: torch.nn.Module, graph: SpikingGraph, rasters: Sequence[SpikeRaster], run: Run, parts: Parts
) -> None:
    """Raise `CaptureError` at the first cell in which the module and the graph differ.

    Args:
        net: The module.
        graph: The graph read from it.
        rasters: Its inputs.
        run: How it was run.
        parts: The neurons' sites by node.
    """
    size = {name: prod(graph.shapes[name]) for name in parts.neurons}
    kept = sum(cells * (1 if isinstance(graph.nodes[name], SPIKING) else 4) for name, cells in size.items())
    over_time = run.recorded.style != "steps"
    steps = rasters[0].steps if over_time else 1
    samples = max(1, KEPT_BYTES // max(1, kept * steps))
    for start in range(0, rasters[0].batch, samples):
        stop = min(start + samples, rasters[0].batch)
        pieces = aligned([item.samples(start, stop) for item in rasters], over_time=over_time)
        _Comparison(net, graph, pieces, run, parts, start).compare()


def aligned(rasters: Sequence[SpikeRaster], *, over_time: bool) -> list[SpikeRaster]:
    """Repeat the first samples until every step takes whole cache lines.

    The module sees steps as views into one tensor, and BLAS may sum in another order where memory is not aligned, or
    where a matrix of all steps has a row more than one step. ``over_time`` says that layers see all steps at once.
    """
    batch = rasters[0].batch
    sizes = [1] if over_time else [prod(item.features) for item in rasters]
    full = next(count for count in range(batch, batch + LINE) if all(count * size % LINE == 0 for size in sizes))
    return list(rasters) if full == batch else [item.select([k % batch for k in range(full)]) for item in rasters]


class _Comparison:
    def __init__(
        self,
        net: torch.nn.Module,
        graph: SpikingGraph,
        rasters: Sequence[SpikeRaster],
        run: Run,
        parts: Parts,
        start: int,
    ) -> None:
        self.net, self.graph, self.rasters, self.run, self.start = net, graph, rasters, run, start
        self.raster = rasters[0] if len(rasters) == 1 else join(rasters)
        self.order = _order(run, parts)
        self.found: dict[tuple[str, int], torch.Tensor] = {}
        self.counts: dict[torch.nn.Module, int] = {}
        self.outputs: dict[int, torch.Tensor] = {}
        self.step = 0

    def compare(self) -> None:
        handles = [module.register_forward_hook(self._keep) for module in self.order]
        try:
            with left_as_found(self.net):
                if self.run.recorded.style == "steps":
                    self._by_steps()
                else:
                    self._at_once()
        finally:
            for handle in handles:
                handle.remove()

    def _keep(self, module: torch.nn.Module, inputs: Any, result: Any) -> None:
        output = result[0] if isinstance(result, tuple) else result
        names = self.order[module]
        count = self.counts.get(module, 0)
        self.counts[module] = count + 1
        if loops_over_time(module):
            name = names[count % len(names)]
            for t, values in enumerate(output):
                self._put(name, t, values)
            return
        if self.run.recorded.style != "steps" and len(names) > 1 and self._layer_by_layer(module):
            steps = self.raster.steps
            self._put(names[count // steps % len(names)], count % steps, output)
        else:
            self._put(names[count % len(names)], count // len(names), output)

    def _layer_by_layer(self, module: torch.nn.Module) -> bool:
        """True if all steps of one use of a module come before those of the next."""
        times = [
            instance.time
            for instance in self.run.reader.instances
            if instance.operation.module is module and instance.call is not None
        ]
        return times[1:2] == [1]

    def _put(self, name: str, t: int, output: torch.Tensor) -> None:
        """Keep a layer's output; spikes as bool."""
        values = output.detach()
        if isinstance(self.graph.nodes[name], SPIKING):
            spikes = values.to(torch.bool)
            if bool((spikes.to(values.dtype) == values).all()):
                values = spikes
        self.found[name, t] = values

    def _by_steps(self) -> None:
        """Run module and graph in step; nothing is kept."""
        graph_steps = stream(self.graph, self.raster)

        def call(*arguments: Any) -> Any:
            with exact_float32():
                result = self.net(*arguments)
            step = next(graph_steps)
            output, _ = split_result(self.net, result, len(self.rasters))
            self._check_neurons(step)
            if not self.run.sites.readout:
                self._check_outputs(step, dict(enumerate(tensors_in(output))))
            self.found.clear()
            return result

        run_style(self.net, self._inputs(), "steps", call, lambda tensor: tensor)

    def _at_once(self) -> None:
        results: list[Any] = []

        def call(*arguments: Any) -> Any:
            with exact_float32():
                results.append(self.net(*arguments))
            return results[0]

        run_style(self.net, self._inputs(), self.run.recorded.style, call, lambda tensor: tensor)
        outputs = list(tensors_in(results[0]))
        if self.run.sites.readout:
            kept: list[torch.Tensor] = []
            for step in stream(self.graph, self.raster):
                self._check_neurons(step)
                kept.append(step.values[self.graph.output])
            self._check_readout(kept, outputs[0])
            return
        moved = {index: _by_time(outputs[index], axis) for index, axis in self.run.sites.returned}
        for step in stream(self.graph, self.raster):
            self._check_neurons(step)
            self._check_outputs(step, {index: values[step.t] for index, values in moved.items()})

    def _inputs(self) -> list[torch.Tensor]:
        device = self.graph.device
        # A copy: the module may write to what it is given.
        return [item.data.to(device=device, dtype=torch.float32, copy=True) for item in self.rasters]

    def _check_neurons(self, step: Any) -> None:
        for (name, t), found in self.found.items():
            if t == step.t:
                self._check_cells(name, found, step.values[name], t, step.v.get(name))
        for name in {name for names in self.order.values() for name in names}:
            if (name, step.t) not in self.found:
                raise CaptureError(
                    f"{name}: the module does not run it in step {step.t} of these samples; what is run must not "
                    "depend on the input, nor on the step"
                )

    def _check_outputs(self, step: Any, outputs: Mapping[int, torch.Tensor]) -> None:
        """Compare every joined output; ``outputs`` are those of this step, by their place among what is returned."""
        expected = step.values[self.graph.output]
        joined = joined_outputs(self.run)
        if len(joined) == 1:
            self._check_cells(self.graph.output, outputs[self.run.sites.returned[0][0]], expected, step.t, None)
            return
        returned = dict(zip(map(id, self.run.sites.outputs), self.run.sites.returned, strict=True))
        start = 0
        for edge in joined:
            found = outputs[returned[id(edge)][0]].flatten(1)
            part = expected[:, start : start + found.shape[1]]
            self._check_cells(self.graph.output, found, part, step.t, None)
            start += found.shape[1]

    def _check_readout(self, outputs: Sequence[torch.Tensor], found: torch.Tensor) -> None:
        sites = self.run.sites
        stacked = torch.stack(list(outputs))
        match sites.readout:
            case "last":
                expected = stacked[-1]
            case "max":
                expected = stacked.amax(0)
            case "sum" if sites.reading is None:
                expected = stacked[0]
                for values in stacked[1:]:
                    expected = expected + values
            case "sum":
                expected = stacked.sum(0)
            case _:
                expected = stacked.mean(0)
        changed = sites.reading is None and sites.readout == "mean"
        changed |= isinstance(sites.reading, Read) and len(sites.reading.calls) > (sites.readout != "last")
        if not changed and expected.shape == found.shape:
            self._check_cells(f"readout ({sites.readout})", found, expected, len(outputs) - 1, None)

    def _check_cells(
        self, name: str, found: torch.Tensor, expected: torch.Tensor, t: int, v: torch.Tensor | None
    ) -> None:
        if found.shape != expected.shape:
            raise CaptureError(
                f"{name}: the module gives shape {tuple(found.shape)}, the graph {tuple(expected.shape)}"
            )
        differing = found != expected
        if not bool(differing.any()):
            return
        sample, *neuron = (int(index) for index in differing.nonzero()[0])
        where = f"{name}: step {t}, sample {self.start + sample}, neuron {neuron}"
        if not bool(torch.isfinite(found.to(torch.float32)).all()):
            raise CaptureError(
                f"{where}: the module gives {found[(sample, *neuron)].item():g}; its numbers overflow float32, so "
                "scale its weights or input down"
            )
        membrane = "" if v is None else f", membrane {v[(sample, *neuron)].item():.9g}"
        kind = type(self.graph.nodes[name]).__name__ if name in self.graph.nodes else "readout"
        raise CaptureError(
            f"{where}: the module gives {float(found[(sample, *neuron)]):.9g}, the graph "
            f"{float(expected[(sample, *neuron)]):.9g}{membrane}; {int(differing.sum())} cells of this step differ; "
            "this is a defect of slamp unless a hook or subclass changes the module, or its forward computes otherwise "
            f"for other samples or in later steps ({kind})"
        )


def _by_time(output: torch.Tensor, axis: int) -> torch.Tensor:
    """Return an output with time as its first axis."""
    return output.flatten(0, 1) if axis == IN_PIECES else output.transpose(0, axis)


def _order(run: Run, parts: Parts) -> Mapping[torch.nn.Module, list[str]]:
    """Return, for every neuron module, its nodes in the order of its calls within a step."""
    names = {id(site): name for name, site in parts.neurons.items()}
    order: dict[torch.nn.Module, list[tuple[int, str]]] = {}
    position = {id(instance): index for index, instance in enumerate(run.reader.instances)}
    for site in run.sites.sites:
        if site.operation.module is not None and id(site) in names:
            at = position[id(site.first)]
            order.setdefault(site.operation.module, []).append((at, names[id(site)]))
    assert all(name in parts.nodes and isinstance(parts.nodes[name], NEURON) for name in names.values())
    return {module: [name for _, name in sorted(uses)] for module, uses in order.items()}
