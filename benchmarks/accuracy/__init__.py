"""Test accuracy of the shipped configs and their variants beside what others published and what peers reach here."""
