"""WHEN: the program that publishes what is due."""
