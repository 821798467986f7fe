"""Pickles as honest programs write them: each by the program itself, none of them may raise more than a note."""

from __future__ import annotations

import datetime
import decimal
import io
import pathlib
import pickle
import random
import uuid
from argparse import Namespace
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from typing import Any

from . import Case
from .assembly import put
from .pickles_torch import BIN, saved, sequence, tarred

Made = Callable[[], bytes]


def good(name: str, data: bytes | Made, file: str = BIN, *, needs: tuple[str, ...] = ("torch",)) -> Case:
    """A clean case of one file."""
    return Case(f"honest-pickle-{name}", put(data, file), needs=needs)


def _state() -> dict[str, Any]:
    import torch

    torch.manual_seed(1)
    tied = torch.randn(6, 4)
    big = torch.randn(3, 8)
    return {
        "embed.weight": tied, "lm_head.weight": tied, "half": torch.randn(5).half(), "bf16": torch.randn(3, 3).bfloat16(),
        "double": torch.randn(2).double(), "int": torch.arange(3), "byte": torch.ones(3, dtype=torch.uint8),
        "bool": torch.tensor([True, False]), "scalar": torch.tensor(3.0), "empty": torch.empty(0, 4), "view": big[:, 2:5],
        "transposed": big.t(), "parameter": torch.nn.Parameter(torch.randn(2)), "complex": torch.randn(2, dtype=torch.complex64),
        "fp8": torch.randn(4).to(torch.float8_e4m3fn), "meta": OrderedDict(version=1),
    }  # fmt: skip


def _ordered(**options: Any) -> Made:
    def make() -> bytes:
        import torch

        return saved(torch.nn.TransformerEncoderLayer(8, 2, 16).state_dict(), **options)

    return make


def _optimizer(kind: str) -> Made:
    def make() -> bytes:
        import torch

        layer = torch.nn.Linear(3, 2)
        optimizer = getattr(torch.optim, kind)(layer.parameters(), lr=0.1)
        layer(torch.ones(1, 3)).sum().backward()
        optimizer.step()
        return saved(optimizer.state_dict())

    return make


