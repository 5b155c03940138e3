"""Classes shipped with exported models; see `ssa.pretrained.remote_code`."""
