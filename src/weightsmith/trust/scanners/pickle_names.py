"""Which names a pickle may import: a list of what tensors and trainer states need. What is on no list is not trusted.

A name is *needed* (tensors, arrays and plain values are made with it), *plain* (a class of a known trainer or library that
holds settings, and that runs nothing when it is made from its state), *module* (a layer of torch, in a model that was
pickled whole), *system* (it reaches the interpreter, the system or a loader: no model needs it) or *unlisted*.
"""

from __future__ import annotations

import re
import sys
from functools import cache, lru_cache
from typing import Literal

Standing = Literal["needed", "plain", "module", "system", "unlisted"]

Pair = tuple[str, str]


def _pairs(module: str, names: str) -> set[Pair]:
    return {(module, name) for name in names.split()}


_STORAGES = ("BFloat16 Bool Byte Char ComplexDouble ComplexFloat Double Float Half Int Long QInt32 QInt8 QUInt2x4 QUInt4x2 "
             "QUInt8 Short")  # fmt: skip
_DTYPES = ("bfloat16 bits16 bits1x8 bits2x4 bits4x2 bits8 bool complex128 complex32 complex64 float16 float32 float64 "
           "float4_e2m1fn_x2 float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz float8_e8m0fnu int1 int16 int2 int3 "
           "int32 int4 int5 int6 int64 int7 int8 qint32 qint8 quint2x4 quint4x2 quint8 uint1 uint16 uint2 uint3 uint32 uint4 "
           "uint5 uint6 uint64 uint7 uint8 half float double short int long cfloat cdouble uint8 strided sparse_coo sparse_csr "
           "per_channel_affine per_channel_affine_float_qparams per_channel_symmetric per_tensor_affine "
           "per_tensor_symmetric contiguous_format channels_last preserve_format jagged")  # fmt: skip
_SCALARS = ("bool bool_ int8 int16 int32 int64 uint8 uint16 uint32 uint64 intp uintp float16 float32 float64 longdouble "
            "complex64 complex128 str_ bytes_ object_ void datetime64 timedelta64 longlong ulonglong intc uintc")  # fmt: skip
_TYPES = "int float str bool list dict tuple object NoneType"
_COLLECTIONS = "OrderedDict Counter defaultdict deque"

#: names that values are made of without being called: dtypes, storages' classes, the types of a factory
NAMED: frozenset[Pair] = frozenset(
    _pairs("torch", _DTYPES)
    | _pairs("torch", " ".join(f"{s}Storage" for s in _STORAGES.split()))
    | _pairs("torch.cuda", " ".join(f"{s}Storage {s}Tensor" for s in _STORAGES.split() if s[0] != "Q"))
    | _pairs("torch", " ".join(f"{s}Tensor" for s in _STORAGES.split() if s[0] != "Q"))
    | {(m, f"{s}Tensor") for m in ("torch.sparse", "torch.cuda.sparse") for s in _STORAGES.split()
       if not s.startswith(("Q", "Complex"))}
    | _pairs("torch", "Tensor")
    | _pairs("torch.storage", "UntypedStorage TypedStorage _UntypedStorage _TypedStorage")
    | _pairs("torch.nn.parameter", "Parameter Buffer")
    | _pairs("numpy", _SCALARS)
    | _pairs("numpy", "absolute abs amax amin any all cbrt ceil clip cos exp exp2 expm1 floor log log10 log1p log2 max maximum "
             "mean median min minimum nan_to_num ravel reciprocal sign sin sqrt square std sum tanh var")
    | _pairs("scipy._lib.array_api_compat.numpy._aliases", "asarray")
    | _pairs("builtins", _TYPES)
    | _pairs("typing", "Any Optional Union List Dict Tuple")
)  # fmt: skip

#: functions that an estimator keeps and calls with data: scores, kernels and tests
_KEPT: tuple[tuple[re.Pattern[str], re.Pattern[str]], ...] = (
    (re.compile(r"sklearn\.metrics\._(?:classification|regression|ranking)|sklearn\.metrics\.cluster\._(?:un)?supervised"),
     re.compile(r"[a-z]\w*_(?:score|error|loss|coefficient|ratio|deviance)")),
    (re.compile(r"sklearn\.metrics\.pairwise"), re.compile(r"[a-z]\w*_(?:kernel|distances|similarity)")),
    (re.compile(r"sklearn\.feature_selection\._(?:univariate_selection|mutual_info)"),
     re.compile(r"f_\w+|chi2|r_regression|mutual_info_\w+")),
    (re.compile(r"sklearn\.cluster\._kmeans"), re.compile(r"_kmeans_single_[a-z]+")),
)  # fmt: skip

