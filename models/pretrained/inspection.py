"""Finds what would prevent local models from being loaded, before any work: opens every file but reads no weights.

Weight files are read as far as their headers, and compared with the classes that will hold them.
"""

from __future__ import annotations

import threading
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from bootpig.models.pretrained.lora_check import lora_problem, target_problem
from bootpig.models.pretrained.snapshots import complete_folder
from bootpig.models.pretrained.source import PIPELINE, ModelSource, first_line
from bootpig.models.pretrained.weight_choice import Library, choose_weights, read_weights, why_none
from bootpig.models.pretrained.weight_files import (
    DamagedFile,
    check_archive,
    check_readable,
    is_safetensors,
    read_json,
    read_safetensors,
)

_LOCK = threading.Lock()
"""Libraries are imported and classes built by one thread at a time: both change global state for a moment."""

JudgeKind = Literal["clip", "dino", "patches", "siglip", "detector", "safety"]
"""Loaded by `embedders.ClipEmbedder`, `DinoEmbedder` (for its class token, or also for its patches), `SiglipEmbedder`,
`segmenters.ZeroShotDetector`, and `safety.SafetyChecker`."""

_OF: dict[JudgeKind, str] = {
    "clip": "a complete CLIPModel",
    "dino": "a complete ViT with a class token",
    "patches": "a complete ViT with a class token and a feature for each patch",
    "siglip": "a complete SiglipModel or Siglip2Model",
    "detector": "a complete OWL-ViT, OWLv2 or Grounding DINO model",
    "safety": "a complete StableDiffusionSafetyChecker",
}

_Stats = tuple[tuple[str, int, int, int], ...]


def pipeline_problems(source: ModelSource) -> list[str]:
    """What would prevent a diffusers pipeline from being loaded, one line for each component. Like a model of any kind
    in this module, one that is not downloaded yet has no problems."""
    folder = complete_folder(source)
    if folder is None:
        return []
    with _LOCK:
        try:
            parts = _pipeline_parts(folder)
        except DamagedFile as error:
            return [f"{source.field}: {error}"]
        found = [_component_problem(folder, n, *value) for n, value in parts.items() if source.loads.component(n)]
    return [f"{source.field}: {problem}" for problem in found if problem]


def judge_problems(source: ModelSource, kind: JudgeKind) -> list[str]:
    """What would prevent a detector or an embedder from being loaded."""
    folder = complete_folder(source)
    if folder is None:
        return []
    with _LOCK:
        problem = _judge_problem(str(folder), kind, source.loads.pickles, _stats(folder))
    return [] if problem is None else [f"{source.field}: {problem}"]


def sam_problems(source: ModelSource, sam_type: str) -> list[str]:
    """What would prevent `segmenters.BoxSegmenter` from loading a checkpoint."""
    path = Path(source.path)
    if source.sha256 is not None and not path.exists():
        return []
    with _LOCK:
        try:
            problem = _sam_problem(path, sam_type)
        except DamagedFile as error:
            return [f"{source.field}: {error}"]
    return [] if problem is None else [f"{source.field}: {source.source!r} {problem}"]


def trained_problems(field: str, folder: Path, base: ModelSource) -> list[str]:
    """What would prevent the folder of a trained BootPIG model from being loaded.

    Args:
        field: for messages.
        base: its base pipeline, to compare with.
    """
    local = complete_folder(base)
    with _LOCK:
        try:
            info = read_json(folder / "bootpig.json")
            known = local if local is not None and (local / "unet" / "config.json").is_file() else None
            method = info.get("method", "full")
            if method == "lora":
                problem = lora_problem(folder, info, known)
            elif method != "full":
                problem = f"{str(folder)!r} was trained with {method!r}, which this version does not know; update it"
            else:
                rsa = read_safetensors(folder / "rsa.safetensors")
                problem = _component_problem(folder, "reference_unet", "diffusers", "UNet2DConditionModel")
                if problem is None and known is not None:
                    problem = _rsa_problem(folder, known, {name: tensor.shape for name, tensor in rsa.items()})
        except DamagedFile as error:
            problem = str(error)
    return [] if problem is None else [f"{field}: {problem}"]


