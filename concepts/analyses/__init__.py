"""What an audit may look at besides swaps and TCAV; `ANALYSES` lists it by the names that an audit file takes."""

from concepts.analyses.base import Analysis
from concepts.analyses.compare import HeatMaps
from concepts.analyses.dreams import Dreams
from concepts.analyses.probes import Probes

ANALYSES: dict[str, Analysis] = {"probes": Probes(), "heat_maps": HeatMaps(), "dreams": Dreams()}