#: names that are called to make tensors, arrays and plain values
CALLED: frozenset[Pair] = frozenset(
    _pairs("torch", "Size device")
    | _pairs("torch._tensor", "_rebuild_from_type_v2")
    | _pairs("torch._utils", "_rebuild_tensor _rebuild_tensor_v2 _rebuild_tensor_v3 _rebuild_parameter "
             "_rebuild_parameter_with_state _rebuild_qtensor _rebuild_sparse_tensor _rebuild_sparse_csr_tensor "
             "_rebuild_nested_tensor _rebuild_meta_tensor_no_storage _rebuild_wrapper_subclass "
             "_rebuild_device_tensor_from_cpu_tensor _rebuild_device_tensor_from_numpy _rebuild_xla_tensor")
    | _pairs("torch.serialization", "_get_layout")
    | _pairs("torch.storage", "_load_from_bytes")
    | _pairs("torch.nn.parameter", "Parameter")
    | _pairs("torch", "Tensor")
    | _pairs("torch.jit._pickle", "build_intlist build_doublelist build_boollist build_tensorlist restore_type_tag "
             "build_tensor_from_id")
    | {(f"numpy.{c}.{m}", n) for c in ("core", "_core")
       for m, n in (("multiarray", "_reconstruct"), ("multiarray", "scalar"), ("numeric", "_frombuffer"))}
    | _pairs("numpy", "ndarray dtype memmap matrix recarray record")
    | _pairs("numpy.rec", "recarray record")
    | {(m, "_mareconstruct") for m in ("numpy.ma.core", "numpy.ma")}
    | {(m, "MaskedArray") for m in ("numpy.ma.core", "numpy.ma")}
    | _pairs("numpy.random._pickle", "__randomstate_ctor __generator_ctor __bit_generator_ctor")
    | {(f"numpy.random._{m.lower()}", m) for m in ("MT19937", "PCG64", "Philox", "SFC64")}
    | _pairs("numpy.random._pcg64", "PCG64 PCG64DXSM")
    | _pairs("numpy.random.bit_generator", "SeedSequence __pyx_unpickle_SeedSequence")
    | {(f"{p}joblib.numpy_pickle", "NumpyArrayWrapper") for p in ("", "sklearn.externals.")}
    | _pairs("collections", _COLLECTIONS)
    | _pairs("builtins", "set frozenset bytearray complex slice range bytes type getattr")
    | _pairs("builtins", _TYPES)
    | _pairs("_codecs", "encode")
    | _pairs("copyreg", "_reconstructor __newobj__")
    | _pairs("datetime", "date datetime time timedelta timezone")
    | _pairs("decimal", "Decimal")
    | _pairs("fractions", "Fraction")
    | _pairs("uuid", "UUID")
    | _pairs("pathlib", "Path PosixPath WindowsPath PurePath PurePosixPath PureWindowsPath")
    | _pairs("pathlib._local", "Path PosixPath WindowsPath PurePath PurePosixPath PureWindowsPath")
)  # fmt: skip

#: enumerations of trainers, whose members are written as a call of the class with one value
_ENUMS: frozenset[Pair] = frozenset(
    _pairs("transformers.trainer_utils", "IntervalStrategy SaveStrategy EvaluationStrategy HubStrategy HPSearchBackend "
             "SchedulerType FSDPOption ShardedDDPOption")
    | _pairs("transformers.training_args", "OptimizerNames ParallelMode")
    | _pairs("transformers.debug_utils", "DebugOption")
    | _pairs("accelerate.utils.dataclasses", "DDPCommunicationHookType DistributedType SageMakerDistributedType "
             "FP8BackendType ComputeEnvironment DynamoBackend LoggerType PrecisionType RNGType CustomDtype")
    | _pairs("torch.distributed.fsdp.api", "ShardingStrategy BackwardPrefetch StateDictType")
    | _pairs("torch.distributed.fsdp.fully_sharded_data_parallel", "ShardingStrategy BackwardPrefetch StateDictType")
    | _pairs("torch.distributed.checkpoint.metadata", "_MEM_FORMAT_ENCODING")
    | _pairs("sentence_transformers.training_args", "BatchSamplers MultiDatasetBatchSamplers")
    | _pairs("deepspeed.runtime.zero.config", "ZeroStageEnum")
    | _pairs("megatron.core.enums", "ModelType")
    | _pairs("megatron.core.transformer.enums", "AttnBackend AttnMaskType AttnType LayerType")
    | _pairs("peft.utils.peft_types", "PeftType TaskType")
    | _pairs("torchao.quantization.quant_primitives", "MappingType ZeroPointDomain TorchAODType")
)  # fmt: skip