def target_problems(section: str, base: ModelSource, lora: Any, *, whole_base: bool) -> list[str]:
    """What is wrong with the settings of LoRA for a base, see `lora_check.target_problem`. `section` is the config's,
    for messages."""
    folder = complete_folder(base)
    if folder is None or not (folder / "unet" / "config.json").is_file():
        return []
    with _LOCK:
        problem = target_problem(lora, folder, whole_base=whole_base)
    return [] if problem is None else [f"{section}.{problem}"]


def _pipeline_parts(folder: Path) -> dict[str, tuple[str, str]]:
    """Component → (library, class) of a pipeline's index. Raises DamagedFile if the pipeline class does not exist."""
    import diffusers

    from bootpig.models.pretrained.structure import versions

    index = folder / PIPELINE
    entries = read_json(index)
    parts = {n: v for n, v in entries.items() if isinstance(v, list) and not n.startswith("_")}
    parts = {name: value for name, value in parts.items() if value and value[0] is not None}
    name = entries.get("_class_name")
    kind = getattr(diffusers, name, None) if isinstance(name, str) else None
    if kind is None:
        if isinstance(name, str) and name.startswith("BootPIG"):
            kind = None
        elif isinstance(name, list):
            raise DamagedFile(index, f"names code of its own, {name}, which is not run", "use a pipeline of diffusers")
        else:
            raise DamagedFile(
                index, f"names the pipeline {name!r}, unknown to {versions()}", "update them, or use another"
            )
    else:
        expected, _ = kind._get_signature_keys(kind)
        optional = set(kind._optional_components)
        if lacking := sorted(set(expected) - optional - entries.keys()):
            raise DamagedFile(index, f"lacks {', '.join(lacking)}, which a {name} needs", "restore it")
        parts = {name: value for name, value in parts.items() if name in expected}
    for name, value in parts.items():
        if len(value) != 2 or not all(isinstance(word, str) for word in value):
            raise DamagedFile(index, f"has {name}: {value}, not a library and a class", "restore it")
    return {name: (value[0], value[1]) for name, value in parts.items()}


def _component_problem(pipeline: Path, name: str, library: str, kind: str) -> str | None:
    folder = pipeline / name if (pipeline / name).is_dir() else pipeline
    try:
        return _component_problem_of(str(pipeline), name, library, kind, _stats(folder))
    except OSError as error:
        return f"the folder {str(folder)!r} cannot be read ({first_line(error)}); check its permissions"


def _stats(folder: Path) -> _Stats:
    """The state of a folder's own files, for caches: a changed file is opened again."""
    found = []
    for file in sorted(folder.iterdir()):
        try:
            stat = file.stat()
        except OSError:  # a link that leads nowhere
            stat = file.lstat()
        found.append((file.name, stat.st_size, stat.st_mtime_ns, stat.st_ino))
    return tuple(found)


@lru_cache(maxsize=256)
def _component_problem_of(pipeline: str, name: str, library: str, kind: str, state: _Stats) -> str | None:
    """What would prevent a component of a pipeline from being loaded, in one line."""
    folder = Path(pipeline, name)
    if not folder.is_dir():
        if not (Path(pipeline) / "config.json").is_file():
            return f"{pipeline!r} has no folder {name}, which {PIPELINE} names; complete it or download the model again"
        folder = Path(pipeline)  # as diffusers does
    try:
        return _open_component(folder, library, kind)
    except DamagedFile as error:
        return str(error)
    except Exception as error:  # whatever a library says about a file
        return f"{str(folder)!r} cannot be loaded as a {kind} ({first_line(error)}); give a complete {kind}"


