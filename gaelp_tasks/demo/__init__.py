"""What `make demo` needs on a machine with nothing on it: a small model, its server, and their files."""