def _scheduler() -> bytes:
    import torch

    optimizer = torch.optim.SGD(torch.nn.Linear(1, 1).parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    return saved(schedule.state_dict())


def _rng() -> bytes:
    import numpy as np
    import torch

    return saved({"python": random.getstate(), "numpy": np.random.get_state(), "cpu": torch.get_rng_state(), "cuda": []})


def _training_args() -> bytes:
    from transformers import TrainingArguments

    return saved(TrainingArguments("out", report_to=[], use_cpu=True, lr_scheduler_type="cosine", eval_strategy="no"))


def _adapter() -> bytes:
    import torch
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q_proj = torch.nn.Linear(4, 4)

        def forward(self, x: Any) -> Any:
            return self.q_proj(x)

    return saved(get_peft_model_state_dict(get_peft_model(Net(), LoraConfig(target_modules=["q_proj"], r=2))))


def _lightning() -> bytes:
    import torch

    return saved({
        "epoch": 3, "global_step": 10, "pytorch-lightning_version": "2.4.0", "state_dict": {"w": torch.ones(2)},
        "loops": {"fit": {"state": Counter(a=1)}}, "callbacks": {"ModelCheckpoint": {"best": torch.tensor(0.5), "path": "x.ckpt"}},
        "hyper_parameters": Namespace(lr=0.1, layers=[1, 2], path=pathlib.PurePosixPath("a/b")),
        "when": datetime.datetime(2024, 1, 2, tzinfo=datetime.UTC), "betas": defaultdict(list, a=[1]),
    })  # fmt: skip


def _odd_tensors() -> bytes:
    import torch

    sparse = torch.sparse_coo_tensor(torch.tensor([[0, 1]]), torch.ones(2), (3,))
    quantised = torch.quantize_per_tensor(torch.randn(4), 0.1, 0, torch.qint8)
    return saved({"sparse": sparse, "quantised": quantised, "dtype": torch.bfloat16, "size": torch.Size([1, 2]),
                  "device": torch.device("cpu"), "meta": torch.empty(2, device="meta")})  # fmt: skip


def _checkpoint_metadata() -> bytes:
    """The index that torch's distributed checkpoints keep beside their shards."""
    import tempfile

    import torch
    from torch.distributed import checkpoint

    with tempfile.TemporaryDirectory() as folder:
        checkpoint.save({"w": torch.ones(4, 4), "step": 3}, checkpoint_id=folder, no_dist=True)
        return (pathlib.Path(folder) / ".metadata").read_bytes()


def _plain(protocol: int) -> Made:
    def make() -> bytes:
        import numpy as np

        value = {
            "text": "ä\n\u2028", "bytes": b"\x80\x04.", "numbers": [1, -2, 1 << 40, 1 << 90, 2.5, 1j, True, None],
            "tuple": (1, (2, (3, (4,)))), "set": {1, 2}, "frozen": frozenset([3]), "bytearray": bytearray(b"xy"),
            "slice": slice(1, 2),
            "range": range(3), "array": np.arange(6.0).reshape(2, 3), "scalar": np.float32(2), "text array": np.array(["ab", "c"]),
            "objects": np.array([1, None, "x"], dtype=object), "record": np.zeros(2, dtype=[("a", "<f4"), ("b", "<i8")]),
            "when": np.datetime64("2024-01-01"), "masked": np.ma.masked_array([1, 2], [True, False]),
            "deque": deque([1]), "decimal": decimal.Decimal("1.5"), "uuid": uuid.UUID(int=5), "type": type(None), "dtype": float,
            "rng": np.random.RandomState(3), "generator": np.random.default_rng(3), "path": pathlib.PurePosixPath("x"),
        }  # fmt: skip
        return pickle.dumps(value, protocol=protocol)

    return make


def _plain_tensors(protocol: int) -> Made:
    def make() -> bytes:
        import torch

        return pickle.dumps({"w": torch.randn(3, 3), "long": torch.randn(200, 200)}, protocol=protocol)

    return make


def _long_plain() -> bytes:
    tokens = {f"token {i}": [i, "x" * (i % 50)] for i in range(30_000)}
    return pickle.dumps({**tokens, "blob": b"\x00" * 300_000, "text": "y" * 200_000})


def _joblib(value: Callable[[], Any], compress: Any = 0) -> Made:
    def make() -> bytes:
        import joblib

        file = io.BytesIO()
        joblib.dump(value(), file, compress=compress)
        return file.getvalue()

    return make


def _arrays() -> Any:
    import numpy as np

    return {"w": np.random.default_rng(0).normal(size=(50, 30)), "objects": np.array(["a", None, {"b": 1}], dtype=object),
            "fortran": np.asfortranarray(np.ones((3, 2))), "text": np.array(["x", "yy"]), "list": [np.arange(3)] * 2,
            "bool": np.array([True]), "empty": np.zeros((0, 3)), "record": np.zeros(2, dtype=[("a", "<f4")])}  # fmt: skip


def _estimators() -> Any:
    import numpy as np
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    x, y = np.random.default_rng(0).normal(size=(20, 3)), np.arange(20) % 2
    text = make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(["one two", "three four"], [0, 1])
    return [make_pipeline(StandardScaler(), LogisticRegression()).fit(x, y), RandomForestClassifier(3).fit(x, y), SVC().fit(x, y),
            KNeighborsClassifier(2, algorithm="kd_tree").fit(x, y), text]  # fmt: skip


def _more_estimators() -> Any:
    """Estimators with private parts, losses in compiled code, and functions that they keep."""
    import numpy as np
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.cluster import BisectingKMeans
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.feature_selection import SelectKBest, mutual_info_classif
    from sklearn.linear_model import LogisticRegression, SGDClassifier
    from sklearn.metrics import f1_score, make_scorer
    from sklearn.model_selection import GridSearchCV
    from sklearn.preprocessing import FunctionTransformer, SplineTransformer

    x, y = np.abs(np.random.default_rng(0).normal(size=(40, 3))), np.arange(40) % 2
    searched = GridSearchCV(LogisticRegression(), {"C": [1, 2]}, scoring=make_scorer(f1_score), cv=2)
    fitted = [searched, SGDClassifier(), CalibratedClassifierCV(), BisectingKMeans(2), HistGradientBoostingClassifier(max_iter=3),
              SelectKBest(k=2), SelectKBest(mutual_info_classif, k=2), FunctionTransformer(np.log1p), SplineTransformer()]
    return [e.fit(x, y) for e in fitted]


def _estimators_plain() -> bytes:
    return pickle.dumps(_estimators())


def _cursor_of_old() -> bytes:
    """What Python 2 with numpy wrote."""
    return (b"\x80\x02}q\x01U\x01wq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04K\x00\x85U\x01b\x87"
            b"R(K\x01K\x02\x85cnumpy\ndtype\nq\x05U\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x08"
            b"\x00\x00\x80\x3f\x00\x00\x00\x40tbs.")  # fmt: skip


BENIGN: list[Case] = [
    good("state", lambda: saved(_state())),
    good("state-sequence", lambda: saved({k: v for k, v in _state().items() if k != "fp8"}, legacy=True)),
    good("state-protocol-4", lambda: saved(_state(), pickle_protocol=4)),
    good("layers", _ordered()),
    good("layers-sequence", _ordered(legacy=True)),
    good("one-tensor", lambda: saved(_state()["bf16"]), "tensor.pt"),
    good("list-of-tensors", lambda: saved(list(_state().values())), "tensors.pt"),
    good("sequence-by-hand", sequence()),
    good("first-format", tarred, "model.pth"),
    *(good(f"optimizer-{kind.lower()}", _optimizer(kind), "optimizer.pt") for kind in ("AdamW", "SGD", "Adafactor")),
    good("scheduler", _scheduler, "scheduler.pt"),
    good("rng-state", _rng, "rng_state.pth"),
    good("training-args", _training_args, "training_args.bin", needs=("torch", "transformers")),
    good("adapter", _adapter, "adapter_model.bin", needs=("torch", "peft")),
    good("checkpoint-metadata", _checkpoint_metadata, ".metadata"),
    good("lightning", _lightning, "last.ckpt"),
    good("odd-tensors", _odd_tensors, "tensors.pt"),
    *(good(f"plain-{n}", _plain(n), "data.pkl", needs=()) for n in range(6)),
    *(good(f"plain-tensors-{n}", _plain_tensors(n), "tensors.pkl") for n in (2, 4)),
    good("long-plain", _long_plain, "vocabulary.pkl", needs=()),
    good("python-2", _cursor_of_old(), "old.pkl", needs=()),
    good("joblib", _joblib(_arrays), "data.joblib", needs=("joblib",)),
    good("joblib-zlib", _joblib(_arrays, 3), "data.joblib", needs=("joblib",)),
    good("joblib-gzip", _joblib(_arrays, ("gzip", 3)), "data.joblib.gz", needs=("joblib",)),
    good("joblib-estimators", _joblib(_estimators), "model.joblib", needs=("joblib", "sklearn")),
    good("joblib-more-estimators", _joblib(_more_estimators), "model.joblib", needs=("joblib", "sklearn")),
    good("estimators", _estimators_plain, "model.pkl", needs=("sklearn",)),
]  # fmt: skip
