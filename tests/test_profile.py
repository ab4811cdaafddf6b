"""Hardware profiles: what is shipped, and that a wrong entry is refused with file, line and key."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import hw_profiles
from slamp.errors import ProfileError
from slamp.profile import STARRED, installed_profiles, load_profile, profile_schema

CHIPS = [
    "akida1000",
    "brainscales2",
    "generic",
    "hiaer_spike",
    "loihi1",
    "loihi2",
    "speck2f",
    "spiker_plus",
    "spinnaker1",
    "spinnaker2",
    "truenorth",
    "xylo2",
    "xylo3",
]

MINE = """\
schema_version = 1
name = "mine"
title = "A chip of my own"
revision = "2026-11"
route = "nir"
dialect = "norse"

[support]
nodes = ["Linear", "LIF"]
resets = ["value"]
source = "sheet"

[mapping]
rule = "contiguous"
source = "sheet"

[sparsity]
unstructured = true
reason = "lists of non-zeros"
source = "sheet"

[limits]
cores_per_chip = { value = 4, unit = "cores", source = "sheet", status = "published" }
neurons_per_core = { value = 256, unit = "neurons", source = ["sheet", "guess"], status = "assumed" }
fan_in = { unit = "synapses", status = "unknown" }

[formats]
weight_bits = { value = [4, 8], unit = "bits", source = "sheet", status = "vendor" }

[encodings.list]
rule = "coordinate"
source = "sheet"
status = "derived"
parameters.weight_bits = { value = 8, unit = "bits", source = "sheet", status = "derived" }

[energy.sheet]
scope = "per_term"
sop_pj = { value = 2.5, unit = "pJ", source = "sheet", status = "measured" }

[sources.sheet]
cite = "Data sheet, revision 3"
access = "primary"

