from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from slamp.compare import Comparison, Difference, compare
from slamp.errors import RasterError
from slamp.raster import SpikeRaster
from slamp.simulate import Recording, Trace, simulate
from verify_networks import conv_graph, dense_graph, raster, reference_run

ORDER = ("input", "a", "b", "output")


def recording(a: torch.Tensor, b: torch.Tensor) -> Recording:
    return Recording(SpikeRaster(b, kind="spikes"), {"a": Trace(spikes=a), "b": Trace(spikes=b)})


def drawn(seed: int = 0, *shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random(shape or (5, 3, 4)) < 0.4)


def flipped(spikes: torch.Tensor, *cells: tuple[int, ...]) -> torch.Tensor:
    copy = spikes.clone()
    for cell in cells:
        copy[cell] = ~copy[cell]
    return copy


def run(reference: Recording, replayed: Recording, latency_steps: int = 0) -> Comparison:
    return compare(reference, replayed, latency_steps=latency_steps, order=ORDER)


def test_equal_recordings_are_identical_and_counted() -> None:
    a, b = drawn(0), drawn(1)
    result = run(recording(a, b), recording(a.clone(), b.clone()))
    assert result.identical
    assert result.verdicts == ("identical",) * 3
    assert result.first_difference is None
    assert result.layers == ("a", "b", "output")
    assert result.cells == 3 * 5 * 3 * 4
    assert result.spikes == int(a.sum() + b.sum())
    assert result.unobserved == () == result.silent


def test_one_flipped_cell_is_found_and_named() -> None:
    a, b = drawn(0), drawn(1)
    result = run(recording(a, b), recording(flipped(a, (3, 1, 2)), b))
    assert not result.identical
    assert result.differing_cells == 1
    assert result.verdicts == ("identical", "different", "identical")
    assert result.first_difference == Difference("a", 3, 1, (2,), bool(a[3, 1, 2]), not a[3, 1, 2])


def test_first_difference_is_in_the_layer_computed_first_even_if_a_later_layer_differs_earlier() -> None:
    a, b = drawn(0), drawn(1)
    replayed = recording(flipped(a, (4, 0, 3), (4, 0, 1)), flipped(b, (0, 0, 0)))
    first = run(recording(a, b), replayed).first_difference
    assert first is not None
    assert (first.layer, first.step, first.neuron) == ("a", 4, (1,))


def test_order_not_recording_order_decides() -> None:
    a, b = drawn(0), drawn(1)
    replayed = recording(flipped(a, (0, 0, 0)), flipped(b, (4, 0, 0)))
    result = compare(recording(a, b), replayed, order=("input", "b", "a", "output"))
    assert result.first_difference is not None
    assert result.first_difference.layer == "b"


def test_every_single_flip_is_found() -> None:
    a, b = drawn(0, 3, 2, 2), drawn(1, 3, 2, 2)
    for cell in np.ndindex(3, 2, 2):
        assert run(recording(a, b), recording(flipped(a, cell), b)).differing_cells == 1
        first = run(recording(a, b), recording(a, flipped(b, cell))).first_difference
        assert first is not None
        assert (first.layer, first.step, first.sample, *first.neuron) == ("b", *cell)


def test_wrong_output_is_found_although_its_layer_agrees() -> None:
    a, b = drawn(0), drawn(1)
    replayed = Recording(SpikeRaster(flipped(b, (1, 2, 0)), kind="spikes"), recording(a, b).traces)
    first = run(recording(a, b), replayed).first_difference
    assert first is not None
    assert first.layer == "output"


@pytest.mark.parametrize("extra", [0, 2])
def test_latency_is_taken_out(extra: int) -> None:
    a, b = drawn(0), drawn(1)
    late_a, late_b = (torch.cat([torch.zeros(2, 3, 4, dtype=torch.bool), x])[: 5 + extra] for x in (a, b))
    result = run(recording(a, b), recording(late_a, late_b), latency_steps=2)
    assert result.identical
    assert result.steps == 3 + extra
    assert result.latency_steps == 2
    if not extra:
        assert not run(recording(a, b), recording(late_a, late_b)).identical


def test_a_lacking_layer_is_unobserved_not_identical() -> None:
    a, b = drawn(0), drawn(1)
    replayed = Recording(SpikeRaster(b, kind="spikes"))
    result = run(recording(a, b), replayed)
    assert result.layers == ("output",)
    assert result.unobserved == ("a", "b")
    assert result.cells == b.numel()


