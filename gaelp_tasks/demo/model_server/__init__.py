"""A small stand-in for Ollama: its REST API in front of llama.cpp, for machines on which no Ollama runs."""
