"""What an audit may look at besides swaps and TCAV; `ANALYSES` lists it by the names that an audit file takes."""

from concepts.auditing.analyses.atlas import Atlases
from concepts.auditing.analyses.base import Analysis
from concepts.auditing.analyses.discovery import Atoms
from concepts.auditing.analyses.dissection import Units
from concepts.auditing.analyses.dreams import Dreams
from concepts.auditing.analyses.heat_maps import HeatMaps
from concepts.auditing.analyses.probes import Probes
from concepts.auditing.analyses.read_used_moved import Use
from concepts.discovery.dictionary import DictionaryError
from concepts.discovery.result import DiscoveryError
from concepts.effects.concept_attribution import DirectionError
from concepts.erasure.eraser import ErasureError
from concepts.local_vs_global.matched_pairs import ComparisonError
from probing.models.geometry import RefusedError
from probing.statistics.hypothesis_tests import TooFewError

ANALYSES: dict[str, Analysis] = {
    "probes": Probes(),
    "read_used_moved": Use(),
    "dissection": Units(),
    "atlas": Atlases(),
    "discovery": Atoms(),
    "heat_maps": HeatMaps(),
    "dreams": Dreams(),
}

NOT_ADMITTED = (
    DirectionError,
    TooFewError,
    RefusedError,
    DictionaryError,
    DiscoveryError,
    ErasureError,
    ComparisonError,
)
"""What an analysis raises where data or model do not admit it: it is left out then, and the audit says why."""
