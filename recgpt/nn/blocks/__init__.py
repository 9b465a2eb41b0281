"""The transformer's layers, by the name of `model.block`: one contract, `Block`."""

from recgpt.nn.blocks.base import Block, Frame, KeyValue
from recgpt.nn.blocks.bert import BertBlock
from recgpt.nn.blocks.config import TransformerConfig
from recgpt.nn.blocks.hstu import HstuBlock
from recgpt.nn.blocks.ligr import LigrBlock
from recgpt.nn.blocks.sasrec import SasrecBlock
from recgpt.nn.blocks.standard import StandardBlock

BLOCKS: dict[str, type[Block]] = {
    "bert": BertBlock,
    "hstu": HstuBlock,
    "ligr": LigrBlock,
    "sasrec": SasrecBlock,
    "standard": StandardBlock,
}
"""Classes by name: `(config, length)`."""

__all__ = ["BLOCKS", "Block", "Frame", "KeyValue", "TransformerConfig"]
