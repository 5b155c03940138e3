"""The paper's theory on toy problems: single attention maps on tasks whose optimum is known."""
