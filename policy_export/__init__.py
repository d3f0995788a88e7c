"""From a TorchRL policy to programs that decide as it does."""

import os

# What has started this process, asked before anything is imported that takes seconds, in which it may end.
STARTER = os.getppid()
