"""The checked mode for every call, turned on by the environment variable SHORTCONV_CHECK.

`_core` calls checked() at import if the variable is set; otherwise this module is not imported.
Each call gets a report (docs/checked-mode.md) and a note whether query_start_loc starts at 0. On
the CPU they are read at once. On a GPU they are copied to pinned memory in stream order, and read
at the next call after that, or at exit: no call waits. Calls that are captured in a CUDA graph add
their reports to counts on the device, which later calls copy as well, so that replays are noticed.
"""

import atexit
import json
import logging
import sys
import threading
from typing import Any, Callable, Dict, List, Tuple

Rows = List[Tuple[int, int]]  # (count, first) of each kind

_POSITIONAL = 13  # arguments of _core.forward before pairs of name and value
_X, _QUERY_START_LOC = 1, 7
_OPERATORS = ("forward", "decode", "verify")
_MAX_CAPTURED = 16  # functions with counts of their own on a device, more than this package has

_logger = logging.getLogger("shortconv")


def checked(forward: Callable[..., None], mode: str, violations: str,
            bounds_at: int = _QUERY_START_LOC) -> Callable[..., None]:
    """_core.forward, or _core.forward_groups, with a report for each call that has none.

    Args:
      mode: the value of SHORTCONV_CHECK, "1", "raise" or "log".
      bounds_at: where query_start_loc is among the arguments.
      violations: _core.violations().

    Raises:
      ValueError: the mode is unknown.
    """
    if mode not in ("1", "raise", "log"):
        raise ValueError(f"SHORTCONV_CHECK: is {mode!r}; expected 1 or raise, log, or 0")
    return _Checked(forward, mode, json.loads(violations), bounds_at).call


def _function_name(op: int) -> str:
    """The function of this package that the program called; `op` is for compiled code."""
    name, frame = f"shortconv.{_OPERATORS[op]}", sys._getframe(1)
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module.partition(".")[0] == "shortconv" and module not in _INTERNAL:
            name = f"{_PUBLIC.get(module, module)}.{frame.f_code.co_name}"
        frame = frame.f_back
    return name


_INTERNAL = ("shortconv._arrays", "shortconv._check", "shortconv._core", "shortconv._torch",
             "shortconv._torch_groups", "shortconv.torch")
_PUBLIC = {"shortconv._operators": "shortconv", "shortconv._groups": "shortconv",
           "shortconv._training": "shortconv.torch",
           "shortconv._layer": "shortconv.torch.ShortConv1d",
           "shortconv.compat.vllm.front": "shortconv.compat.vllm",
           "shortconv.compat.vllm.functions": "shortconv.compat.vllm",
           "shortconv.compat.vllm.gates": "shortconv.compat.vllm"}


def _value_of(name: str, arguments: Tuple[Any, ...]) -> Any:
    """The argument that is passed as name and value; None if it is not."""
    for i, one in enumerate(arguments):
        if isinstance(one, str) and one == name:
            return arguments[i + 1]
    return None


class _Checked:
    def __init__(self, forward: Callable[..., None], mode: str,
                 violations: List[Dict[str, str]], bounds_at: int) -> None:
        self._forward = forward
        self._bounds_at = bounds_at
        self._raises = mode != "log"
        self._kinds = [(one["name"], one["description"]) for one in violations]
        self._kinds.append(("query_start_loc does not start at 0",
                            "Rows before the first sequence belong to no sequence; expected "
                            "sequences + 1 bounds, the first of which is 0."))
        self._devices: Dict[Any, _TorchDevice] = {}
        self._lock = threading.Lock()
        atexit.register(self._at_exit)

    def call(self, *arguments: Any) -> None:
        if _value_of("violations", arguments) is not None:
            return self._forward(*arguments)
        arguments += (None,) * (_POSITIONAL - len(arguments))
        x, name = arguments[_X], _function_name(arguments[0] & 3)
        torch = sys.modules.get("torch")
        if torch is not None and isinstance(x, torch.Tensor):
            if not x.is_cuda:
                report = torch.empty(len(self._kinds) - 1, 2, dtype=torch.int64)
                return self._on_cpu(name, arguments, report)
            with self._lock:
                if x.device not in self._devices:
                    self._devices[x.device] = _TorchDevice(x.device, len(self._kinds))
                device = self._devices[x.device]
            self._tell(device.finished())
            with device.stream_of(arguments):
                bounds = arguments[self._bounds_at]
                return device.call(name, self._forward, arguments, bounds)
        if getattr(x, "__dlpack_device__", lambda: (0, 0))()[0] not in (1, 3):  # host memory
            return self._elsewhere(name, arguments)
        import numpy

        self._on_cpu(name, arguments, numpy.empty((len(self._kinds) - 1, 2), numpy.int64))

    def _on_cpu(self, name: str, arguments: Tuple[Any, ...], report: Any) -> None:
        self._forward(*arguments, "violations", report)
        rows = [(count, first) for count, first in report.tolist()]
        bounds = arguments[self._bounds_at]
        if bounds is not None and not hasattr(bounds, "__getitem__"):  # any array with DLPack
            import numpy

            bounds = numpy.from_dlpack(bounds)
        starts_late = bounds is not None and int(bounds[0]) != 0
        self._tell([(name, [*rows, (int(starts_late), 0)])])

    def _elsewhere(self, name: str, arguments: Tuple[Any, ...]) -> None:
        """A GPU without torch: arrays that this module cannot make."""
        self._forward(*arguments)
        _logger.warning("SHORTCONV_CHECK: %s is not checked, because x is neither on the CPU nor a "
                        "torch tensor", name)

    def _tell(self, reports: List[Tuple[str, Rows]]) -> None:
        messages = [self._message(name, rows) for name, rows in reports
                    if any(count for count, _ in rows)]
        if not messages:
            return
        if self._raises:
            raise ValueError("\n".join(messages))
        for message in messages:
            _logger.error("%s", message)

    def _message(self, name: str, rows: Rows) -> str:
        found = [f"{kind}: {count}, first at {first}. {text}"
                 for (kind, text), (count, first) in zip(self._kinds, rows) if count]
        return f"{name}: bad index values (SHORTCONV_CHECK). {' '.join(found)}"

    def _at_exit(self) -> None:
        """Logs what no later call told; an exception could not be caught here."""
        self._raises = False
        for device in self._devices.values():
            self._tell(device.finished(at_exit=True))


