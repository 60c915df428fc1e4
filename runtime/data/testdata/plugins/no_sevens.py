"""A cleaning step: drops rows with a seven in them, leaves the others."""
import json
import sys

sys.stdin.readline()  # the hello line of autoglm
print(json.dumps({"autoglm_plugin": 1, "role": "clean", "name": "no-sevens", "version": "1"}), flush=True)
n = 0
for line in sys.stdin:
    m = json.loads(line)
    n += 1
    if "7" in m["record"].get("text", ""):
        print(json.dumps({"seq": m["seq"], "drop": "has a seven"}), flush=True)
    else:
        print(json.dumps({"seq": m["seq"], "keep": True}), flush=True)
print(json.dumps({"end": {"count": n}}), flush=True)