def _open_component(folder: Path, library: str, name: str) -> str | None:
    import diffusers
    import transformers
    from diffusers.pipelines.pipeline_loading_utils import simple_get_class_obj

    from bootpig.models.pretrained.structure import versions

    if (folder / f"{library}.py").is_file():
        return f"{str(folder)!r} is code of its own, {library}.{name}, which is not run; use a pipeline of diffusers"
    try:
        kind = simple_get_class_obj(library, name)
    except (AttributeError, ImportError, ValueError):
        return f"{str(folder)!r} needs {library}.{name}, unknown to {versions()}; update them, or use another model"
    if ".dummy_" in kind.__module__:
        kind()  # raises with the name of the package that is missing
    _check_small_files(folder)
    if issubclass(kind, diffusers.ModelMixin):
        return _open_weights(folder, "diffusers", kind)
    if issubclass(kind, transformers.PreTrainedModel):
        return _open_weights(folder, "transformers", kind, kind.config_class.from_pretrained(str(folder)))
    # ByT5's and others' tokens are bytes or characters, without a file
    if issubclass(kind, transformers.PreTrainedTokenizerBase) and kind.vocab_files_names:
        _check_vocabulary(folder)
    if hasattr(kind, "from_pretrained"):
        kind.from_pretrained(str(folder))  # schedulers, tokenizers, processors: small
    return None


def _check_small_files(folder: Path) -> None:
    """Raises DamagedFile for the first damaged JSON file of a folder, or text file without content."""
    for file in sorted(folder.iterdir()):
        if file.name.startswith(".") or ".index." in file.name:
            continue
        if file.suffix == ".json":
            read_json(file)
        elif file.suffix in (".txt", ".model"):
            check_readable(file)


def _check_vocabulary(folder: Path) -> None:
    """Raises DamagedFile if a tokenizer's vocabulary is missing: some classes load without one, and know no words."""
    names = {file.name for file in folder.iterdir()}
    if "tokenizer.json" in names:
        return
    if "vocab.json" in names and "merges.txt" not in names:
        check_readable(folder / "merges.txt")
    if not any(name.startswith(("vocab", "merges", "tokenizer.model", "tekken")) or "piece" in name for name in names):
        check_readable(folder / "tokenizer.json")


def _open_weights(
    folder: Path,
    library: Library,
    kind: Any,
    config: Any = None,
    *,
    spare: str | None = r"^lm_head\.",
    pickles: bool = False,
) -> str | None:
    """What is wrong with the weights of a diffusers or transformers model, loaded as the class `kind`.

    Args:
        config: the configuration of a transformers model.
        spare: see `structure.transformers_mismatch`.
    """
    from bootpig.models.pretrained.structure import diffusers_mismatch, on_meta, transformers_mismatch

    names = [file.name for file in folder.iterdir()]
    if "transformers_weights" in read_json(folder / "config.json") or "adapter_config.json" in names:
        return None  # loaded from files of other names
    choice = choose_weights(names, library, pickles=pickles)
    if choice is None:
        return why_none(folder, names, library, f"{library}.{kind.__name__}")
    header = read_weights(folder, choice)
    if header is None:
        return None
    if library == "diffusers":
        problem = diffusers_mismatch(kind, folder, on_meta(header), sharded=choice.is_index)
    else:
        problem = transformers_mismatch(kind, config, on_meta(header), spare)
    return None if problem is None else f"the file {str(folder / choice.file)!r} {problem}; {_OTHER}"


_OTHER = "download it again, or give the weights that belong to that config.json"


@lru_cache(maxsize=64)
def _judge_problem(path: str, kind: JudgeKind, pickles: bool, state: _Stats) -> str | None:
    """What would prevent a detector or an embedder from being loaded, in one line."""
    try:
        return _open_judge(Path(path), kind, pickles)
    except DamagedFile as error:
        return str(error)
    except Exception as error:  # whatever a library says about a file
        return f"{path!r} cannot be loaded ({first_line(error)}); {_OF[kind]} is needed"