def test_silent_layer_is_listed() -> None:
    a, b = drawn(0), torch.zeros(5, 3, 4, dtype=torch.bool)
    assert run(recording(a, b), recording(a, b)).silent == ("b",)
    nothing = Recording(SpikeRaster(b, kind="spikes"))
    assert run(nothing, nothing).silent == ("output",)


def test_analog_output_is_measured_per_sample_and_nan_is_infinitely_far() -> None:
    values = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4)
    found = values.clone()
    found[1, 1, 2] += 0.5
    found[0, 2, 0] = float("nan")
    result = run(
        Recording(SpikeRaster(values, kind="analog")), Recording(SpikeRaster(torch.nan_to_num(found), kind="analog"))
    )
    assert result.readout_errors == (0.0, 0.5, 8.0)
    spoiled = SpikeRaster(values, kind="analog")
    object.__setattr__(spoiled, "data", found)
    assert run(Recording(SpikeRaster(values, kind="analog")), Recording(spoiled)).readout_errors[2] == float("inf")


def test_a_network_agrees_with_itself() -> None:
    graph = conv_graph()
    reference = reference_run(graph, raster(graph))
    result = compare(reference, simulate(graph, raster(graph), record="all"), order=graph.order)
    assert result.identical
    assert result.silent == ()
    assert result.layers == ("lif1", "lif2", "lif3", "output")


def test_networks_with_other_weights_differ() -> None:
    graph, other = dense_graph(0), dense_graph(1)
    reference = reference_run(graph, raster(graph))
    assert not compare(reference, simulate(other, raster(other), record="spikes"), order=graph.order).identical


def test_shapes_that_do_not_match_are_refused() -> None:
    a, b = drawn(0), drawn(1)
    with pytest.raises(RasterError, match=r"a: the replay has shape \(3, 2\).*the graph \(3, 4\)"):
        run(recording(a, b), recording(a[:, :, :2], b))
    with pytest.raises(RasterError, match=r"output: the replay has shape \(2, 4\)"):
        run(recording(a, b), recording(a[:, :2], b[:, :2]))


def test_steps_that_do_not_match_are_refused() -> None:
    a, b = drawn(0), drawn(1)
    with pytest.raises(RasterError, match="the replay has 4 steps, the graph 5"):
        run(recording(a, b), recording(a[:4], b[:4]))
    with pytest.raises(RasterError, match="a: the replay has 4 steps, its output 5"):
        run(recording(a, b), recording(a[:4], b))


def test_kinds_that_do_not_match_are_refused() -> None:
    a, b = drawn(0), drawn(1)
    analog = Recording(SpikeRaster(b.float(), kind="analog"))
    with pytest.raises(RasterError, match="the replay's output holds analog values, the graph's spikes"):
        run(recording(a, b), analog)
    floats = Recording(SpikeRaster(b, kind="spikes"), {"a": Trace(spikes=a.float())})
    with pytest.raises(RasterError, match=r"a: the replay's spikes are torch.float32; allowed is torch.bool"):
        run(recording(a, b), floats)


@pytest.mark.parametrize("latency", [-1, 5])
def test_a_latency_that_leaves_nothing_is_refused(latency: int) -> None:
    a, b = drawn(0), drawn(1)
    with pytest.raises(RasterError, match=f"latency of {latency} steps"):
        run(recording(a, b), recording(a, b), latency_steps=latency)


def test_a_layer_outside_the_order_is_refused() -> None:
    a, b = drawn(0), drawn(1)
    with pytest.raises(RasterError, match="b is recorded but not in the order"):
        compare(recording(a, b), recording(a, b), order=("input", "a", "output"))


def test_difference_reads_as_a_sentence_and_as_json() -> None:
    difference = Difference("lif1", 7, 3, (5,), True, False, 0.51, 0.5, 0.01, 1e-6, "reset: by value")
    assert difference.sentence() == (
        "layer lif1, step 7, sample 3, neuron 5: the graph spikes, the replay does not spike; "
        "membrane 0.51, threshold 0.5, margin 0.01, rounding explains up to 1e-06; cause: reset: by value"
    )
    assert json.loads(json.dumps(difference.to_json()))["neuron"] == [5]
    value = Difference("readout", 0, 0, (1, 2), 0.25, float("nan"), membrane=0.25)
    assert "neuron (1, 2): the graph gives 0.25, the replay gives nan; exact value 0.25" in value.sentence()
    assert json.dumps(value.to_json(), allow_nan=False)
    assert replace(difference, cause="").sentence().endswith("1e-06")
