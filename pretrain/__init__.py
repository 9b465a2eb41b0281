"""Stage 1: next-item pretraining, from a config and a prepared log to a finished run."""

import sys

from recgpt.stages import CallableStage

# The package and the public function share a name: `recgpt.pretrain(config)` must run the stage.
sys.modules[__name__].__class__ = CallableStage
