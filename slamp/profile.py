"""Hardware profiles: a chip as data. Every number has a value, a unit, a source and a status; what is unknown stays so.

A profile is one TOML file. Those of this distribution are found by the entry points of the group "slamp.profiles",
each of which names a package that holds TOML files, so that other distributions can add theirs.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    ValidationError,
    model_validator,
)

from slamp.errors import ProfileError
from slamp.nodes import NODE_TYPES
from slamp.toml_lines import line_of

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from slamp.budget import Budget

GROUP = "slamp.profiles"
Route = Literal["lava", "nir", "onnx", "budget only"]
Status = Literal["published", "measured", "simulated", "fitted", "code", "derived", "vendor", "assumed", "unknown"]
# Statuses a table marks with a star: nobody showed how these numbers came about.
STARRED: tuple[Status, ...] = ("vendor", "assumed")
MappingRule = Literal["contiguous", "one layer per core", "neurons per core", "single core", "crossbar", "unknown"]
Scope = Literal["per_term", "all_in", "power"]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _one_or_more(value: object) -> object:
    return (value,) if isinstance(value, str) else value


def _number_or_numbers(value: object) -> object:
    parts = value if isinstance(value, (list, tuple)) and value else [value]
    if any(isinstance(part, bool) or not isinstance(part, (int, float)) for part in parts if part is not None):
        raise ValueError(f"allowed is a number, or a list of numbers, found {value!r:.60}")
    return value


Sources = Annotated[tuple[str, ...], BeforeValidator(_one_or_more)]
Value = Annotated[int | float | tuple[int | float, ...] | None, BeforeValidator(_number_or_numbers)]


class Figure(_Table):
    """One number of a chip.

    Attributes:
        value: The number, or one per core where cores differ; absent if and only if the status is "unknown".
        unit: Unit of the value; each key of a profile allows one.
        source: Names of entries in the profile's table of sources.
        status: How the number came about. "published": stated by the designers in a peer-reviewed or official text;
            "measured": on silicon, by the authors of the source; "simulated": before silicon; "fitted": a regression on
            measurements; "code": read in a shipped tool; "derived": computed from other figures; "vendor": a page or
            datasheet without method; "assumed": ours; "unknown": looked for and not found.
        note: What a reader must know to use it.
    """

    value: Value = None
    unit: str
    source: Sources = ()
    status: Status
    note: str = ""

    @model_validator(mode="after")
    def _complete(self) -> Figure:
        if (self.value is None) != (self.status == "unknown"):
            raise ValueError("a number without value has status 'unknown', and only such a one")
        if self.value is not None and not self.source:
            raise ValueError("source is missing; name an entry of [sources]")
        return self

    @property
    def starred(self) -> bool:
        """True for vendor and assumed numbers."""
        return self.status in STARRED

    @property
    def number(self) -> float:
        """The value, which must be one number."""
        assert isinstance(self.value, (int, float))
        return float(self.value)


def _in(unit: str, *, least: float = 0, whole: bool = False) -> Any:
    """Annotation of a figure with one allowed unit, a least value, and whole numbers only if asked."""

    def check(figure: Figure | None) -> Figure | None:
        if figure is None:
            return None
        if figure.unit != unit:
            raise ValueError(f"unit is {figure.unit!r}, allowed is {unit!r}")
        values = figure.value if isinstance(figure.value, tuple) else (figure.value,)
        if any(value is not None and value < least for value in values):
            raise ValueError(f"value is {figure.value}, allowed is {least:g} or more")
        if whole and any(value is not None and value != int(value) for value in values):
            raise ValueError(f"value is {figure.value}, allowed are whole numbers")
        return figure

    return AfterValidator(check)


class Limits(_Table):
    """Capacities of a chip; an absent key is not modeled, an unknown one says so."""

    cores_per_chip: Annotated[Figure | None, _in("cores", least=1, whole=True)] = None
    neurons_per_core: Annotated[Figure | None, _in("neurons", least=1, whole=True)] = None
    neurons_per_chip: Annotated[Figure | None, _in("neurons")] = None
    synapses_per_core: Annotated[Figure | None, _in("synapses", least=1, whole=True)] = None
    synapses_per_chip: Annotated[Figure | None, _in("synapses")] = None
    synapse_bits_per_core: Annotated[Figure | None, _in("bits", least=1, whole=True)] = None
    axons_in_per_core: Annotated[Figure | None, _in("axons", least=1, whole=True)] = None
    axons_out_per_core: Annotated[Figure | None, _in("axons", least=1, whole=True)] = None
    synapse_formats_per_core: Annotated[Figure | None, _in("formats", least=1, whole=True)] = None
    fan_in: Annotated[Figure | None, _in("synapses", least=1, whole=True)] = None
    fan_out: Annotated[Figure | None, _in("synapses", least=1, whole=True)] = None
    fan_out_mean: Annotated[Figure | None, _in("synapses")] = None
    input_channels: Annotated[Figure | None, _in("channels")] = None
    output_neurons: Annotated[Figure | None, _in("neurons")] = None
    kernel_words_of_core: Annotated[Figure | None, _in("words")] = None
    neuron_words_of_core: Annotated[Figure | None, _in("words")] = None
    bias_words_per_core: Annotated[Figure | None, _in("words")] = None
    input_side: Annotated[Figure | None, _in("pixels")] = None
    feature_map_side: Annotated[Figure | None, _in("pixels")] = None
    feature_map_channels: Annotated[Figure | None, _in("channels")] = None
    kernel_side: Annotated[Figure | None, _in("pixels")] = None
    destinations_per_core: Annotated[Figure | None, _in("cores")] = None
    memory_bytes_per_core: Annotated[Figure | None, _in("bytes")] = None
    memory_bytes_per_chip: Annotated[Figure | None, _in("bytes")] = None


class Formats(_Table):
    """Numeric formats."""

    weight_bits: Annotated[Figure | None, _in("bits", least=1)] = None
    weight_exponent_min: Annotated[Figure | None, _in("powers of two", least=-64)] = None
    weight_exponent_max: Annotated[Figure | None, _in("powers of two", least=-64)] = None
    state_bits: Annotated[Figure | None, _in("bits", least=1)] = None
    threshold_bits: Annotated[Figure | None, _in("bits", least=1)] = None
    decay_bits: Annotated[Figure | None, _in("bits", least=1)] = None
    bias_bits: Annotated[Figure | None, _in("bits", least=1)] = None
    payload_bits: Annotated[Figure | None, _in("bits")] = None
    delay_steps: Annotated[Figure | None, _in("steps")] = None


class Encoding(_Table):
    """One way in which a chip stores the synapses of a layer.

    Attributes:
        rule: Name of the equation, implemented in Python; what cannot be data is a named rule.
        layers: Which layers it can hold.
        parameters: Numbers of the rule.
        source, status, note: Of the rule itself, as for a figure.
    """

    rule: str
    layers: Literal["all", "linear", "convolution"] = "all"
    parameters: Mapping[str, Figure] = Field(default_factory=dict)
    source: Sources
    status: Status
    note: str = ""


class Support(_Table):
    """What the chip can run at all, in names of graph nodes; requirements that are no node stand as sentences."""

    nodes: tuple[str, ...]
    resets: tuple[Literal["value", "subtract"], ...]
    requires: tuple[str, ...] = ()
    source: Sources

    @model_validator(mode="after")
    def _known(self) -> Support:
        if unknown := sorted(set(self.nodes) - set(NODE_TYPES)):
            raise ValueError(f"node {unknown[0]!r} is unknown, allowed are {', '.join(NODE_TYPES)}")
        return self


class Placement(_Table):
    """How layers are placed on cores."""

    rule: MappingRule
    source: Sources
    note: str = ""


class Sparsity(_Table):
    """Whether single zeros save anything on the chip, and what to remove where they do not."""

    unstructured: StrictBool
    reason: str
    source: Sources


class Energy(_Table):
    """One set of prices. Sets are never mixed: an "all_in" price of a SOP already holds what others charge apart.

    Attributes:
        scope: "per_term": every event has its price; "all_in": the price of a SOP covers everything; "power": watts.
        note: Operating point and caveats.
    """

    scope: Scope
    sop_pj: Annotated[Figure | None, _in("pJ")] = None
    neuron_active_pj: Annotated[Figure | None, _in("pJ")] = None
    neuron_inactive_pj: Annotated[Figure | None, _in("pJ")] = None
    spike_pj: Annotated[Figure | None, _in("pJ")] = None
    hop_pj: Annotated[Figure | None, _in("pJ")] = None
    packet_pj: Annotated[Figure | None, _in("pJ")] = None
    mac_pj: Annotated[Figure | None, _in("pJ")] = None
    chip_idle_mw: Annotated[Figure | None, _in("mW")] = None
    core_active_mw: Annotated[Figure | None, _in("mW")] = None
    step_us: Annotated[Figure | None, _in("us")] = None
    sop_ns: Annotated[Figure | None, _in("ns")] = None
    neuron_ns: Annotated[Figure | None, _in("ns")] = None
    note: str = ""

    @model_validator(mode="after")
    def _one_scope(self) -> Energy:
        priced = {name for name in type(self).model_fields if name.endswith("_pj") and getattr(self, name) is not None}
        if self.scope == "all_in" and priced != {"sop_pj"}:
            raise ValueError(f"an all_in set has the price sop_pj and no other, found {', '.join(sorted(priced))}")
        if self.scope == "power" and "sop_pj" in priced:
            raise ValueError("a power set has no sop_pj; energy follows from watts and time")
        return self


class Source(_Table):
    """Where numbers come from. ``access``: whether the text itself was read, or one that quotes it."""

    cite: str
    access: Literal["primary", "secondary"]


class Profile(_Table):
    """A chip.

    Attributes:
        schema_version: Version of this format.
        name: Short name, as in `load_profile`.
        title: Full name.
        revision: Date of the facts, as YYYY-MM.
        route: How a network gets there: exported by "lava", "nir" or "onnx", or not at all ("budget only").
        dialect: For route "nir": whose reading of NIR the file must follow.
        notes: What to know about the chip as a whole.
    """

    schema_version: Literal[1]
    name: str = Field(pattern=r"^[a-z0-9_]+$")
    title: str
    revision: str = Field(pattern=r"^\d{4}-\d{2}$")
    route: Route
    dialect: str = ""
    notes: tuple[str, ...] = ()
    support: Support
    mapping: Placement
    sparsity: Sparsity
    limits: Limits
    formats: Formats
    encodings: Mapping[str, Encoding] = Field(default_factory=dict)
    energy: Mapping[str, Energy] = Field(default_factory=dict)
    sources: Mapping[str, Source]

    @model_validator(mode="after")
    def _sources_known(self) -> Profile:
        used: set[str] = set()
        for where, names in self._named_sources():
            used |= set(names)
            if unknown := sorted(set(names) - set(self.sources)):
                raise ValueError(f"{where}: source {unknown[0]!r} is not in [sources]")
        if idle := sorted(set(self.sources) - used):
            raise ValueError(f"sources: {idle[0]!r} is named by no entry; drop it, or name it where it is used")
        return self

    def budget(self, *, energy_set: str = "", **limits: float) -> Budget:
        """Return a budget for this chip, such as ``profile.budget(memory_bits=1e6, sops=2e5)``; see `slamp.Budget`."""
        from slamp.budget import Budget  # which knows profiles itself

        return Budget(**limits, profile=self, energy_set=energy_set)

    def figures(self) -> Iterator[tuple[str, Figure]]:
        """Yield (dotted key, figure) for every number."""
        yield from _figures("", self)

    def _named_sources(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        for part in ("support", "mapping", "sparsity"):
            yield part, getattr(self, part).source
        for name, encoding in self.encodings.items():
            yield f"encodings.{name}", encoding.source
        for where, figure in self.figures():
            yield where, figure.source


T = TypeVar("T")


def _figures(path: str, value: object) -> Iterator[tuple[str, Figure]]:
    if isinstance(value, Figure):
        yield path, value
        return
    items: Iterator[tuple[str, object]] = iter(())
    if isinstance(value, BaseModel):
        items = ((name, getattr(value, name)) for name in type(value).model_fields)
    elif isinstance(value, Mapping):
        items = ((str(name), entry) for name, entry in value.items())
    for name, entry in items:
        yield from _figures(f"{path}.{name}".lstrip("."), entry)


def installed_profiles() -> dict[str, Path]:
    """Return the TOML file of every installed profile by name."""
    found: dict[str, Path] = {}
    for entry in entry_points(group=GROUP):
        spec = importlib.util.find_spec(entry.value)
        for place in (spec.submodule_search_locations if spec else None) or ():
            found |= {path.stem: path for path in sorted(Path(place).glob("*.toml"))}
    return dict(sorted(found.items()))


def profile_schema() -> dict[str, Any]:
    """Return the JSON schema of a profile, which editors use to complete and check TOML files."""
    schema = Profile.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def load_profile(profile: str | Path) -> Profile:
    """Return the profile of that name, or the one in a TOML file of the user's own.

    Raises:
        ProfileError: There is none, or the file has an unknown, missing or wrong entry; the message names file, line
            and key of each.
    """
    path = Path(profile)
    if path.suffix != ".toml" and path.exists():
        raise ProfileError(
            f"{path}: is no .toml file; name a TOML profile, or a chip: {', '.join(installed_profiles())}"
        )
    if path.suffix != ".toml":
        known = installed_profiles()
        if str(profile) not in known:
            raise ProfileError(
                f"profile: {str(profile)!r} is not installed; allowed are {', '.join(known)}, or a path to a TOML file"
            )
        path = known[str(profile)]
    try:
        text = path.read_text(encoding="utf-8")
        content = tomllib.loads(text)
    except OSError as error:
        raise ProfileError(f"{path}: cannot be read ({error.strerror}); name a TOML profile") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ProfileError(f"{path}: not TOML: {error}") from error
    try:
        return Profile.model_validate(content)
    except ValidationError as error:
        problems = [_said(path, text, problem) for problem in error.errors()]
        raise ProfileError("; ".join(problems)) from error


def _said(path: Path, text: str, problem: Any) -> str:
    keys = [str(key) for key in problem["loc"]]
    found = "" if problem["type"] in ("missing", "value_error") else f", found {problem['input']!r:.60}"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        message, found = "unknown key", ""
    return f"{path}:{line_of(text, keys)}: {'.'.join(keys) or 'profile'}: {message}{found}"
