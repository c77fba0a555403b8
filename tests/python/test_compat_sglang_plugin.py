"""The plug-in of SGLang on modules with the contracts of SGLang's: no SGLang is needed."""

import importlib
import inspect
import logging
import os
import pathlib
import re
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")

from sglang_stand_in import (  # noqa: E402
    BACKEND_CODE,
    DELTA_RULE_CODE,
    LINEAR,
    MAMBA,
    TRITON,
    add_engine,
    make_dispatcher,
    make_functions,
)
from shortconv.compat import sglang  # noqa: E402
from shortconv.compat.sglang import dispatcher, triton  # noqa: E402

layouts = pytest.mark.parametrize("layout", ["old", "new"])
pytestmark = pytest.mark.usefixtures("seeded_and_without_hooks")


def functions_of(engine):
    """Everything that install() may replace."""
    return [engine.triton.causal_conv1d_fn, engine.triton.causal_conv1d_update,
            engine.chooser.causal_conv1d_fn, engine.chooser.causal_conv1d_update,
            engine.chooser._causal_conv1d_fn_triton, engine.model.causal_conv1d_fn,
            engine.model.causal_conv1d_update, engine.backend.causal_conv1d_update,
            engine.backend.causal_conv1d_fn, engine.backend.fused_gdn_gating,
            engine.backend.fused_qkv_split_gdn_prefill, engine.delta_rule.chunk_gated_delta_rule,
            engine.backend.GDNKernelDispatcher.extend]


CONV = 9  # so many of them belong to the part conv


@layouts
def test_all_parts_are_installed_and_undone(monkeypatch, layout):
    engine = add_engine(monkeypatch, layout)
    before, finders = functions_of(engine), list(sys.meta_path)
    undo = sglang.install()
    assert engine.triton.causal_conv1d_fn is triton.causal_conv1d_fn
    assert engine.triton.causal_conv1d_update is triton.causal_conv1d_update
    assert engine.chooser.causal_conv1d_fn is dispatcher.causal_conv1d_fn
    assert engine.chooser.causal_conv1d_update is dispatcher.causal_conv1d_update
    assert engine.chooser._causal_conv1d_fn_triton is triton.causal_conv1d_fn
    assert engine.model.causal_conv1d_fn is dispatcher.causal_conv1d_fn
    assert engine.backend.causal_conv1d_update is triton.causal_conv1d_update
    assert all(one is not other for one, other in zip(before, functions_of(engine)))
    installed = functions_of(engine)
    sglang.install()()
    assert functions_of(engine) == installed
    undo()
    assert functions_of(engine) == before and sys.meta_path == finders


@pytest.mark.parametrize("value, parts", [
    (None, ""), ("", ""), ("0", ""), ("1", "conv front"), ("conv", "conv"),
    ("conv, front", "conv front"), ("front,conv", "conv front")])
def test_the_environment_variable_chooses_parts(monkeypatch, value, parts):
    engine = add_engine(monkeypatch)
    before = functions_of(engine)
    monkeypatch.delenv("SHORTCONV_SGLANG", raising=False)
    if value is not None:
        monkeypatch.setenv("SHORTCONV_SGLANG", value)
    sglang.plugin()
    changed = [one is not other for one, other in zip(before, functions_of(engine))]
    assert changed == ["conv" in parts] * CONV + ["front" in parts] * (len(changed) - CONV)


def test_a_function_of_later_versions_is_replaced_where_it_exists(monkeypatch):
    engine = add_engine(monkeypatch)
    engine.triton.causal_conv1d_fn_split_qkv = before = (
        lambda x, weight, bias, conv_states, query_start_loc, seq_lens_cpu, q_dim, **kwargs: None)
    undo = sglang.install()
    assert engine.triton.causal_conv1d_fn_split_qkv is triton.causal_conv1d_fn_split_qkv
    undo()
    assert engine.triton.causal_conv1d_fn_split_qkv is before


def with_another_parameter(q, k, v, g, beta, scale=None, gate_lower_bound=None):
    pass


UNKNOWN = {
    "causal_conv1d_fn": (lambda x, weight, bias, spam=None: None, "has the parameters spam, which"),
    "causal_conv1d_update": (
        lambda x, conv_state, bias, weight: None,
        r"begins with \(x, conv_state, bias, weight\); expected \(x, conv_state, weight, bias"),
    "fused_gdn_gating": (lambda A_log, a, b, dt_bias, eggs: None, "has the parameters eggs"),
    "fused_qkv_split_gdn_prefill": (lambda rows, num_q_heads: None, "has the parameters rows"),
    "chunk_gated_delta_rule": (with_another_parameter, "has the parameters gate_lower_bound"),
}


