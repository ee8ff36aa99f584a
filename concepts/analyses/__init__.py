"""What an audit may look at besides swaps and TCAV; `ANALYSES` lists it by the names that an audit file takes."""

from concepts.analyses.atlas import Atlases
from concepts.analyses.base import Analysis
from concepts.analyses.compare import HeatMaps
from concepts.analyses.dissection import Units
from concepts.analyses.dreams import Dreams
from concepts.analyses.probes import Probes
from concepts.effects.concept_attribution import DirectionError
from probing.models.geometry import RefusedError
from probing.statistics.hypothesis_tests import TooFewError

ANALYSES: dict[str, Analysis] = {
    "probes": Probes(),
    "dissection": Units(),
    "atlas": Atlases(),
    "heat_maps": HeatMaps(),
    "dreams": Dreams(),
}

NOT_ADMITTED = (DirectionError, TooFewError, RefusedError)
"""What an analysis raises where data or model do not admit it: it is left out then, and the audit says why."""
