"""Finds and checks the models of a rival before anything is drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bootpig.models.pretrained.inspection import pipeline_problems
from bootpig.models.pretrained.snapshots import cached_folder
from bootpig.models.pretrained.source import BASE, PIPELINE, ModelError, ModelSource, local_path
from bootpig.models.pretrained.sources import resolve, resolve_all
from bootpig.stages.evaluate.prompts import OBJECT, with_phrase
from bootpig.stages.evaluate.rivals.config import SUBJECT, RivalConfig
from bootpig.stages.evaluate.subjects import Subject

if TYPE_CHECKING:
    from bootpig.models.painters.adapters import IPAdapterFiles
    from bootpig.models.painters.family import Configs

_NAMED = 5
"""Maximum number of subjects that one message names."""


class Rival:
    """A rival and its models."""

    def __init__(self, config: RivalConfig, number: int, section: str = "evaluate") -> None:
        """
        Args:
            number: which of the rivals it is.
            section: section of the configuration that has them, for messages.
        """
        self.config = config
        self.key = f"rivals.{number}"
        """Beginning of the names of its models."""
        self.field = f"{section}.rivals.{config.name}"

    def per_subject(self) -> dict[str, str]:
        """The settings with a path for each subject."""
        c = self.config
        values = {"model": c.model, "lora": c.lora, "textual_inversion": c.textual_inversion}
        return {name: value for name, value in values.items() if value is not None and SUBJECT in value}

    def sources(self, subjects: Sequence[Subject]) -> dict[str, ModelSource]:
        """Its models, by name: `rivals.0.model`, and for each subject `rivals.0.lora.dog6`.

        Raises:
            ModelError: a model is missing; one line for each setting.
        """
        c, problems = self.config, []
        lookups: dict[str, Callable[[], ModelSource]] = {}
        for name, value in self.per_subject().items():
            paths = {subject.name: value.replace(SUBJECT, subject.name) for subject in subjects}
            if missing := [subject for subject, path in paths.items() if local_path(path) is None]:
                more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
                problems.append(
                    f"{self.field}.{name}: {value!r} does not exist for {len(missing)} of {len(paths)} subjects: "
                    f"{', '.join(missing[:_NAMED])}{more}; train them, or remove this rival"
                )
            for subject, path in paths.items():
                lookups[f"{self.key}.{name}.{subject}"] = lambda name=name, path=path: self._found(name, path)  # type: ignore[misc]
        if problems:
            raise ModelError("\n".join(problems))
        name, shared = ("model", c.model) if c.base is None else ("base", c.base)
        if shared is not None and SUBJECT not in shared:
            lookups[f"{self.key}.model"] = lambda: resolve(f"{self.field}.{name}", shared, c.revision, PIPELINE, BASE)
        if (adapter := c.ip_adapter) is not None:
            field = f"{self.field}.ip_adapter"
            lookups[f"{self.key}.ip_adapter"] = lambda: resolve(field, adapter, c.ip_adapter_revision)
        return resolve_all("evaluate", lookups)

    def problems(self, subjects: Sequence[Subject], sources: dict[str, ModelSource]) -> list[str]:
        """What would prevent the models from being loaded and called, one line each, without reading weights."""
        if (shared := sources.get(f"{self.key}.model")) is not None:
            return self._pipeline_problems(shared) or self._adapter_problems(shared, subjects, sources)
        found = []
        for subject in subjects:
            found += self._pipeline_problems(sources[f"{self.key}.model.{subject.name}"])
        return found

    def prompts(self, subject: Subject) -> tuple[str, ...]:
        """A subject's prompts as this rival gets them, in order."""
        if (phrase := self.config.phrase) is None:
            return subject.prompts
        phrase = phrase.format(**{"class": subject.object, "token": self.config.token or ""})
        return tuple(with_phrase(template, phrase) for template in subject.templates)

    def warnings(self, subjects: Sequence[Subject]) -> list[str]:
        """One line if prompts do not name the class, so that the phrase is put in front of them."""
        lost = [prompt for subject in subjects for prompt in subject.templates if OBJECT not in prompt]
        if self.config.phrase is None or not lost:
            return []
        return [
            f"{self.field}.prompt: {len(lost)} prompts do not name the class, such as {lost[0][:80]!r}; the phrase is "
            "put in front of them"
        ]

    def _found(self, name: str, path: str) -> ModelSource:
        field = f"{self.field}.{name}"
        return resolve(field, path, None, PIPELINE, BASE) if name == "model" else resolve(field, path)

    def _pipeline_problems(self, source: ModelSource) -> list[str]:
        from bootpig.models.painters.checks import read_configs

        if problems := pipeline_problems(source):
            return problems
        kind = class_of(read_configs(source))
        problem = None if kind is None else self._kind_problem(kind)
        return [] if problem is None else [f"{source.field}: {problem}"]

    def _kind_problem(self, kind: type) -> str | None:
        """Why a pipeline class cannot be this rival, and the fix."""
        import inspect

        from bootpig.models.painters.editing import editing_problem
        from bootpig.models.painters.painter import family_of

        c, name = self.config, kind.__name__
        takes = inspect.signature(kind.__call__).parameters  # type: ignore[operator]
        if c.ip_adapter is not None:
            if "ip_adapter_image" not in takes or not hasattr(kind, "load_ip_adapter") or "image" in takes:
                return f"a {name} takes no IP-Adapter; use Stable Diffusion"
            return None
        if not c.fine_tuned:
            problem = editing_problem(kind)
            fix = "give an editing pipeline, add ip_adapter, or name fine-tuned models with {subject}"
            return None if problem is None else f"{problem}; {fix}"
        try:
            family_of("", kind)
        except ModelError as error:
            return str(error).removeprefix(": ")
        needs = {"lora": "load_lora_weights", "textual_inversion": "load_textual_inversion"}
        for setting, method in needs.items():
            if getattr(c, setting) is not None and not hasattr(kind, method):
                return f"a {name} takes no {setting}; use another base"
        return None

    def _adapter_problems(
        self, shared: ModelSource, subjects: Sequence[Subject], sources: dict[str, ModelSource]
    ) -> list[str]:
        from bootpig.models.painters import adapters
        from bootpig.models.painters.checks import read_configs

        configs, folder = read_configs(shared), cached_folder(shared)
        if configs is None or folder is None:
            return []
        unet = folder / "unet" if (folder / "unet" / "config.json").is_file() else None
        found = []
        if (adapter := sources.get(f"{self.key}.ip_adapter")) is not None and unet is not None and adapter.is_local:
            try:
                files = self.ip_adapter_files(Path(adapter.path), configs)
                problem = adapters.ip_adapter_problem(files, unet, configs.get("image_encoder"))
            except ModelError as error:
                return [str(error)]
            found += [] if problem is None else [f"{adapter.field}: {problem}"]
        for subject in subjects:
            for setting in ("lora", "textual_inversion"):
                if (source := sources.get(f"{self.key}.{setting}.{subject.name}")) is None:
                    continue
                if setting == "lora":
                    problem = adapters.lora_file_problem(Path(source.path), unet)
                else:
                    token = self.config.token or ""
                    problem = adapters.embedding_problem(Path(source.path), token, configs, folder)
                found += [] if problem is None else [f"{source.field}: {problem}"]
        return list(dict.fromkeys(found))

    def ip_adapter_files(self, folder: Path, configs: Configs) -> IPAdapterFiles:
        """The files of its IP-Adapter.

        Args:
            folder: the local folder of the adapter.
            configs: the settings of the pipeline, see `Configs`; only whether it has an `image_encoder` counts.

        Raises:
            ModelError: a file is missing.
        """
        from bootpig.models.painters.adapters import find_ip_adapter

        c = self.config
        own = "image_encoder" in configs
        field = f"{self.field}.ip_adapter"
        return find_ip_adapter(field, folder, c.subfolder, c.weight_name, c.image_encoder, own)


def rivals_of(configs: Sequence[RivalConfig]) -> list[Rival]:
    return [Rival(config, number) for number, config in enumerate(configs)]


def class_of(configs: Configs | None) -> type | None:
    """The pipeline class that a model_index.json names, if diffusers has it."""
    import diffusers

    found = getattr(diffusers, str((configs or {}).get("", {}).get("_class_name")), None)
    return found if isinstance(found, type) else None
