"""Front doors: a dialect in, an Order; a Task, a dialect out. None of them knows a provider."""
