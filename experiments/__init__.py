"""The paper's tables and figures, one folder each; `python -m experiments` lists them."""
