"""Temperatures in any causal language model of transformers: adapt, train, save and load.

`ssa.adapt` and the other functions are also attributes of `ssa`.  See docs/adapter.md.
"""
