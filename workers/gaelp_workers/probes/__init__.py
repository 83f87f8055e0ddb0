"""What can be asked about a node's memory. Each probe says what it sees, or None where it does not apply."""