class _TorchDevice:
    """Reports of the calls on one GPU."""

    def __init__(self, device: Any, kinds: int) -> None:
        self._torch = sys.modules["torch"]
        self._device = device
        self._kinds = kinds
        self._lock = threading.Lock()
        self._pending: List[Tuple[List[str], Any, Any]] = []  # names, pinned rows, event
        # Rows of captured calls, added up by replays, and the counts that were told already.
        self._captured: Any = None
        self._captured_names: List[str] = []
        self._told: Dict[Tuple[int, int], int] = {}

    def stream_of(self, arguments: Tuple[Any, ...]) -> Any:
        """A context in which the stream of the call is current."""
        stream = _value_of("stream", arguments)
        if stream is None:
            return self._torch.cuda.device(self._device)
        if hasattr(stream, "__cuda_stream__"):
            stream = stream.__cuda_stream__()[1]
        return self._torch.cuda.stream(
            self._torch.cuda.ExternalStream(int(stream), device=self._device))

    def call(self, name: str, forward: Callable[..., None], arguments: Tuple[Any, ...],
             bounds: Any) -> None:
        torch = self._torch
        capturing = torch.cuda.is_current_stream_capturing()
        with self._lock:
            if self._captured is None and not capturing:
                # Not during a capture: the graph would own the memory and clear it in each replay.
                self._captured = torch.zeros(_MAX_CAPTURED, self._kinds, 2, dtype=torch.int64,
                                             device=self._device)
        if self._captured is None:
            _logger.warning("SHORTCONV_CHECK: %s is not checked, because it is captured in a graph "
                            "before any other call on the device", name)
            return forward(*arguments)
        rows = torch.zeros(self._kinds, 2, dtype=torch.int64, device=self._device)
        forward(*arguments, "violations", rows[:-1])
        if bounds is not None and bounds.numel() > 0:
            rows[-1, :1] = bounds[:1] != 0
        if capturing:
            self._add(name, rows)
        else:
            self._copy_to_host(name, rows)

    def _add(self, name: str, rows: Any) -> None:
        with self._lock:
            if name not in self._captured_names:
                self._captured_names.append(name)
            number = min(self._captured_names.index(name), _MAX_CAPTURED - 1)
        sums = self._captured[number]
        sums[:, 1] = self._torch.where(rows[:, 0] > 0, rows[:, 1], sums[:, 1])
        sums[:, 0] += rows[:, 0]

    def _copy_to_host(self, name: str, rows: Any) -> None:
        torch = self._torch
        with self._lock:
            names = [name, *self._captured_names[:_MAX_CAPTURED]]
        if len(names) > 1:
            rows = torch.cat([rows[None], self._captured[: len(names) - 1]])
        host = self._pinned(rows.shape)
        host.copy_(rows, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        with self._lock:
            self._pending.append((names, host, event))

    def _pinned(self, shape: Any) -> Any:
        return self._torch.empty(shape, dtype=self._torch.int64, pin_memory=True)

    def finished(self, at_exit: bool = False) -> List[Tuple[str, Rows]]:
        """Reports that have arrived since the last time; at_exit: all, after waiting for them."""
        torch = self._torch
        if not at_exit and torch.cuda.is_current_stream_capturing():
            return []  # an event must not be queried
        found: List[Tuple[str, Rows]] = []
        with self._lock:
            if at_exit:
                torch.cuda.synchronize(self._device)
                if self._captured_names:
                    names = self._captured_names[:_MAX_CAPTURED]
                    found += self._new_captured(names, self._captured.tolist())
            waiting = []
            for names, host, event in self._pending:
                if not event.query():
                    waiting.append((names, host, event))
                    continue
                rows = host.reshape(-1, self._kinds, 2).tolist()
                found.append((names[0], rows[0]))
                found += self._new_captured(names[1:], rows[1:])
            self._pending = waiting
        return found

    def _new_captured(self, names: List[str], sums: List[Rows]) -> List[Tuple[str, Rows]]:
        """What replays have counted since the last time."""
        found = []
        for number, (name, rows) in enumerate(zip(names, sums)):
            new = []
            for kind, (count, first) in enumerate(rows):
                told = self._told.get((number, kind), 0)
                new.append((max(count - told, 0), first))
                self._told[number, kind] = max(count, told)
            found.append((f"{name} in a CUDA graph", new))
        return found
