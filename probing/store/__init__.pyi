from .fill import Fill as Fill
from .launchers import (
    Local as Local,
    RayActors as RayActors,
    SlurmArray as SlurmArray,
    Torchrun as Torchrun,
)
from .requests import (
    Estimate as Estimate,
    Request as Request,
    Rows as Rows,
    StoreStats as StoreStats,
)
from .shards import (
    cache_info as cache_info,
    clear_cache as clear_cache,
)
from .store import ActivationStore as ActivationStore
from .verify import verify_cache as verify_cache
