"""What runs inside the container `producer`: submits in all three tiers, and tells every answer in JSON.

python -c "$(cat submit.py)" QUESTIONS_A_TIER TOKENS
"""

import json
import sys

from gaelp_tasks import invoke_agent
from gaelp_tasks.models.invocation import Tier

many, tokens = map(int, sys.argv[1:])
published = [
    (
        f"{tier.value} question {number:04d}",
        invoke_agent.apply_async(
            (f"{tier.value} question {number:04d}",), {"tier": tier.value, "options": {"num_predict": tokens}}
        ),
    )
    for number in range(many)
    for tier in Tier
]
told = []
for question, handle in published:
    try:
        answer = handle.get(timeout=600)
        told.append(
            {"question": question, "text": answer["text"], "tier": answer["tier"], "node": answer["node"]}
        )
    except Exception as error:  # noqa: BLE001  what became of it is for the judge
        told.append({"question": question, "error": f"{type(error).__name__}: {error}"})
json.dump(told, sys.stdout)