#: plain classes of settings and of trainers' states, by exact name
_PLAIN: frozenset[Pair] = frozenset(
    _pairs("argparse", "Namespace")
    | _pairs("types", "SimpleNamespace")
    | _pairs("transformers.trainer_pt_utils", "AcceleratorConfig")
    | {(f"transformers.{m}deepspeed", n) for m in ("", "integrations.")
       for n in ("HfDeepSpeedConfig", "HfTrainerDeepSpeedConfig")}
    | _pairs("accelerate.state", "PartialState AcceleratorState GradientState")
    | _pairs("accelerate.utils.dataclasses", "DeepSpeedPlugin FullyShardedDataParallelPlugin TorchDynamoPlugin "
             "GradientAccumulationPlugin DataLoaderConfiguration ProjectConfiguration MegatronLMPlugin")
    | _pairs("torch.distributed.fsdp.api", "MixedPrecision CPUOffload FullStateDictConfig ShardedStateDictConfig")
    | _pairs("omegaconf.dictconfig", "DictConfig")
    | _pairs("omegaconf.listconfig", "ListConfig")
    | _pairs("omegaconf.base", "ContainerMetadata Metadata Node Container")
    | _pairs("omegaconf.nodes", "AnyNode StringNode IntegerNode FloatNode BooleanNode EnumNode ValueNode PathNode BytesNode")
    | {(f"{p}.utilities.parsing", "AttributeDict") for p in ("pytorch_lightning", "lightning.pytorch")}
    | {(f"{p}.utilities.data", "AttributeDict") for p in ("lightning_fabric", "lightning.fabric")}
    | _pairs("yacs.config", "CfgNode") | _pairs("fvcore.common.config", "CfgNode") | _pairs("easydict", "EasyDict")
    | _pairs("torch.distributed.checkpoint.metadata", "Metadata TensorStorageMetadata BytesStorageMetadata TensorProperties "
             "ChunkStorageMetadata MetadataIndex StorageMeta")
    | _pairs("torch.distributed.checkpoint.filesystem", "_StorageInfo _StoragePrefix")
    | _pairs("torch.distributed.tensor", "DTensor")
    | _pairs("torch.distributed.tensor._dtensor_spec", "DTensorSpec TensorMeta")
    | _pairs("torch.distributed.tensor.placement_types", "Shard Replicate Partial _StridedShard")
    | _pairs("torch.distributed.device_mesh", "DeviceMesh")
    | _pairs("tiktoken.core", "Encoding")
    | _pairs("deepspeed.runtime.fp16.loss_scaler", "LossScaler DynamicLossScaler")
    | _pairs("deepspeed.utils.tensor_fragment", "fragment_address")
    | _pairs("sklearn.utils._bunch", "Bunch") | _pairs("sklearn.utils", "Bunch")
    | _pairs("sklearn.utils.deprecation", "DeprecationDict")
    | _pairs("scipy.interpolate._bsplines", "BSpline")
)  # fmt: skip

#: plain classes and functions that are called with what they hold
_WITH_ARGUMENTS: frozenset[Pair] = frozenset(
    _pairs("sklearn.tree._tree", "Tree")
    | {(m, f"Array{n}DExtensionType") for m in ("datasets.features.features", "datasets.features") for n in range(2, 6)}
    | _pairs("sklearn.neighbors._kd_tree", "newObj KDTree KDTree64 KDTree32")
    | _pairs("sklearn.neighbors._ball_tree", "newObj BallTree BallTree64 BallTree32")
    | _pairs("sklearn.metrics._dist_metrics", "newObj")
    | _pairs("sklearn.linear_model._sgd_fast", "Hinge SquaredHinge ModifiedHuber EpsilonInsensitive SquaredEpsilonInsensitive Log "
             "Huber SquaredLoss")
    | _pairs("sklearn._loss._loss", "CyHalfSquaredError CyHalfBinomialLoss CyHalfMultinomialLoss CyHalfPoissonLoss "
             "CyHalfGammaLoss CyAbsoluteError CyPinballLoss CyHuberLoss CyExponentialLoss CyHalfTweedieLoss "
             "CyHalfTweedieLossIdentity")
    | _pairs("pandas._libs.tslibs.timestamps", "_unpickle_timestamp")
    | _pairs("pandas._libs.tslibs.nattype", "_nat_unpickle __nat_unpickle")
    | {(m, n) for m in ("pandas.core.internals.managers", "pandas.core.internals") for n in ("BlockManager", "SingleBlockManager")}
    | _pairs("pandas._libs.internals", "_unpickle_block BlockPlacement")
    | _pairs("pandas._libs.interval", "Interval") | _pairs("pandas._libs.tslibs.period", "Period")
    | _pairs("pandas._libs.sparse", "IntIndex BlockIndex") | _pairs("pandas.core.arrays.string_", "StringDtype")
    | _pairs("pandas.core.dtypes.dtypes", "CategoricalDtype DatetimeTZDtype IntervalDtype PeriodDtype SparseDtype")
    | _pairs("pyarrow.lib", "_restore_array py_buffer type_for_alias")
    | _pairs("pytz", "_p _UTC") | _pairs("zoneinfo", "ZoneInfo._unpickle")
    | _pairs("pandas._libs.tslibs.timedeltas", "_timedelta_unpickle")
    | _pairs("pandas._libs.tslibs.offsets", "Day Hour Minute Second Milli Micro Nano BusinessDay BusinessHour Week MonthEnd "
             "MonthBegin SemiMonthEnd SemiMonthBegin BusinessMonthEnd BusinessMonthBegin QuarterEnd QuarterBegin BQuarterEnd "
             "BQuarterBegin YearEnd YearBegin BYearEnd BYearBegin WeekOfMonth LastWeekOfMonth")
)  # fmt: skip

