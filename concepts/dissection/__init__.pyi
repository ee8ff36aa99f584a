from .ablation import Ablation as Ablation
from .dissection import Dissection as Dissection
from .protocols import Protocol as Protocol
from .result import DissectionResult as DissectionResult
from .unit_contrasts import UnitContrasts as UnitContrasts
