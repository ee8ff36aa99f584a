from .concept_sets import (
    Concept as Concept,
    random_sets as random_sets,
)
from .manifest import Manifest as Manifest
from .synthetic import SyntheticImages as SyntheticImages