def _open_judge(folder: Path, kind: JudgeKind, pickles: bool) -> str | None:
    import torch
    import transformers

    auto = "AutoModelForZeroShotObjectDetection" if kind == "detector" else "AutoModel"
    joint = ["AutoImageProcessor", "AutoTokenizer"]
    processors = {"detector": ["AutoProcessor"], "clip": joint, "siglip": joint}
    _check_small_files(folder)
    read_json(folder / "config.json")
    if kind == "safety":
        return _open_safety_checker(folder, pickles)
    config = transformers.AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
    with torch.device("meta"):
        model = getattr(transformers, auto).from_config(config, trust_remote_code=False)
    has_class_token = hasattr(getattr(model, "embeddings", None), "cls_token")
    fits = {
        "clip": isinstance(model, transformers.CLIPModel),
        "dino": has_class_token,
        "patches": has_class_token and isinstance(getattr(config, "patch_size", None), int),
        "siglip": isinstance(model, transformers.SiglipModel | transformers.Siglip2Model),
    }
    if not fits.get(kind, True):
        return f"{str(folder)!r} is a {type(model).__name__}; {_OF[kind]} is needed"
    if not (folder / "processor_config.json").exists():
        check_readable(folder / "preprocessor_config.json")
    if kind not in ("dino", "patches"):
        _check_vocabulary(folder)
    for processor in processors.get(kind, ["AutoImageProcessor"]):
        getattr(transformers, processor).from_pretrained(str(folder), trust_remote_code=False)
    unused = {"clip": r"^logit_scale$", "siglip": r"^logit_(scale|bias)$", "detector": None}
    spare = unused.get(kind, r"^pooler\.")
    return _open_weights(folder, "transformers", type(model), config, spare=spare, pickles=pickles)


def _open_safety_checker(folder: Path, pickles: bool) -> str | None:
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker as Checker
    from transformers import CLIPConfig

    kind = read_json(folder / "config.json").get("model_type")
    if kind not in ("clip", None):
        return f"{str(folder)!r} is a {kind!r} model; {_OF['safety']} is needed"
    return _open_weights(folder, "transformers", Checker, CLIPConfig.from_pretrained(str(folder)), pickles=pickles)


def _sam_problem(path: Path, sam_type: str) -> str | None:
    import torch

    from bootpig.models.pretrained.segmenters import SAM_TYPES, new_sam, wrong_sam_type
    from bootpig.models.pretrained.structure import on_meta, state_mismatch

    if is_safetensors(path):
        tensors = on_meta(read_safetensors(path))
    elif not check_archive(path):
        return None
    else:
        try:
            # weights only: no code of the file is run, and no tensor is read
            tensors = torch.load(path, map_location="meta", weights_only=True)
        except Exception as error:
            raise DamagedFile(
                path, f"cannot be loaded ({first_line(error)})", "give a checkpoint of segment-anything"
            ) from None

    def misfit(kind: str) -> str | None:
        with torch.device("meta"):
            return state_mismatch(new_sam(kind), tensors)

    is_state = isinstance(tensors, dict) and all(isinstance(value, torch.Tensor) for value in tensors.values())
    if is_state and misfit(sam_type) is None:
        return None
    other = next((kind for kind in SAM_TYPES if is_state and misfit(kind) is None), None)
    return wrong_sam_type(sam_type, other)


def _rsa_problem(folder: Path, base: Path, shapes: dict[str, tuple[int, ...]]) -> str | None:
    """Whether a trained model's weights belong to a base with the architecture of `base`."""
    from accelerate import init_empty_weights
    from diffusers import UNet2DConditionModel

    with init_empty_weights():
        unet: Any = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(str(base / "unet")))
    own = {name: tuple(tensor.shape) for name, tensor in unet.state_dict().items()}
    wrong = sorted(name for name, shape in shapes.items() if own.get(name) != shape)
    if wrong:
        return (
            f"{str(folder)!r} was trained on a base with another architecture; {wrong[0]!r} differs; use its own base"
        )
    return None
