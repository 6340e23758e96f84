"""The exact module as a graph of operators.

`torch.fx` traces the Python of `forward` once with a symbolic input. It is chosen over
`torch.export` because it keeps the operators as they were written (a module call stays one node, so
that a bound has its rule and a refusal has a name and a path), keeps sizes symbolic (nothing is
specialised to a batch), copies no weight, needs no example, and takes milliseconds. Control flow
that depends on data cannot be traced and is refused. What tracing would silently get wrong is
looked for: hooks of modules that stay one node, in-place operators whose result is read under
another name, and, by the caller, any other difference between the graph and the module, on data.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from typing import Any

from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from pytest_triguard.engine.lighter import has_own_forward
from pytest_triguard.errors import first_line
from pytest_triguard.verification.operators import COMPOSED, TABLE, Rule, Unsupported

_INPLACE = frozenset(
    {
        operator.iadd,
        operator.isub,
        operator.imul,
        operator.itruediv,
        operator.ifloordiv,
        operator.imod,
        operator.ipow,
    }
)
_ROOT = "module"


@dataclass(frozen=True)
class Graph:
    """A captured module.

    Attributes:
        nodes: Operators in the order in which they run, placeholder first, output last.
        last_use: Nodes whose value nothing needs after a node.
        root: What the paths in the nodes start from.
        composed: Whether some operators stand for others, which they are composed of.
    """

    nodes: list[fx.Node]
    last_use: dict[fx.Node, list[fx.Node]]
    root: nn.Module
    composed: bool = False

    def run(self, inputs: Tensor) -> object:
        """Return what the graph computes."""
        result: object = fx.Interpreter(self.root, graph=self.nodes[0].graph).run(inputs)
        return result

    def attribute(self, node: fx.Node) -> Any:
        """Return the submodule, parameter or buffer that a node names."""
        return reduce(getattr, str(node.target).split("."), self.root)

    def rule(self, node: fx.Node) -> Rule | None:
        """Return the rule of a node's operator, or None if there is none."""
        if node.op == "call_module":
            return TABLE.get(parametrize.type_before_parametrizations(self.attribute(node)))
        if node.op == "call_method":
            name = str(node.target)
            return TABLE.get(name.removesuffix("_") if _is_inplace(name) else name)
        if node.op != "call_function":
            return None
        return TABLE.get(node.target, TABLE.get(_path(node.target)))

    def overwrites(self, node: fx.Node) -> bool:
        """Return whether a node's operator works in place."""
        if node.op == "call_module":
            return bool(getattr(self.attribute(node), "inplace", False))
        if node.op == "call_method":
            return _is_inplace(str(node.target))
        if node.op != "call_function":
            return False
        if node.target in _INPLACE or _is_inplace(getattr(node.target, "__name__", "")):
            return True
        rule = self.rule(node)
        return rule is not None and bool(_argument(rule, node, "inplace"))

    def describe(self, node: fx.Node) -> str:
        """Return operator and module path of a node, as messages name them."""
        if node.op == "call_module":
            name, path = type(self.attribute(node)).__name__, str(node.target)
        else:
            name = node.target if isinstance(node.target, str) else node.target.__name__
            path = next(reversed(node.meta.get("nn_module_stack") or {_ROOT: None}))
        place = path.removeprefix(_ROOT).removeprefix(".")
        where = f"in module {place!r}" if place else "at the top of the module"
        return f"operator {name} {where}"


def capture(module: nn.Module) -> Graph:
    """Trace a module in evaluation mode; it is left as it came.

    Raises:
        Unsupported: If it cannot be traced, or the trace could not be trusted.
    """
    root = _Root(module)
    tracer = _Tracer()
    try:
        with _attributes_kept(module):
            nodes = list(tracer.trace(root).nodes)
    except Exception as error:
        reason = first_line(error)
        raise Unsupported(
            f"the module {type(module).__name__} cannot be captured as a graph: {reason}"
        ) from error
    graph = Graph(nodes, _last_use(nodes), root, tracer.composed)
    _refuse_hooks(graph)
    _refuse_stale_reads(graph)
    return graph


