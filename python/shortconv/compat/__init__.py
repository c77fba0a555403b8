"""The functions of other libraries over this one, with their names, arguments and edge behaviour.

    shortconv.compat.causal_conv1d   causal-conv1d (also what transformers and mamba call)
    shortconv.compat.sglang          SGLang's causal_conv1d_fn and causal_conv1d_update
    shortconv.compat.vllm            vLLM's
    shortconv.compat.fla             flash-linear-attention's causal_conv1d

Import from one of them, or call its install() to make the original's own importers find it.
docs/switching.md says what differs.
"""
