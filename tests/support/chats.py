"""What is asked of the demo model server, and how its answers are read."""

import json

from support.model_server import CHAT_MODEL

SLOW, ENDING = "slow:latest", "ending:latest"


def chat(content="hello", *, model=CHAT_MODEL, stream=False, options=None, **fields):
    return {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "stream": stream,
        "options": {"num_predict": 12, "seed": 1} if options is None else options,
        **fields,
    }


def parts(response):
    assert response.status_code == 200, response.text
    return [json.loads(line) for line in response.iter_lines()]


def text_of(answer):
    return answer["message"]["content"]
