"""Synaptic memory: worked cases, and figures computed elsewhere from the same equations."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator, Mapping
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slamp.encodings import RULES, WORDS, SynapseLists, list_words, synapse_bits, synapse_lists
from slamp.errors import ProfileError
from slamp.nodes import Conv2d, Linear, frozen_array
from slamp.profile import installed_profiles, load_profile

KIB = 8192
LOIHI1 = {
    "weight_bits": 8,
    "prefix_bits": 10,
    "entry_synapses": 60,
    "word_bits": 64,
    "pad_remainder": 59,
    "index_bits_min": 6,
    "index_bits_max": 10,
    "skip_bits_min": 2,
    "skip_bits_max": 5,
}
RULES_OF_LOIHI1 = ("loihi1_sparse", "loihi1_runlength", "loihi1_dense1", "loihi1_dense2")


def lists(kept: np.ndarray) -> SynapseLists:
    return SynapseLists(kept, Linear(kept.T), (len(kept),))


def loihi1(rule: str, kept: np.ndarray) -> float:
    return synapse_bits(rule, lists(kept), LOIHI1)


@pytest.mark.parametrize(
    ("outputs", "kibibytes"), [(256, (126, 84, 68, 68)), (128, (60, 42, 34, 34)), (26, (12, 10, 8, 8))]
)
def test_a_layer_of_loihi_1_whose_first_outputs_are_kept(outputs: int, kibibytes: tuple[int, ...]) -> None:
    kept = np.zeros((256, 256), dtype=bool)
    kept[:, :outputs] = True
    assert tuple(loihi1(rule, kept) / KIB for rule in RULES_OF_LOIHI1) == kibibytes


@pytest.mark.parametrize(
    ("density", "kibibytes"),
    [
        (0.75, (96.3, 66.6, 75.3, 67.1)),
        (0.50, (64.1, 47.7, 67.3, 65.2)),
        (0.30, (40.5, 31.5, 49.8, 62.4)),
        (0.20, (27.3, 22.5, 36.5, 59.3)),
        (0.10, (14.3, 12.8, 20.4, 50.1)),
        (0.05, (7.6, 7.8, 10.9, 35.6)),
        (0.02, (3.9, 4.7, 5.3, 16.9)),
    ],
)
def test_random_zeros_on_loihi_1_with_one_list_per_group(density: float, kibibytes: tuple[float, ...]) -> None:
    """Other random masks, so a few percent apart."""
    kept = np.random.default_rng(0).random((256, 256)) < density
    for rule, expected in zip(RULES_OF_LOIHI1, kibibytes, strict=True):
        found = sum(loihi1(rule, row[None]) for row in kept) / KIB
        assert found == pytest.approx(expected, rel=0.06), rule


def test_every_list_of_a_layer_is_as_long_as_the_longest_on_loihi_1() -> None:
    kept = np.random.default_rng(1).random((64, 256)) < 0.1
    alone = [loihi1("loihi1_sparse", row[None]) for row in kept]
    assert len(set(alone)) > 1
    assert loihi1("loihi1_sparse", kept) == 64 * max(alone)


def test_words_of_loihi_1_by_hand() -> None:
    """10 + 3 * (8 + 6) = 52 bits: one word. 4 synapses: 66 bits, two words. 59 to 63 left over: one word more."""
    row = np.zeros((1, 40), dtype=bool)
    row[0, [0, 20, 39]] = True
    assert loihi1("loihi1_sparse", row) == 64
    row[0, 5] = True
    assert loihi1("loihi1_sparse", row) == 128
    assert loihi1("loihi1_sparse", np.zeros((1, 40), dtype=bool)) == 0
    row = np.zeros((1, 300), dtype=bool)
    row[0, [0, 40]] = True  # a gap of 32 or more starts a new entry: 2 * (10 + 6 + 8 + 2)
    assert loihi1("loihi1_runlength", row) == 64
    row[0, 70] = True  # (10 + 6 + 8 + 2) + (10 + 6 + 2 * (8 + 5)): a gap of 30 takes 5 bits
    assert loihi1("loihi1_runlength", row) == 128


def test_a_list_that_fills_its_words_takes_one_more_on_loihi_1() -> None:
    """10 + 6 + 6 * 8 = 64 bits: nothing is left over, and the compiler adds a word."""
    row = np.zeros((1, 40), dtype=bool)
    row[0, :6] = True
    assert loihi1("loihi1_dense1", row) == 128
    row[0, 5] = False
    assert loihi1("loihi1_dense1", row) == 64


def entries_one_by_one(rule: str, row: np.ndarray, n: Mapping[str, int]) -> Iterator[list[int]]:
    """Yield the targets of each entry of a list, by looking at one synapse after the other."""
    gaps = {"loihi1_runlength": 2 ** n["skip_bits_max"], "loihi1_dense1": 2}
    entry: list[int] = []
    for target in np.flatnonzero(row).tolist():
        filled = target - entry[0] if rule == "loihi1_dense2" and entry else len(entry)
        if entry and (filled >= n["entry_synapses"] or target - entry[-1] >= gaps.get(rule, np.inf)):
            yield entry
            entry = []
        entry.append(target)
    if entry:
        yield entry


def words_one_by_one(rule: str, row: np.ndarray, n: Mapping[str, int]) -> int:
    bits = 0
    for entry in entries_one_by_one(rule, row, n):
        index = max(n["index_bits_min"], entry[0 if rule != "loihi1_sparse" else -1].bit_length())
        gap = max((after - before for before, after in pairwise(entry)), default=1)
        bits += n["prefix_bits"]
        bits += {
            "loihi1_sparse": len(entry) * (n["weight_bits"] + index),
            "loihi1_runlength": index + len(entry) * (n["weight_bits"] + max(n["skip_bits_min"], gap.bit_length())),
            "loihi1_dense1": index + len(entry) * n["weight_bits"],
            "loihi1_dense2": index + (entry[-1] - entry[0] + 1) * n["weight_bits"],
        }[rule]
    words, rest = divmod(bits, n["word_bits"])
    return words + (rest > 0) + (bits > 0 and (rest == 0 or rest >= n["pad_remainder"]))


@st.composite
def masks(draw: st.DrawFn) -> np.ndarray:
    """Lists that are empty, full, of one synapse, random, or of runs between gaps of up to 100 targets."""
    width = draw(st.integers(1, 40) | st.integers(41, 700))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rows = {
        "empty": lambda: np.zeros(width, dtype=bool),
        "full": lambda: np.ones(width, dtype=bool),
        "single": lambda: np.arange(width) == generator.integers(width),
        "random": lambda: generator.random(width) < generator.random() ** 3,
        "runs": lambda: np.repeat(np.arange(width) % 2 == 0, generator.integers(1, 100, width))[:width],
    }
    return np.stack([rows[kind]() for kind in draw(st.lists(st.sampled_from(list(rows)), min_size=1, max_size=8))])


@settings(max_examples=300, deadline=None)
@given(
    kept=masks(),
    chunk=st.integers(1, 3000),
    skip_bits_max=st.integers(1, 6),
    entry_synapses=st.sampled_from([1, 2, 7, 60]),
)
def test_words_of_loihi_1_are_those_counted_synapse_by_synapse(
    kept: np.ndarray, chunk: int, skip_bits_max: int, entry_synapses: int
) -> None:
    numbers = LOIHI1 | {"skip_bits_max": skip_bits_max, "entry_synapses": entry_synapses}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("slamp.encodings.CHUNK_TARGETS", chunk)
        for rule in RULES_OF_LOIHI1:
            expected = [words_one_by_one(rule, row, numbers) for row in kept]
            words = list_words(rule, lists(kept), numbers)
            assert words.dtype == np.int64
            assert words.tolist() == expected, rule
            assert synapse_bits(rule, lists(kept), numbers) == len(kept) * max(expected) * 64, rule


@pytest.mark.parametrize("rule", RULES_OF_LOIHI1)
@pytest.mark.parametrize("every", [1, 2])
def test_words_of_a_large_layer_need_little_memory(rule: str, every: int) -> None:
    """All synapses, or entries of one synapse each."""
    kept = np.zeros((4096, 4096), dtype=bool)
    kept[:, ::every] = True
    tracemalloc.start()
    list_words(rule, lists(kept), LOIHI1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 * 2**20


def test_lists_without_targets_take_no_words() -> None:
    for rule in WORDS:
        assert list_words(rule, lists(np.zeros((3, 0), dtype=bool)), LOIHI1).tolist() == [0, 0, 0]


def test_simple_rules_by_hand() -> None:
    kept = np.array([[1, 0, 0, 1], [0, 0, 1, 0]], dtype=bool)
    assert synapse_bits("dense", lists(kept), {"weight_bits": 8}) == 64
    assert synapse_bits("bitmap", lists(kept), {"weight_bits": 8}) == 3 * 8 + 8
    numbers = {"weight_bits": 8.0, "index_bits": 2.0, "pointer_bits": 5.0}
    assert synapse_bits("coordinate", lists(kept), numbers) == 3 * 10 + 2 * 5
    assert synapse_bits("target_list", lists(kept), {"weight_bits": 8}) == 24
    block = {"block_sources": 256.0, "block_targets": 256.0, "block_bits": 65536.0}
    assert synapse_bits("crossbar", lists(np.ones((257, 300), dtype=bool)), block) == 4 * 65536
    rows = {"row_bits": 256.0, "entries_per_row": 8.0, "pointer_bits": 32.0}
    assert synapse_bits("entry_rows", lists(np.ones((2, 9), dtype=bool)), rows) == 2 * (2 * 256 + 32)
    padded = {"synapse_bits": 32.0, "header_words": 3.0, "word_bits": 32.0, "row_synapses_max": 256.0}
    assert synapse_bits("padded_rows", lists(kept), padded) == 2 * (2 * 32 + 3 * 32)


def test_kernels_of_speck_grow_in_powers_of_two() -> None:
    """48 to 33 filters save nothing, 33 to 32 halve the memory."""

    def words(filters: int) -> float:
        weight = frozen_array(np.ones((filters, 4, 3, 3)))
        node = Conv2d(weight, None, (1, 1), (1, 1), (1, 1), 1)
        return synapse_bits("speck_kernel", synapse_lists(node, (4, 8, 8)), {"weight_bits": 8}) / 8

    assert words(48) == words(33) == 4 * 2 ** (4 + 6)
    assert words(32) == words(33) / 2


def test_lists_of_a_convolution_are_per_input_channel() -> None:
    weight = np.zeros((4, 2, 3), dtype=np.float32)
    weight[0, 1, 2] = weight[3, 0, 0] = 1
    node = Conv2d(frozen_array(weight[..., None]), None, (1, 1), (0, 0), (1, 1), 2)
    found = synapse_lists(node, (4, 5, 5))
    assert found.kept.shape == (4, 6)  # 4 input channels in 2 groups, 2 output channels of 3 kernel positions each
    assert np.argwhere(found.kept).tolist() == [[1, 2], [2, 3]]
    assert found.fan_out.shape == (4, 5, 5)
    assert found.fan_out.sum() == 2 * 3 * 5
    assert found.density == 2 / 24


def test_lists_of_a_linear_layer_are_per_input() -> None:
    weight = np.array([[1, 0, 2], [0, 0, 3]], dtype=np.float32)
    found = synapse_lists(Linear(frozen_array(weight)), (3,))
    assert found.kept.tolist() == [[True, False], [False, False], [True, True]]
    assert found.fan_out.tolist() == [1, 0, 2]


@pytest.mark.parametrize("name", sorted(installed_profiles()))
def test_every_encoding_of_a_shipped_profile_can_be_computed(name: str) -> None:
    generator = np.random.default_rng(0)
    node = Linear(frozen_array(generator.random((20, 30)) * (generator.random((20, 30)) < 0.3)))
    for encoding in load_profile(name).encodings.values():
        assert encoding.rule in RULES
        numbers = {key: figure.number for key, figure in encoding.parameters.items()}
        assert synapse_bits(encoding.rule, synapse_lists(node, (30,)), numbers) > 0


def test_every_rule_is_used_by_a_shipped_profile() -> None:
    used = {encoding.rule for name in installed_profiles() for encoding in load_profile(name).encodings.values()}
    assert used == set(RULES)


def test_unknown_rules_and_missing_parameters_are_refused() -> None:
    kept = np.ones((2, 2), dtype=bool)
    with pytest.raises(ProfileError, match="rule 'zip' is unknown; allowed are dense, bitmap"):
        synapse_bits("zip", lists(kept), {})
    with pytest.raises(ProfileError, match="rule coordinate needs the parameter 'index_bits'"):
        synapse_bits("coordinate", lists(kept), {"weight_bits": 8})
    with pytest.raises(ProfileError, match="rule 'bitmap' has no words per list; allowed are loihi1_sparse"):
        list_words("bitmap", lists(kept), LOIHI1)
    with pytest.raises(ProfileError, match="rule loihi1_runlength needs the parameter 'skip_bits_max'"):
        list_words("loihi1_runlength", lists(kept), {k: v for k, v in LOIHI1.items() if k != "skip_bits_max"})
