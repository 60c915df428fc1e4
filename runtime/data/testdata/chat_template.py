"""Renders a chat template with transformers' own Jinja environment."""
import json
import sys

from transformers.utils.chat_template_utils import render_jinja_template

d = json.load(sys.stdin)
out = []
for generate in (False, True):
    r, _ = render_jinja_template(
        conversations=[d["messages"]], chat_template=d["template"], add_generation_prompt=generate, bos_token=d["bos"], eos_token=d["eos"]
    )
    out.append(r[0])
print(json.dumps(out))