@pytest.mark.parametrize("name", list(UNKNOWN))
def test_unknown_signatures_are_refused_and_nothing_is_replaced(monkeypatch, caplog, name):
    function, message = UNKNOWN[name]
    engine = add_engine(monkeypatch, **{name: function})
    before, finders = functions_of(engine), list(sys.meta_path)
    with pytest.raises(ImportError, match=f"{name} of sglang 0.9.9: {message}"):
        sglang.install()
    monkeypatch.setenv("SHORTCONV_SGLANG", "1")
    with caplog.at_level(logging.WARNING):
        sglang.plugin()  # does not raise
    assert "SHORTCONV_SGLANG: shortconv is not used, SGLang runs its own kernels" in caplog.text
    assert functions_of(engine) == before and sys.meta_path == finders


def test_missing_functions_and_modules_are_named(monkeypatch):
    engine = add_engine(monkeypatch)
    del engine.chooser.causal_conv1d_update
    with pytest.raises(ImportError, match="sglang 0.9.9: has no causal_conv1d_update in sglang.sr"):
        sglang.install()
    engine = add_engine(monkeypatch)
    del engine.backend.fused_gdn_gating
    with pytest.raises(ImportError, match="gdn_backend of sglang 0.9.9: has no fused_gdn_gating"):
        sglang.install()
    sglang.install(["conv"])()
    monkeypatch.setitem(sys.modules, TRITON["new"], None)
    with pytest.raises(ImportError, match="sglang 0.9.9: has no module sglang.kernels.* or sglang.s"
                                          ".* with causal_conv1d_fn"):
        sglang.install()
    monkeypatch.setitem(sys.modules, "sglang", None)  # importing it fails
    with pytest.raises(ImportError, match="^sglang: is not installed, or cannot be imported"):
        sglang.install()


@pytest.mark.parametrize("parts", [[], ["front"], ["conv", "gates"]])
def test_unknown_parts_are_refused(monkeypatch, caplog, parts):
    add_engine(monkeypatch)
    with pytest.raises(ValueError, match="^parts: are .*; expected conv, and any of front, which"):
        sglang.install(parts)
    monkeypatch.setenv("SHORTCONV_SGLANG", ",".join(parts) or "x")
    sglang.plugin()
    assert "expected conv" in caplog.text


@pytest.mark.parametrize("device, hip, name", [
    (None, "6.3", "rocm"), ("xpu", None, "xpu"), ("cuda", "6.3", "rocm")])
def test_other_devices_are_refused(monkeypatch, device, hip, name):
    engine = add_engine(monkeypatch)
    before = functions_of(engine)
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch.accelerator, "current_accelerator",
                        lambda: device and torch.device(device))
    with pytest.raises(ImportError, match=f"sglang 0.9.9: runs on {name}; expected cuda or cpu"):
        sglang.install()
    assert functions_of(engine) == before


@pytest.mark.parametrize("change, warning", [
    ("", None), ("_cpu", "is <function causal_conv1d_fn_cpu .*; expected the function of this nam"),
    (", eggs=None", "fused_gdn_gating of sglang 0.9.9: has the parameters eggs")])
def test_a_backend_that_is_imported_later_is_changed(monkeypatch, caplog, tmp_path, change,
                                                     warning):
    engine = add_engine(monkeypatch)
    original = engine.chooser.causal_conv1d_fn
    (tmp_path / "gdn_backend.py").write_text(
        f"from {engine.chooser.__name__} import causal_conv1d_fn\n"
        "def causal_conv1d_fn_cpu(): pass\n"
        + ("causal_conv1d_fn = causal_conv1d_fn_cpu\n" if change == "_cpu" else "")
        + "class GDNKernelDispatcher:\n"
        "    def extend(self, q, k, v, g, beta, *, ssm_states, cache_indices, query_start_loc,\n"
        "               **kwargs): pass\n"
        "def fused_gdn_gating(A_log, a, b, dt_bias, beta=1.0, threshold=20.0"
        f"{change if change[:1] == ',' else ''}): pass\n")
    monkeypatch.setattr(sys.modules[LINEAR[:-1]], "__path__", [str(tmp_path)])
    name = LINEAR + "gdn_backend"
    monkeypatch.setitem(sys.modules, name, None)  # removed after the test
    del sys.modules[name]
    undo = sglang.install()
    with caplog.at_level(logging.INFO):
        module = importlib.import_module(name)
    assert hasattr(module.causal_conv1d_fn, "is_deferred") == (warning is None)
    assert (f"sglang 0.9.9: shortconv changes {name}" in caplog.text) == (warning is None)
    if warning is not None:
        assert "shortconv does not change a layer" in caplog.text
        assert re.search(warning, caplog.text)
    undo()
    assert module.causal_conv1d_fn in (original, module.causal_conv1d_fn_cpu)


