"""HOW MUCH: the program that runs tasks inside its node's memory."""
