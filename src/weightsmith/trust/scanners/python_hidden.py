"""Ways to act that honest code has no need of, since it may simply write down what it calls."""

from __future__ import annotations

import ast
import re

from .python_tables import ACTING_TEXT, HOSTILE, NAMED_TEXT, PRIVATE_TEXT, STRONG, TELLTALE, group
from .python_view import View

#: functions that a module may be given to
_ASKING = frozenset(("getattr", "hasattr", "vars", "dir", "isinstance", "type", "id", "print", "repr", "reload", "object",
      "delattr",
                     "setattr", "getmodule", "getsource", "getfile", "is_", "bool", "str", "len"))  # fmt: skip
#: what loads code as well, and is hidden where another module was asked for it
_LOADING = re.compile(r"~(?:_?pickle\._?(?:loads?|Unpickler)|marshal\.loads?|"
                      r"ctypes\.(?:CDLL|cdll|PyDLL|windll|pythonapi)(?:\..*)?)")  # fmt: skip
_PLACES = (ast.Name, ast.Attribute, ast.Call, ast.Subscript)
_STANDING = (ast.Attribute, ast.alias, ast.Expr, ast.Compare, ast.UnaryOp, ast.If)


def hidden(view: View) -> list[tuple[int, str]]:
    """The lines that hide what they do, and how."""
    for node in view.order:
        if isinstance(node, ast.Constant):
            if id(node) not in view.comments:
                _text(view, node)
            continue
        if isinstance(node, _PLACES):
            _roundabout(view, node)
        if not isinstance(node, _STANDING):
            _handed(view, node)
    return view.odd


def _roundabout(view: View, node: ast.AST) -> None:
    for value in view.values.get(id(node), ()):
        if value.startswith(("*.", "~*.")):
            if value.rsplit(".", 1)[-1] in TELLTALE:
                view.hides(node, f"asks for {value.rsplit('.', 1)[-1]} of a module whose name is not written down")
        elif value[0] == "~" and "()" not in value and (group(value[1:]) in HOSTILE or _LOADING.fullmatch(value)):
            view.hides(node, f"reaches {value[1:]} in a roundabout way")


def _handed(view: View, node: ast.AST) -> None:
    """Whether a whole module that acts is given to something else, which then acts under another name."""
    for child in view.children[id(node)]:
        if isinstance(child, _PLACES):
            module = next((v for v in view.values.get(id(child), ()) if v.removeprefix("~") in STRONG), "")
            if module and not _may_stand(node, child):
                view.hides(child, f"hands on the whole module {module.removeprefix('~')}")


def _may_stand(node: ast.AST, child: ast.AST) -> bool:
    """Whether a module may stand here as honest code has it: under another name, or asked what it has."""
    if isinstance(node, (ast.Assign, ast.AnnAssign)):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        return isinstance(child, (ast.Name, ast.Call)) and all(isinstance(target, ast.Name) for target in targets)
    if isinstance(node, ast.Call):
        func = node.func
        name = func.id if isinstance(func, ast.Name) else func.attr if isinstance(func, ast.Attribute) else ""
        return child is func or name in _ASKING
    return isinstance(node, ast.Subscript) or not isinstance(getattr(child, "ctx", ast.Load()), ast.Load)


def _text(view: View, node: ast.Constant) -> None:
    text = node.value if isinstance(node.value, str) else node.value.decode("latin-1") if isinstance(node.value, bytes) else ""
    if len(text) < 5:
        return
    if hit := ACTING_TEXT.search(text):
        view.hides(node, f"a text holds {hit[0][:60]!r}")
    elif len(text) < 40 and NAMED_TEXT.fullmatch(text):
        view.hides(node, f"a text names {text}")
    elif len(text) < 200 and (hit := PRIVATE_TEXT.search(text)):
        view.hides(node, f"a text names {hit[0]}, which is the user's own")
