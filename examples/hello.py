"""The first thing to try: `make up` in one shell, this in another."""

from gaelp_tasks import embed, invoke_agent

answer = invoke_agent.delay("Why is the sky blue? Answer in one sentence.", tier="interactive")
for piece in answer.stream():
    print(piece, end="", flush=True)
print("\n", answer.get(timeout=60)["usage"])

summary = invoke_agent.apply_async(
    ["Summarise: Redis keeps queues in lists."], {"tier": "batch", "priority": 8}
)
print(summary.get(timeout=120)["text"])

print(len(embed.delay(["a cat", "a dog"]).get(timeout=60)["embeddings"][0]), "dimensions")
