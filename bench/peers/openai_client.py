"""Asks a server at argv[1] as openai's own client does and prints what came, as JSON.

The model is argv[2]; its context is argv[3] tokens at most."""
import json
import sys

import openai

url, model, context = sys.argv[1], sys.argv[2], int(sys.argv[3])
client = openai.OpenAI(base_url=url + "/v1", api_key="none", max_retries=0)
out = {"models": [m.id for m in client.models.list()], "model": client.models.retrieve(model).id}

ask = dict(model=model, seed=7, max_tokens=12, extra_body={"ignore_eos": True})
whole = client.completions.create(prompt="the fox", logprobs=2, **ask)
out["completion"] = whole.choices[0].text
out["finish"] = whole.choices[0].finish_reason
out["usage"] = whole.usage.model_dump()
out["streamed"] = "".join(c.choices[0].text for c in client.completions.create(prompt="the fox", stream=True, **ask))

messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "the fox"}]
chat = client.chat.completions.create(messages=messages, n=2, logprobs=True, top_logprobs=2, **ask)
out["chat"] = [c.message.content for c in chat.choices]
out["logprobs"] = [len(c.logprobs.content) for c in chat.choices]
streamed = ["", ""]
with client.chat.completions.create(messages=messages, n=2, stream=True, stream_options={"include_usage": True}, **ask) as stream:
    for chunk in stream:
        for c in chunk.choices:
            streamed[c.index] += c.delta.content or ""
        if chunk.usage:
            out["chat_usage"] = chunk.usage.model_dump()
out["chat_streamed"] = streamed

schema = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 5}, "age": {"type": "integer"}, "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2}},
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
try:
    shaped = client.chat.completions.create(
        messages=messages, seed=3, model=model, response_format={"type": "json_schema", "json_schema": {"name": "person", "schema": schema, "strict": True}}
    )
    out["shaped"] = {"text": shaped.choices[0].message.content, "finish": shaped.choices[0].finish_reason}
except openai.APIError as e:
    out["shaped"] = {"error": str(e)}

errors = {}
for name, call in {
    "long": lambda: client.completions.create(model=model, prompt="x" * 5 * context),
    "model": lambda: client.completions.create(model="none", prompt="x"),
    "field": lambda: client.completions.create(model=model, prompt="x", extra_body={"temprature": 1}),
    "tools": lambda: client.chat.completions.create(model=model, messages=messages, tools=[{"type": "function", "function": {"name": "f"}}]),
}.items():
    try:
        call()
        errors[name] = "none"
    except openai.APIStatusError as e:
        errors[name] = f"{e.status_code} {e.code} {e.param}"
out["errors"] = errors
json.dump(out, sys.stdout)
