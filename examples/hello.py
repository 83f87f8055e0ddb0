"""The first thing to try: `make up` in one shell, this in another."""

from gaelp_tasks import embed, invoke_agent

answer = invoke_agent.delay("Why is the sky blue? Answer in one sentence.", tier="interactive")
for piece in answer.stream():
    print(piece, end="", flush=True)
print()
print("tokens:", answer.get(timeout=60)["usage"]["completion_tokens"])

title = invoke_agent.apply_async(
    ["Give this text a title of five words: Honey bees do not sleep through the winter."],
    {"tier": "batch", "priority": 8, "options": {"num_predict": 20}},
)
print("title:", title.get(timeout=120)["text"])

print("dimensions:", len(embed.delay(["a cat", "a dog"]).get(timeout=60)["embeddings"][0]))
