"""The functions of other libraries, with their names, arguments and edge behaviour.

    shortconv.compat.causal_conv1d   causal-conv1d (also what transformers and mamba call)
    shortconv.compat.sglang          SGLang's causal_conv1d_fn and causal_conv1d_update
    shortconv.compat.vllm            vLLM's
    shortconv.compat.fla             flash-linear-attention's causal_conv1d
    shortconv.compat.transformers    fuse(model), for layers of transformers

Import from a module, or call its install() to replace the original functions in code that cannot be
changed. docs/switching.md lists the differences.
"""
