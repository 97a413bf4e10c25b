"""Nothing that arrives can be code: no module that ships unpickles, evaluates, or reads YAML that makes objects."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from services.operator.queue import make_queue
from tests.parsed import parsed
from tests.test_docs import ROOT, tracked
from training.strict_yaml import StrictLoader

SHIPPED = ("protos", "ziya", "services", "training", "cli", "benchmarks")
MODULES = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle"}
# Where one of them is imported although nothing is read with it, and why.
EXCEPTIONS = {"ziya/model/sources.py": "catches pickle.UnpicklingError of torch.load(weights_only=True)"}
SAFE_LOADERS = {"SafeLoader", "CSafeLoader", "StrictLoader"}
CALLS = {"eval", "exec", "compile", "__import__", "yaml.unsafe_load", "yaml.full_load", "os.system", "os.popen"}
CALLS |= {"pickle.load", "pickle.loads", "pickle.Unpickler", "pandas.read_pickle", "torch.jit.load"}


def complaints(source: str, name: str) -> Iterator[str]:
    """What in a module could run what it reads."""
    for node in ast.walk(parsed(source)):
        where = f"{name}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Import | ast.ImportFrom) and name not in EXCEPTIONS:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            yield from (f"{where} imports {one}" for one in names if one.split(".")[0] in MODULES)
        if isinstance(node, ast.Call):
            yield from (f"{where} {words}" for words in _call(node))


def _call(node: ast.Call) -> Iterator[str]:
    called = ast.unparse(node.func)
    options = {option.arg: ast.unparse(option.value) for option in node.keywords}
    if called in CALLS:
        yield f"calls {called}"
    if called == "torch.load" and options.get("weights_only") != "True":
        yield "calls torch.load without weights_only=True"
    if called in ("np.load", "numpy.load") and options.get("allow_pickle", "False") != "False":
        yield f"calls {called} with pickles"
    if called in ("yaml.load", "yaml.load_all"):
        loader = options.get("Loader") or (ast.unparse(node.args[1]) if len(node.args) > 1 else "")
        if loader.rpartition(".")[2] not in SAFE_LOADERS:
            yield f"calls {called} with {loader or 'no loader'}"
    if options.get("shell") == "True":
        yield f"calls {called} through a shell"


def test_no_module_that_ships_runs_what_it_reads() -> None:
    paths = [path for path in tracked("*.py") if path.relative_to(ROOT).parts[0] in SHIPPED]
    assert len(paths) > 100
    for path in paths:
        name = str(path.relative_to(ROOT))
        assert not list(complaints(path.read_text("utf-8"), name))


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import torch\ntorch.load(path)",
        "import torch\ntorch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text)",
        "yaml.load(text, Loader=yaml.Loader)",
        "yaml.unsafe_load(text)",
        "eval(text)",
        "exec(text)",
        "subprocess.run(text, shell=True)",
    ],
)
def test_each_of_these_would_be_found(source: str) -> None:
    assert list(complaints(source, "ziya/new.py"))


def test_exceptions_are_needed_still() -> None:
    for name in EXCEPTIONS:
        assert "pickle" in (ROOT / name).read_text("utf-8")
        assert not [words for words in complaints((ROOT / name).read_text("utf-8"), name) if "import" not in words]


def test_our_own_yaml_reader_makes_no_objects() -> None:
    assert issubclass(StrictLoader, yaml.SafeLoader | yaml.CSafeLoader)
    with pytest.raises(yaml.YAMLError):
        yaml.load("!!python/object/apply:os.getcwd []", StrictLoader)


def test_the_operators_queue_takes_json_alone() -> None:
    app = make_queue("redis://127.0.0.1:1/0")
    assert app.conf.accept_content == ["json"]
    assert app.conf.task_serializer == "json"


def test_no_file_of_pickles_is_shipped() -> None:
    suffixes = {".pkl", ".pickle", ".pt", ".pth", ".bin", ".joblib"}
    assert not [path for path in tracked() if Path(path).suffix in suffixes]
