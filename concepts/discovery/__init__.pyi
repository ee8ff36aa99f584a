from .code_maps import AtomCodes as AtomCodes
from .dictionary import Dictionary as Dictionary
from .discovery import Discovery as Discovery
from .learners import (
    KMeans as KMeans,
    Nmf as Nmf,
    Pca as Pca,
    SemiNmf as SemiNmf,
)
from .naming import (
    Strengths as Strengths,
    name_atoms as name_atoms,
)
from .relevance import (
    AtomPart as AtomPart,
    RestPart as RestPart,
    atom_relevance as atom_relevance,
)
from .result import DiscoveryResult as DiscoveryResult
from .rows import (
    LayerRows as LayerRows,
    read_rows as read_rows,
)
from .slices import (
    Slices as Slices,
    SlicesResult as SlicesResult,
)
from .sparse_autoencoder import TopKAutoencoder as TopKAutoencoder