@pytest.mark.parametrize("name", ["num_accepted_tokens", "num_accept_tokens"])
def test_both_names_of_accepted_numbers_are_known(monkeypatch, name):
    """0.5.10 and 0.5.11 have the first."""
    code = make_functions([])["causal_conv1d_update"].__code__
    names = [name if one == "num_accept_tokens" else one
             for one in code.co_varnames[: code.co_argcount]]
    update = eval(f"lambda {', '.join(names)}: None")
    engine = add_engine(monkeypatch, "old", causal_conv1d_update=update)
    sglang.install()
    assert engine.triton.causal_conv1d_update is triton.causal_conv1d_update


SCRIPT = pathlib.Path(__file__).parents[2] / "scripts" / "sglang_signatures.py"


def write_sources(root, layout, change=lambda text: text):
    """The source of a version, as far as its signatures matter."""
    def write(name, *texts):
        path = root / (name.replace(".", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(change("\n".join(texts)))

    def signature(function):
        return f"def {function.__name__}{inspect.signature(function)}: pass"

    made = make_functions([])
    convolutions = [made.pop("causal_conv1d_fn"), made.pop("causal_conv1d_update")]
    write(TRITON[layout], *map(signature, convolutions))
    write(MAMBA + "causal_conv1d", *map(signature, make_dispatcher([]).values()))
    write("sglang.ops", *map(signature, made.values()))
    write(LINEAR + "gdn_backend", f"from {TRITON[layout]} import causal_conv1d_fn",
          "if is_cuda():", f"    from {MAMBA}causal_conv1d import causal_conv1d_fn as cuda",
          "    from sglang.ops import fused_gdn_gating, fused_qkv_split_gdn_prefill", BACKEND_CODE)
    write(LINEAR + "kernels.gdn_triton", "from sglang.ops import chunk_gated_delta_rule",
          DELTA_RULE_CODE)
    write("sglang.srt.plugins.__init__")


def signatures(*folders):
    environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(sglang.__file__).parents[3])}
    done = subprocess.run([sys.executable, SCRIPT, *folders], env=environment, capture_output=True,
                          text=True)
    return done.returncode, done.stdout, done.stderr


def test_the_script_says_what_is_replaced_and_what_is_refused(tmp_path):
    def change(before, after):
        return lambda text: text.replace(before, after)

    write_sources(tmp_path / "one", "old")
    write_sources(tmp_path / "two", "new")
    write_sources(tmp_path / "three", "new", change("metadata=None", "spam=None"))
    write_sources(tmp_path / "four", "new", change("query_start_loc=batch.b", "eggs=batch.b"))
    environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(sglang.__file__).parents[3])}
    done = subprocess.run(
        [sys.executable, SCRIPT, "one", "two", "three", "four"], cwd=tmp_path, env=environment,
        capture_output=True, text=True)
    assert done.returncode == 1
    assert "three: causal" not in done.stdout and done.stderr.startswith(
        f"three: {TRITON['new']}.causal_conv1d_update of sglang three: has the parameters spam, ")
    for name, layout in (("one", "old"), ("two", "new")):
        module = TRITON[layout].partition(".")[2]
        assert (f"{name}: conv: {module}.causal_conv1d_fn, {module}.causal_conv1d_update, "
                in done.stdout)
        assert (f"{name}: front: causal_conv1d_fn, fused_gdn_gating, fused_qkv_split_gdn_prefill, "
                "GDNKernelDispatcher.extend, chunk_gated_delta_rule\n") in done.stdout
        assert f"{name}: used by: gdn_backend\n{name}: front" in done.stdout
        assert f"{name}: loads plug-ins: yes\n" in done.stdout
    assert "four: front: none, as causal_conv1d_fn is called with other arguments" in done.stdout
