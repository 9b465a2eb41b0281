"""Item-id embeddings behind one contract: int64 hashes in, vectors out, zeros for hash 0 (`base.IdEmbedding`)."""

from recgpt.nn.ids.base import IdEmbedding, MakeFeature
from recgpt.nn.ids.config import IdEmbeddingConfig
from recgpt.nn.ids.factorized import FactorizedEmbedding
from recgpt.nn.ids.full import FullEmbedding
from recgpt.nn.ids.hashed import HashEmbedding, WeightedHashEmbedding
from recgpt.nn.ids.kshift import KShiftEmbedding
from recgpt.nn.ids.quotient import QuotientRemainderEmbedding
from recgpt.nn.ids.robe import RobeEmbedding
from recgpt.nn.ids.unified import UnifiedEmbedding

ID_EMBEDDINGS: dict[str, type[IdEmbedding]] = {
    "hash": HashEmbedding,
    "full": FullEmbedding,
    "weighted_hash": WeightedHashEmbedding,
    "factorized": FactorizedEmbedding,
    "qr": QuotientRemainderEmbedding,
    "robe": RobeEmbedding,
    "kshift": KShiftEmbedding,
    "unified": UnifiedEmbedding,
}

__all__ = ["ID_EMBEDDINGS", "FullEmbedding", "HashEmbedding", "IdEmbedding", "IdEmbeddingConfig", "MakeFeature"]
