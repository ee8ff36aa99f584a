from .dictionary import Dictionary as Dictionary
from .learners import (
    KMeans as KMeans,
    Nmf as Nmf,
    Pca as Pca,
    SemiNmf as SemiNmf,
)
from .rows import (
    LayerRows as LayerRows,
    read_rows as read_rows,
)
from .sparse_autoencoder import TopKAutoencoder as TopKAutoencoder
