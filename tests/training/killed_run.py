"""Train a config, and send this process a signal when it enters a hook after a number of steps.

Arguments: the config as JSON, the signal, the step, the hook of the `LanguageModule`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any

from ssa.config import parse
from ssa.training.lit_module import LanguageModule
from ssa.training.train import train


def main(config: str, number: str, step: str, hook: str) -> None:
    before = getattr(LanguageModule, hook)

    def hooked(self: LanguageModule, *arguments: Any, **named: Any) -> Any:
        if self.step == int(step):
            setattr(LanguageModule, hook, before)
            os.kill(os.getpid(), getattr(signal, number))
        return before(self, *arguments, **named)

    setattr(LanguageModule, hook, hooked)
    train(parse(json.loads(config)))


if __name__ == "__main__":
    main(*sys.argv[1:])