class _Root(nn.Module):
    """Calls the module with its one input; whatever tracing attaches is attached here."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, inputs: Tensor) -> Any:
        return self.module(inputs)


def _recorder(function: Callable[..., Any]) -> Callable[[fx.Proxy, Any], fx.Proxy]:
    def record(self: fx.Proxy, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return record


class _Proxy(fx.Proxy):
    """Records `x += y` as what it is; `fx.Proxy` would record `x + y`."""

    __iadd__ = _recorder(operator.iadd)
    __isub__ = _recorder(operator.isub)
    __imul__ = _recorder(operator.imul)
    __itruediv__ = _recorder(operator.itruediv)
    __ifloordiv__ = _recorder(operator.ifloordiv)
    __imod__ = _recorder(operator.imod)
    __ipow__ = _recorder(operator.ipow)


class _Tracer(fx.Tracer):
    composed = False

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        kind = parametrize.type_before_parametrizations(m)
        known = kind in TABLE or kind in COMPOSED
        return known or super().is_leaf_module(m, module_qualified_name)

    def create_proxy(
        self,
        kind: str,
        target: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *more: Any,
        **others: Any,
    ) -> Any:
        """Record an operator, or the operators that it is composed of."""
        if kind == "call_module":
            module = reduce(getattr, target.split("."), self.root)
            compose = COMPOSED.get(parametrize.type_before_parametrizations(module))
            if compose is not None:
                if _does_more(module):
                    name = type(module).__name__
                    raise Unsupported(
                        f"operator {name} in {target!r} has a hook or its own forward"
                    )
                self.composed = True
                return compose(module, *args, **kwargs)
        elif kind in ("call_function", "call_method") and target in COMPOSED:
            self.composed = True
            return COMPOSED[target](*args, **kwargs)
        return super().create_proxy(kind, target, args, kwargs, *more, **others)


@contextmanager
def _attributes_kept(module: nn.Module) -> Iterator[None]:
    """Put back what a forward that stores things on its modules replaced by traced values."""
    before = [(each, dict(vars(each))) for each in module.modules()]
    try:
        yield
    finally:
        for each, attributes in before:
            vars(each).clear()
            vars(each).update(attributes)


def _last_use(nodes: list[fx.Node]) -> dict[fx.Node, list[fx.Node]]:
    place = {node: number for number, node in enumerate(nodes)}
    last: dict[fx.Node, list[fx.Node]] = {node: [] for node in nodes}
    for node in nodes:
        last[max((node, *node.users), key=place.__getitem__)].append(node)
    return last


def _refuse_hooks(graph: Graph) -> None:
    """Refuse modules that stay one node and do more than their class says."""
    for node in graph.nodes:
        if node.op != "call_module":
            continue
        if _does_more(graph.attribute(node)):
            raise Unsupported(f"{graph.describe(node)} has a hook or a forward of its own")


def _does_more(module: nn.Module) -> bool:
    """Return whether a module does more than its class says."""
    everywhere = nn.modules.module
    # What its class does may also be changed in a method that `forward` calls.
    own = {name for name in vars(module) if callable(getattr(type(module), name, None))}
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or everywhere._global_forward_hooks
        or everywhere._global_forward_pre_hooks
        or (own if has_own_forward(module) else own - {"forward"})
    )


def _path(function: Any) -> str:
    """Return where a function is defined: the key of those that are not imported here."""
    return f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', '')}"


def _refuse_stale_reads(graph: Graph) -> None:
    """Refuse values that are read again after an operator overwrote them in place.

    The graph would read the value as it was; the module reads what it has become.
    """
    origin: dict[fx.Node, fx.Node] = {}
    for number, node in enumerate(graph.nodes):
        first = node.args[0] if node.args else node.kwargs.get("input")
        rule, overwrites = graph.rule(node), graph.overwrites(node)
        shared = overwrites or (rule is not None and rule.aliases)
        origin[node] = origin[first] if shared and isinstance(first, fx.Node) else node
        if not overwrites:
            continue
        later = set(graph.nodes[number + 1 :])
        for earlier in graph.nodes[:number]:
            if origin[earlier] is origin[node] and not later.isdisjoint(earlier.users):
                raise Unsupported(
                    f"{graph.describe(node)} overwrites a value in place that is read again"
                )


def _argument(rule: Rule, node: fx.Node, name: str) -> Any:
    try:
        bound = inspect.signature(rule.interval).bind(*node.args, **node.kwargs)
    except TypeError:  # refused, with its reason, when the rule is applied
        return None
    return bound.arguments.get(name)


def _is_inplace(method: str) -> bool:
    """Return whether a method or function of that name overwrites its tensor."""
    return method.endswith("_") and not method.endswith("__")
