"""What a trained model can do: tasks, each with its numbers, their uncertainty, and what decided them."""
