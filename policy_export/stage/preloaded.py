"""What most processes of a stage import, imported once for all of them.

Nothing is computed here: PyTorch's threads, and its use of a GPU, would not survive the copy.
"""

from __future__ import annotations

from policy_export.stage.quiet import drop_remarks

drop_remarks()

import tensordict.nn  # noqa: E402, F401
import torch.export  # noqa: E402, F401
import torchrl.envs  # noqa: E402
import torchrl.modules  # noqa: E402, F401
