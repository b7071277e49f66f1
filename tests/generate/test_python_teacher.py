import subprocess
import sys

import pytest

from distdata.catalogs.errors import DistdataError
from distdata.generate.teachers.python import load_class, load_object, source_hash

TEACHER = """
class {name}:
    tag = {tag!r}
    def describe(self): ...
    def sample(self, requests): ...
"""


@pytest.fixture(autouse=True)
def leave_imports_alone():
    """Undo what loading does to this process: its path and its modules."""
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def project(tmp_path, name="teach", tag="here", **files):
    tmp_path.mkdir(exist_ok=True)
    (tmp_path / f"{name}.py").write_text(TEACHER.format(name="Mine", tag=tag))
    for file, text in files.items():
        (tmp_path / f"{file}.py").write_text(text)
    return tmp_path


def test_a_class_beside_the_project_file_is_found(tmp_path):
    """`module:Class` loads from the project's folder, wherever the process was started."""
    cls = load_class("teach:Mine", project(tmp_path))
    assert (cls.__name__, cls.tag) == ("Mine", "here")


def test_packages_and_installed_modules_are_found(tmp_path):
    """A dotted path works in the project and in whatever is installed."""
    project(tmp_path)
    package = tmp_path / "lab"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "one.py").write_text(TEACHER.format(name="Deep", tag="lab"))
    assert load_class("lab.one:Deep", tmp_path).tag == "lab"
    assert load_class("distdata.generate.teachers.highway:HighwayTeacher", tmp_path).__name__ == "HighwayTeacher"


def test_a_fresh_process_loads_the_same_class(tmp_path):
    """A worker that knows only the path and the folder gets the class, as Ray's do."""
    project(tmp_path)
    code = (
        "import sys, pathlib; from distdata.generate.teachers.python import load_class\n"
        "print(load_class('teach:Mine', pathlib.Path(sys.argv[1])).tag)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd="/", capture_output=True, text=True, check=True
    )
    assert done.stdout == "here\n"


def test_two_projects_may_use_the_same_module_name(tmp_path):
    """Loading from project A, then B, then A again gives each its own class, submodules included."""
    a, b = project(tmp_path / "a", tag="A"), project(tmp_path / "b", tag="B")
    assert [load_class("teach:Mine", p).tag for p in (a, b, a)] == ["A", "B", "A"]


def test_a_file_that_shadows_a_module_in_use_is_refused(tmp_path):
    """A project file called like a loaded module of somebody else would be ignored; say so instead."""
    with pytest.raises(DistdataError, match=r"json\(\.py\) has the name of another module.*Rename your file"):
        load_class("json:Mine", project(tmp_path, name="json"))


@pytest.mark.parametrize("path", ["teach.Mine", "teach:", ":Mine", "teach:Mine:x", "te ach:Mine", "../teach:Mine", ""])
def test_a_path_of_another_form_is_explained(tmp_path, path):
    """Without exactly one colon between a module and a name, the error shows the form."""
    with pytest.raises(DistdataError, match='write it as "module:Class"'):
        load_class(path, project(tmp_path))


def test_unknown_modules_and_classes_name_the_nearest(tmp_path):
    """A typo in the module or the class is answered with what exists."""
    folder = project(tmp_path)
    with pytest.raises(DistdataError, match=r"no module 'teech' in .* or installed\. Did you mean 'teach'\?"):
        load_class("teech:Mine", folder)
    with pytest.raises(DistdataError, match=r"teach\.py has no 'Mime'\. Did you mean 'Mine'\?"):
        load_class("teach:Mime", folder)


def test_a_module_that_fails_to_import_says_how(tmp_path):
    """The user's own error comes through: a missing package inside the module, a syntax error, an exception."""
    folder = project(
        tmp_path, needs="import not_there_at_all", broken="def f(:\n", raises="raise RuntimeError('no licence')"
    )
    for module, reason in (
        ("needs", "ModuleNotFoundError: No module named 'not_there_at_all'"),
        ("broken", "SyntaxError"),
        ("raises", "RuntimeError: no licence"),
    ):
        with pytest.raises(DistdataError, match=f"importing '{module}' failed: {reason}"):
            load_class(f"{module}:Mine", folder)


def test_only_a_class_with_both_methods_is_a_teacher(tmp_path):
    """A function, or a class that lacks a method, is refused with what it lacks."""
    folder = project(tmp_path, odd="def f(): ...\nclass Half:\n    def describe(self): ...\nclass None_: ...")
    with pytest.raises(DistdataError, match="is a function; it must be a class"):
        load_class("odd:f", folder)
    with pytest.raises(DistdataError, match=r"the class lacks sample\(\)\. A teacher has describe"):
        load_class("odd:Half", folder)
    with pytest.raises(DistdataError, match=r"the class lacks describe\(\) and sample\(\)"):
        load_class("odd:None_", folder)


def test_source_hash_follows_the_file_and_the_options(tmp_path):
    """The same code and options give the same hash in any folder; an edit or another option gives another."""
    base = source_hash(load_class("teach:Mine", project(tmp_path / "a", tag="A")), rate=1)
    cls = load_class("teach:Mine", project(tmp_path / "b", tag="A"))
    assert source_hash(cls, rate=1) == base
    assert source_hash(cls, rate=2) != base
    assert source_hash(load_class("teach:Mine", project(tmp_path / "c", tag="C")), rate=1) != base


def test_source_hash_needs_a_file():
    """A class without a source file can't be told apart from its next edition."""
    cls = type("Typed", (), {"__module__": "__main__x"})
    with pytest.raises(DistdataError, match="Typed: has no source file to hash"):
        source_hash(cls)


def test_load_object_names_the_setting_it_was_given(tmp_path):
    """Seed generators load the same way, and errors name their own setting."""
    folder = project(tmp_path, gen="def seeds(n, salt): return n")
    assert load_object("gen:seeds", folder)(3, "s") == 3
    with pytest.raises(DistdataError, match="seeds generator = 'gen:sedes'"):
        load_object("gen:sedes", folder, what="seeds generator")
