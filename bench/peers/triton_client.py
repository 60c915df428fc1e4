"""Asks a gRPC server at argv[1] as Triton's own client does and prints what came, as
JSON. The model is argv[2]."""
import json
import queue
import sys

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

url, model = sys.argv[1], sys.argv[2]
client = triton.InferenceServerClient(url)
out = {"live": client.is_server_live(), "ready": client.is_server_ready(), "model_ready": client.is_model_ready(model), "none_ready": client.is_model_ready("none")}
out["server"] = client.get_server_metadata(as_json=True)["name"]
out["inputs"] = [t["name"] for t in client.get_model_metadata(model, as_json=True)["inputs"]]


def inputs(text, **numbers):
    t = triton.InferInput("text_input", [1], "BYTES")
    t.set_data_from_numpy(np.array([text.encode()], dtype=object))
    all = [t]
    for name, value in numbers.items():
        kind = {int: ("INT32", np.int32), float: ("FP32", np.float32), bool: ("BOOL", bool)}[type(value)]
        n = triton.InferInput(name, [1], kind[0])
        n.set_data_from_numpy(np.array([value], dtype=kind[1]))
        all.append(n)
    return all


ask = dict(max_tokens=12, seed=7, temperature=0.75)
whole = client.infer(model, inputs("the fox", **ask), request_id="r1", parameters={"ignore_eos": True})
out["text"] = whole.as_numpy("text_output")[0].decode()
out["ids"] = whole.as_numpy("output_ids").tolist()
out["finish"] = whole.as_numpy("finish_reason")[0].decode()
out["id"] = whole.get_response().id
one = client.infer(model, inputs("the fox", **ask), outputs=[triton.InferRequestedOutput("text_output")], parameters={"ignore_eos": "true"})
out["again"] = one.as_numpy("text_output")[0].decode()
out["outputs"] = len(one.get_response().outputs)

got = queue.Queue()
client.start_stream(lambda result, error: got.put((result, error)))
client.async_stream_infer(model, inputs("the fox", **ask), request_id="r2", parameters={"ignore_eos": True})
text, pieces = "", 0
while True:
    result, error = got.get(timeout=30)
    if error:
        raise error
    response = result.get_response()
    if response.parameters["triton_final_response"].bool_param:
        break
    pieces += 1
    text += result.as_numpy("text_output")[0].decode()
client.stop_stream()
out["streamed"], out["pieces"] = text, pieces

errors = {}
for name, call in {
    "model": lambda: client.infer("none", inputs("x")),
    "input": lambda: client.infer(model, inputs("x", temprature=1.0)),
    "long": lambda: client.infer(model, inputs("x" * 999)),
    "shared": lambda: client.get_system_shared_memory_status(),
}.items():
    try:
        call()
        errors[name] = "none"
    except InferenceServerException as e:
        errors[name] = e.status()
out["errors"] = errors
json.dump(out, sys.stdout)
