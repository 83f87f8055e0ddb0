"""A bare FastAPI app, what an API costs at least: one JSON object, nobody signed in, no database."""

import sys

import uvicorn
from fastapi import FastAPI

api = FastAPI()
AGENT = {
    "id": 1,
    "name": "bench-agent",
    "description": "An agent that is read again and again.",
    "agent_type": "simulation",
    "status": "pending",
    "config": {"algorithm": "PPO", "environment": "CartPole-v1", "max_steps": 500, "seed": 42},
    "resource_requirements": {"cpu": "2", "memory": "4Gi", "gpu": 0, "storage": "10Gi"},
    "budget_limit": 100.0,
    "budget_used": 0.0,
    "version": "1.0.0",
    "owner_id": "bench",
    "created_at": "2026-01-01T00:00:00Z",
    "updated_at": "2026-01-01T00:00:00Z",
}


@api.get("/agents/{number}")
async def agent(number: int) -> dict[str, object]:
    return {**AGENT, "id": number}


if __name__ == "__main__":
    uvicorn.run(api, port=int(sys.argv[1]), log_level="warning", access_log=False, server_header=False)
