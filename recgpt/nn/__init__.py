"""Layers: embeddings of ids, content, context and time; attention; transformer blocks."""
