"""transformers_model.py MODEL DEVICE MODE: greedy tokens of a small random model, as JSON.

MODE: torch, all operators are those of torch; install, the convolutions are ours.

A separate program, because transformers looks for causal_conv1d when it is imported.
"""

import json
import sys

sys.modules["fla"] = None  # importing it fails: all other operators are those of torch in both runs
model_name, device, mode = sys.argv[1:]

from call_counts import calls, counted  # noqa: E402

if mode == "install":
    from shortconv.compat import causal_conv1d

    for name in ("causal_conv1d_fn", "causal_conv1d_update"):
        setattr(causal_conv1d, name, counted(getattr(causal_conv1d, name)))
    causal_conv1d.install(replace=True)
else:
    sys.modules["causal_conv1d"] = None  # importing it fails

import torch  # noqa: E402
from transformers_configs import model_of  # noqa: E402

model = model_of(model_name, device)
prompt = torch.randint(1, 128, (2, 11), device=device)
with torch.no_grad():
    tokens = model.generate(prompt, max_new_tokens=24, do_sample=False, pad_token_id=0,
                            attention_mask=torch.ones_like(prompt))
print(json.dumps({"tokens": tokens.tolist(), "calls": calls}))
