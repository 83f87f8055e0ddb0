# Ollama as somebody else than root: its own image keeps models under /root.
FROM ollama/ollama:0.12.6
# a volume put here is the user's own
RUN mkdir -m 700 /models && chown 1000:1000 /models
ENV OLLAMA_MODELS=/models HOME=/tmp
USER 1000:1000
