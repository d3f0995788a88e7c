"""The stages of the pipeline, each a program: ``python -m stages.<stage> [policy]``."""

import signal
import sys

if sys.argv[0] == "-m":  # one is started as a program: Ctrl-C ends its imports, which take seconds, without a trace
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from policy_export.stage.command import begin

begin()
