"""Stage 3: HTTP over a finished run: events come in, recommendations and ranks go out."""

import sys

from recgpt.stages import CallableStage

# The package and the stage's function share a name: `load_stage("serve")(run)` must run the stage.
sys.modules[__name__].__class__ = CallableStage
