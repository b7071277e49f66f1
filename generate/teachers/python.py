"""The `python` teacher: any class by import path, the project's own folder included.

    [teacher]
    kind = "python"
    [teacher.options]
    class = "my_teacher:MyTeacher"     # my_teacher.py beside distdata.toml, or any installed module
    rate = 0.5                         # everything else goes to MyTeacher(rate=0.5)

The class decides its own content hash (`TeacherInfo.content_hash`); `source_hash` helps with it.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
import sys
from pathlib import Path
from typing import Any

from ...catalogs.errors import DistdataError, nearest
from ...catalogs.hashing import bytes_hash, content_hash

_PROJECT_MARK = "__distdata_project__"


def load_object(path: str, project_dir: Path, what: str = "teacher.options.class") -> Any:
    """Import ``module:name`` with the folder `project_dir` first on the import path.

    Workers call it again with the same folder, so that a class beside distdata.toml loads there as well.
    `what` is the setting as errors name it.

    Raises:
        DistdataError: no colon, no such module or name (with the nearest), or a module that fails to import.
    """
    module_name, colon, name = path.partition(":")
    if not colon or not name.isidentifier() or not all(p.isidentifier() for p in module_name.split(".")):
        raise DistdataError(f'{what} = {path!r}: write it as "module:Class", for example "my_teacher:MyTeacher".')
    module = _import_module(module_name, project_dir.resolve(), what)
    if not hasattr(module, name):
        names = [n for n, value in vars(module).items() if callable(value) and not n.startswith("_")]
        where = getattr(module, "__file__", module_name)
        raise DistdataError(f"{what} = {path!r}: {where} has no {name!r}.{nearest(name, names)}")
    return getattr(module, name)


def load_class(path: str, project_dir: Path) -> type[Any]:
    """Import a teacher class (see `load_object`) and check that it has `describe` and `sample`.

    Raises:
        DistdataError: what `load_object` raises, and for anything that is not a class with both methods.
    """
    found = load_object(path, project_dir)
    if not isinstance(found, type):
        raise DistdataError(f"teacher.options.class = {path!r}: is a {type(found).__name__}; it must be a class.")
    missing = [m for m in ("describe", "sample") if not callable(getattr(found, m, None))]
    if missing:
        raise DistdataError(
            f"teacher.options.class = {path!r}: the class lacks {' and '.join(m + '()' for m in missing)}. "
            "A teacher has describe() -> TeacherInfo and sample(requests) -> Iterable[Draw | Failure]; "
            "see distdata.catalogs.protocol."
        )
    return found


def source_hash(cls: type[Any], **options: Any) -> str:
    """Return 16 hex digits over the source file of `cls` and the options that decide its output.

    For `TeacherInfo.content_hash` of a teacher whose code is its model: any edit of the file makes it
    another teacher version.

    Raises:
        DistdataError: the class has no source file (typed at a prompt).
    """
    try:
        file = Path(inspect.getsourcefile(cls) or "")
        code = file.read_bytes()
    except (TypeError, OSError):
        raise DistdataError(f"{cls.__name__}: has no source file to hash; define it in a module.") from None
    return content_hash({"source": bytes_hash([code]), "class": cls.__qualname__, "options": options})


def _import_module(name: str, project_dir: Path, what: str) -> Any:
    top = name.partition(".")[0]
    own = any((project_dir / p).exists() for p in (f"{top}.py", f"{top}/__init__.py"))
    if str(project_dir) not in sys.path:
        sys.path.insert(0, str(project_dir))
    if own:
        _forget_other_project(top, project_dir, what)
    importlib.invalidate_caches()
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as e:
        if e.name is None or not (name == e.name or name.startswith(e.name + ".")):
            raise _failed(name, e, what) from e  # found, but something that it imports is missing
        siblings = [p.stem for p in sorted(project_dir.glob("*.py"))] or [m.name for m in pkgutil.iter_modules()]
        raise DistdataError(
            f"{what}: no module {e.name!r} in {project_dir} or installed.{nearest(e.name, siblings)}"
        ) from None
    except Exception as e:
        raise _failed(name, e, what) from e
    if own:
        setattr(sys.modules[top], _PROJECT_MARK, str(project_dir))
    return module


def _forget_other_project(top: str, project_dir: Path, what: str) -> None:
    """Make way for the project's module where another of the same name is already imported."""
    loaded = sys.modules.get(top)
    if loaded is None:
        return
    file = getattr(loaded, "__file__", None)
    if file is not None and Path(file).resolve().is_relative_to(project_dir):
        return
    if not hasattr(loaded, _PROJECT_MARK):
        raise DistdataError(
            f"{what}: {project_dir / top}(.py) has the name of another module that is in use ({file or 'built in'}). "
            "Rename your file."
        )
    for module in [m for m in sys.modules if m == top or m.startswith(top + ".")]:
        del sys.modules[module]
    # the other project's folder may come first on the path
    sys.path.remove(str(project_dir))
    sys.path.insert(0, str(project_dir))


def _failed(name: str, error: Exception, what: str) -> DistdataError:
    return DistdataError(f"{what}: importing {name!r} failed: {type(error).__name__}: {error}")
