"""A LiteLLM router over the live workers of a registry: each line of its input is a prompt for a model.

Try it with `echo 'Hello' | python examples/litellm_router.py http://127.0.0.1:8081 my/model`. Workers speak
OpenAI's API, as vLLM does. A node that is drained, cordoned or gone gets no more requests soon after; without
any a prompt waits.
Needs `pip install 'gpu-agent[client]' litellm`; without internet, LITELLM_LOCAL_MODEL_COST_MAP=True.
"""

import asyncio
import os
import sys
from collections.abc import Sequence

from litellm import Router
from openai import OpenAIError

from gpu_agent.client import EndpointView, RegistryClient


def deployments(model: str, workers: Sequence[EndpointView]) -> list[dict[str, object]]:
    """Describe the workers as LiteLLM reads them; a worker with more free slots gets more requests."""
    return [
        {
            "model_name": model,
            "litellm_params": {
                "model": f"openai/{model}",
                "api_base": f"{worker.endpoint.rstrip('/')}/v1",
                "api_key": os.environ.get("WORKER_API_KEY", "none"),
                "weight": 1 + worker.free_slots,
            },
            "model_info": {"id": worker.node_id},
        }
        for worker in workers
    ]


async def follow_workers(client: RegistryClient, model: str, *, router: Router, ready: asyncio.Event) -> None:
    """Give the router the list of workers, and each change of it."""
    async for workers in client.watch_endpoints(model=model):
        router.set_model_list(deployments(model, workers))
        print(f"{len(workers)} workers serve {model}", file=sys.stderr, flush=True)
        if workers:
            ready.set()
        else:
            ready.clear()


async def main(url: str, model: str) -> None:
    """Answer prompts until the input ends."""
    router, ready = Router(model_list=[], num_retries=3), asyncio.Event()
    token = os.environ.get("GPU_REGISTRY_TOKEN")
    async with RegistryClient(url, token=token, retry_seconds=3600) as client, asyncio.TaskGroup() as tasks:
        following = tasks.create_task(follow_workers(client, model, router=router, ready=ready))
        while line := await asyncio.to_thread(sys.stdin.readline):
            await ready.wait()  # without a worker LiteLLM refuses a prompt
            prompt = {"role": "user", "content": line.strip()}
            try:
                answer = await router.acompletion(model=model, messages=[prompt])
            except OpenAIError as error:  # LiteLLM's errors are all of this kind
                print(f"no answer: {error}", file=sys.stderr, flush=True)
            else:
                print(answer.choices[0].message.content, flush=True)
        following.cancel()


if __name__ == "__main__":
    if not sys.argv[2:]:
        sys.exit("name the registry and a model: python litellm_router.py http://127.0.0.1:8081 MODEL")
    asyncio.run(main(*sys.argv[1:3]))
