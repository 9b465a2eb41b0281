"""Losses: the next-item contrastive loss and its corrections."""