#: pandas' own functions that make an instance of the class that is handed to them, with what comes behind it
_OF_A_CLASS: frozenset[Pair] = frozenset(
    {(f"pandas.{c}indexes.base", "_new_Index") for c in ("core.", "")}
    | {(f"pandas.{m}", "_new_DatetimeIndex") for m in ("core.indexes.datetimes", "tseries.index")}
    | _pairs("pandas.core.indexes.interval", "_new_IntervalIndex")
    | {(f"pandas.{m}", "_new_PeriodIndex") for m in ("core.indexes.period", "tseries.period")}
    | _pairs("pandas._libs.arrays", "__pyx_unpickle_NDArrayBacked")
    | _pairs("pandas._libs.interval", "__pyx_unpickle_IntervalMixin")
)  # fmt: skip

#: plain by pattern: the settings classes of the trainers, and estimators, which keep their state in their ``__dict__``
_PLAIN_PATTERNS: tuple[tuple[re.Pattern[str], re.Pattern[str]], ...] = (
    (re.compile(r"(?:transformers|trl|sentence_transformers|setfit|llamafactory|axolotl|swift|optimum)\.(?:[a-z_]\w*\.)*"
                r"\w*(?:args|arguments|config|builder|hparams)\w*"),
     re.compile(r"[A-Z]\w*(?:Arguments|Config|Args)")),
    (re.compile(r"sklearn\.(?!externals|datasets|utils|_|inspection|conftest|tests)(?:[a-z_]\w*\.)*[a-z_]\w*"),
     re.compile(r"_?[A-Z]\w*")),
    (re.compile(r"sklearn\._loss\.(?:loss|link)"), re.compile(r"[A-Z]\w*")),
    (re.compile(r"pandas\.core\.(?:arrays\.(?:[a-z]\w*\.)?[a-z]\w*|dtypes\.dtypes)"),
     re.compile(r"[A-Z]\w*(?:Array|Dtype)|Categorical")),
    (re.compile(r"pandas\.(?:core\.)?indexes\.[a-z]\w*"), re.compile(r"(?:[A-Z]\w*)?Index|Frozen(?:List|NDArray)")),
    (re.compile(r"pandas\.core\.internals(?:\.blocks)?"), re.compile(r"[A-Z]\w*Block")),
    (re.compile(r"pandas\.core\.(?:frame|series|sparse\.\w+)"), re.compile(r"(?:Sparse)?(?:DataFrame|Series)")),
    (re.compile(r"pandas\._libs\.tslibs\.offsets|pandas\.tseries\.offsets"), re.compile(r"[A-Z]\w*")),
    (re.compile(r"pandas\._libs\.missing"), re.compile(r"NA|NAType|C_NAType")),
    (re.compile(r"dateutil\.relativedelta"), re.compile(r"relativedelta")),
    (re.compile(r"scipy\.sparse\._?[a-z]+"), re.compile(r"[a-z]{3}_(?:matrix|array)")),
    (re.compile(r"torchao\.(?:dtypes|quantization|prototype)(?:\.[a-z_]\w*)*"),
     re.compile(r"[A-Z]\w*(?:Tensor|Layout|Impl|Config)")),
    (re.compile(r"torchao\.quantization\.(?:quant_api|utils)"), re.compile(r"_\w*quant\w*")),
    (re.compile(r"peft\.tuners\.(?:[a-z]\w*\.)*config"), re.compile(r"[A-Z]\w*Config")),
)  # fmt: skip
_LAYERS = re.compile(r"torch\.nn\.modules\.[a-z]\w*")
_CAPITALISED = re.compile(r"[A-Z]\w*")

