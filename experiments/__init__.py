"""The paper's tables and figures, one folder each; `python -m experiments` lists them."""

import ssa.command_line  # noqa: F401 (Ctrl-C during imports is one line)
