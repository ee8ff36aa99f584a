from .concept_attribution import ConceptGradients as ConceptGradients
from .logit_effect import (
    Clusters as Clusters,
    LogitEffect as LogitEffect,
)
from .result import EffectResult as EffectResult
