"""Stage 2: ranking heads on impressions, from a pretrained run or from scratch."""

import sys

from recgpt.stages import CallableStage

# The package and the public function share a name: `recgpt.finetune(config)` must run the stage.
sys.modules[__name__].__class__ = CallableStage
