"""The paper's theory in small: attention maps by themselves, on tasks whose best answer is known."""