#: packages that are no part of the interpreter's library and whose loaders, shells and test tools run what they are given
_SYSTEM = frozenset({
    "pip", "setuptools", "distutils", "pkg_resources", "wheel", "_distutils_hack", "IPython", "ipykernel", "pytest",
    "_pytest", "py", "nose", "test", "dill", "cloudpickle", "pickle5", "marshal", "commands", "popen2", "__builtin__",
    "builtins", "numpy.testing", "numpy.f2py", "numpy.distutils", "numpy.lib", "numpy.load", "numpy.ctypeslib",
    "torch.hub", "torch.jit", "torch.utils", "torch._dynamo", "torch._inductor", "torch.package",
    "torch.distributed.launch", "torch.serialization", "torch.testing", "torch.fx", "torch.cpp_extension", "torch.ao",
    "torch.classes", "torch.ops", "torch.multiprocessing", "torch.compiler", "joblib.numpy_pickle",
    "joblib.externals", "joblib.parallel", "pandas.io", "pandas.core.computation", "pandas.compat", "paramiko",
    "fabric", "invoke", "sh", "plumbum", "pexpect", "ptyprocess", "win32api", "win32com", "requests", "urllib3",
    "httpx", "aiohttp", "gevent", "eventlet", "tornado", "django", "flask", "twisted", "celery", "jinja2", "mako",
    "lxml", "yaml", "jsonpickle", "billiard", "multiprocess", "psutil", "cffi", "tensorflow", "keras", "fickling",
})  # fmt: skip


@cache
def py2_names() -> tuple[dict[str, str], dict[Pair, Pair]]:
    """Modules and names of Python 2 that unpicklers read as those of Python 3, for streams before protocol 3."""
    from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING

    return IMPORT_MAPPING, NAME_MAPPING


def readings(module: str, name: str) -> list[Pair]:
    """What a name may become when it is imported: itself, and what it was called in Python 2."""
    modules, names = py2_names()
    mapped = names.get((module, name)) or (modules.get(module, module), name)
    if module in modules and module not in sys.stdlib_module_names:
        return [mapped]  # there is no such module any more
    return [(module, name)] if mapped == (module, name) else [(module, name), mapped]


_WORST: tuple[Standing, ...] = ("needed", "plain", "module", "unlisted", "system")


@lru_cache(maxsize=4096)
def standing_of(module: str, name: str) -> Standing:
    """How far a name is trusted; of its readings the worst counts."""
    if len(module) > 200 or len(name) > 200:
        return "system"
    return max((_standing(*pair) for pair in readings(module, name)), key=_WORST.index)


def _standing(module: str, name: str) -> Standing:
    pair = (module, name)
    if pair in CALLED or pair in NAMED or any(m.fullmatch(module) and n.fullmatch(name) for m, n in _KEPT):
        return "needed"
    if any(pair in names for names in (_PLAIN, _ENUMS, _WITH_ARGUMENTS, _OF_A_CLASS)):
        return "plain"
    if any(m.fullmatch(module) and n.fullmatch(name) for m, n in _PLAIN_PATTERNS):
        return "plain"
    if _LAYERS.fullmatch(module) and _CAPITALISED.fullmatch(name):
        return "module"
    parts = module.split(".")
    if parts[0] in sys.stdlib_module_names or any(".".join(parts[:n]) in _SYSTEM for n in (1, 2, 3)):
        return "system"
    return "system" if f"{module}.{name.split('.')[0]}" in _SYSTEM else "unlisted"


def is_called(module: str, name: str) -> bool:
    """Whether a needed name may be called, in every reading of it."""
    return all(pair in CALLED for pair in readings(module, name))


def is_enum(module: str, name: str) -> bool:
    """Whether a plain name is a known enumeration."""
    return (module, name) in _ENUMS


def takes_arguments(module: str, name: str) -> bool:
    """Whether a plain name is called with arguments by its own library."""
    return (module, name) in _WITH_ARGUMENTS


def takes_a_class(module: str, name: str) -> bool:
    """Whether a plain name makes an instance of its first argument."""
    return (module, name) in _OF_A_CLASS
