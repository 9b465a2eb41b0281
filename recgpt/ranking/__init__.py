"""What reads a user state for a candidate: behaviour attention, and the towers that give outcome probabilities."""
