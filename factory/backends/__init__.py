"""Named sources of samples and of embeddings, each made of the floors below."""