[sources.guess]
cite = "our own guess"
access = "secondary"
"""


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(MINE)
    return path


def line(text: str) -> int:
    return MINE.splitlines().index(text) + 1


def test_thirteen_chips_are_shipped() -> None:
    assert list(installed_profiles()) == CHIPS


@pytest.mark.parametrize("name", CHIPS)
def test_a_shipped_profile_loads_and_says_where_every_number_comes_from(name: str) -> None:
    profile = load_profile(name)
    assert profile.name == name
    figures = dict(profile.figures())
    assert len(figures) >= 3
    for key, figure in figures.items():
        assert figure.unit, key
        assert (figure.value is None) == (figure.status == "unknown"), key
        assert figure.value is None or figure.source, key
        assert set(figure.source) <= set(profile.sources), key
        assert figure.status != "assumed" or figure.note, f"{key}: an assumption says why"


def test_known_figures() -> None:
    """From the sources themselves, typed here a second time."""
    loihi1 = load_profile("loihi1")
    assert loihi1.limits.neurons_per_core.value == 1024
    assert loihi1.limits.axons_in_per_core.value == loihi1.limits.axons_out_per_core.value == 4096
    assert loihi1.limits.synapse_bits_per_core.value == 16384 * 64
    assert loihi1.limits.cores_per_chip.value == 128
    assert {"loihi1_sparse", "loihi1_runlength", "loihi1_dense1", "loihi1_dense2"} == {
        encoding.rule for encoding in loihi1.encodings.values()
    }
    assert sorted(energy.sop_pj.value for energy in loihi1.energy.values() if energy.sop_pj)[0] == 23.6
    speck = load_profile("speck2f").limits
    kilo = 1024
    assert speck.kernel_words_of_core.value == tuple(kilo * size for size in (16, 16, 16, 32, 32, 64, 64, 16, 16))
    assert speck.neuron_words_of_core.value == tuple(kilo * size for size in (64, 64, 64, 32, 32, 16, 16, 16, 16))
    (whole,) = [energy for energy in load_profile("truenorth").energy.values() if energy.scope == "all_in"]
    assert whole.sop_pj.value == 26
    assert load_profile("xylo2").limits.fan_out.value == 64
    assert load_profile("xylo3").limits.fan_out.value == 1024
    assert load_profile("hiaer_spike").limits.neurons_per_core.value == 131072


def test_what_is_unknown_stays_unknown() -> None:
    priced = {
        name: any(energy.sop_pj and energy.sop_pj.value is not None for energy in load_profile(name).energy.values())
        for name in CHIPS
    }
    assert {name for name, known in priced.items() if known} == {"generic", "loihi1", "truenorth"}


def test_where_single_zeros_save_nothing_the_profile_says_so() -> None:
    saves = {name for name in CHIPS if load_profile(name).sparsity.unstructured}
    assert saves.isdisjoint({"speck2f", "truenorth", "brainscales2", "akida1000", "spiker_plus"})
    assert {"loihi1", "loihi2", "spinnaker1", "hiaer_spike"} <= saves


def test_a_profile_of_the_users_own(mine: Path) -> None:
    profile = load_profile(mine)
    assert profile.limits.cores_per_chip.value == 4
    assert profile.limits.fan_in.value is None
    assert profile.formats.weight_bits.value == (4, 8)
    assert profile.energy["sheet"].sop_pj.number == 2.5
    starred = {key for key, figure in profile.figures() if figure.starred}
    assert starred == {"limits.neurons_per_core", "formats.weight_bits"}
    assert set(STARRED) == {"vendor", "assumed"}
    assert load_profile(str(mine)) == profile
    with pytest.raises(ValueError, match="frozen"):
        profile.name = "other"  # type: ignore[misc]  # what must not be possible


CORES = 'cores_per_chip = { value = 4, unit = "cores", source = "sheet", status = "published" }'
WRONG = {
    "unknown key": (CORES, CORES + "\nspam = 3", "limits.spam: unknown key", 1),
    "missing source": (CORES, 'cores_per_chip = { value = 4, unit = "cores", status = "code" }', "source is mis", 0),
    "negative": (CORES, CORES.replace("4", "-4"), "limits.cores_per_chip: value is -4, allowed is 1 or more", 0),
    "wrong unit": (CORES, CORES.replace('"cores"', '"neurons"'), "unit is 'neurons', allowed is 'cores'", 0),
    "number as text": (CORES, CORES.replace("= 4", '= "4"'), "allowed is a number, .*found '4'", 0),
    "bool": (CORES, CORES.replace("= 4", "= true"), "allowed is a number, .*found True", 0),
    "unknown status": (CORES, CORES.replace("published", "believed"), "limits.cores_per_chip.status: .*'published'", 0),
    "unknown with value": (CORES, CORES.replace("published", "unknown"), "a number without value has status", 0),
    "known without value": (CORES, CORES.replace("value = 4, ", ""), "a number without value has status", 0),
    "foreign key": (CORES, CORES.replace("status", "color = 3, status"), "limits.cores_per_chip.color: unknown key", 0),
    "unknown node": ('nodes = ["Linear", "LIF"]', 'nodes = ["Linear", "LIV"]', "support: node 'LIV' is unknown", -1),
    "unknown reset": ('resets = ["value"]', 'resets = ["zero"]', "support.resets.0: .*found 'zero'", 0),
    "unknown route": ('route = "nir"', 'route = "usb"', "route: .*'budget only', found 'usb'", 0),
    "all-in": ('scope = "per_term"', 'scope = "all_in"\nspike_pj = { value = 1, unit = "pJ", '
               'source = "sheet", status = "code" }', "energy.sheet: an all_in set has the price sop_pj", -1),
    "power": ('scope = "per_term"', 'scope = "power"', "energy.sheet: a power set has no sop_pj", -1),
    "no access": ('access = "primary"', "", "sources.sheet.access: Field required", -2),
}  # fmt: skip  # one case a line


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_entry_is_refused_with_file_line_and_key(name: str, mine: Path) -> None:
    old, new, message, shift = WRONG[name]
    mine.write_text(MINE.replace(old, new))
    with pytest.raises(ProfileError, match=rf"mine\.toml:{line(old) + shift}: .*{message}"):
        load_profile(mine)


def test_every_problem_is_listed(mine: Path) -> None:
    mine.write_text(MINE.replace("value = 4", "value = -4").replace('route = "nir"', 'route = "usb"'))
    with pytest.raises(ProfileError, match=r"mine\.toml:5: route.*; .*mine\.toml:\d+: limits\.cores_per_chip"):
        load_profile(mine)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('source = ["sheet", "guess"]', 'source = ["sheet", "hearsay"]', r"source 'hearsay' is not in \[sources\]"),
        ('source = ["sheet", "guess"]', 'source = "sheet"', "sources: 'guess' is named by no entry"),
    ],
)
def test_sources_are_all_there_and_all_used(old: str, new: str, message: str, mine: Path) -> None:
    mine.write_text(MINE.replace(old, new))
    with pytest.raises(ProfileError, match=message):
        load_profile(mine)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match=r"'loihi3' is not installed; allowed are akida1000, .*path to a TOML file"):
        load_profile("loihi3")
    with pytest.raises(ProfileError, match=r"none\.toml: cannot be read"):
        load_profile(tmp_path / "none.toml")
    (tmp_path / "sheet.txt").write_text("")
    with pytest.raises(ProfileError, match=r"sheet\.txt: is no \.toml file; name a TOML profile, or a chip: akida1000"):
        load_profile(tmp_path / "sheet.txt")
    (tmp_path / "odd.toml").write_text("= 3")
    with pytest.raises(ProfileError, match=r"odd\.toml: not TOML"):
        load_profile(tmp_path / "odd.toml")


def test_the_published_schema_is_that_of_the_code() -> None:
    """Made by: slamp profiles --schema > hw_profiles/profile.schema.json"""
    path = Path(str(hw_profiles.__file__)).with_name("profile.schema.json")
    assert json.loads(path.read_text()) == profile_schema()
