"""Recommenders that are counted, not trained: baselines and fallbacks."""

from recgpt.retrieval.base import Block, Recommender, make_block
from recgpt.retrieval.item_knn import ItemKNN
from recgpt.retrieval.markov import Markov
from recgpt.retrieval.popularity import Popularity

RECOMMENDERS: dict[str, type[Recommender]] = {
    Popularity.name: Popularity,
    ItemKNN.name: ItemKNN,
    Markov.name: Markov,
}

__all__ = ["RECOMMENDERS", "Block", "ItemKNN", "Markov", "Popularity", "Recommender", "make_block"]
