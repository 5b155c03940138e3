"""The sources of a Hugging Face folder's own classes; `ssa.pretrained.remote_code` puts them in one."""
