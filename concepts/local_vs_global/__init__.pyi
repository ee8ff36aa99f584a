from .compare import Compare as Compare
from .matched_pairs import MatchedConcept as MatchedConcept
from .result import Comparison as Comparison
