"""IP-Adapter: a projection of a picture's CLIP features, and a second cross-attention that reads it in every block.

Trained on the references and targets of a run, with the base frozen: the triplets that BootPIG is trained on, and those
that it leaves out (validation, and what is not selected). Networks and their loading are diffusers' own. The usual
recipe (Ye et al. 2023, section 3.2 and tutorial_train_plus.py): keys and values of the new attention start as those of
the text's; text, picture, or both are dropped with 0.05 each; AdamW with weight decay 0.01.

The features are the patches of the toy CLIP's second to last layer ("Plus"), not its one embedding: that CLIP was
trained on captions that do not say what an individual looks like, so its embedding hardly knows.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from diffusers.models.attention_processor import AttnProcessor2_0, IPAdapterAttnProcessor2_0
from diffusers.models.embeddings import IPAdapterPlusImageProjection, MultiIPAdapterImageProjection
from PIL import Image
from safetensors.torch import load, save_file
from torch import Tensor, nn
from transformers import CLIPImageProcessor, CLIPModel, CLIPVisionModelWithProjection

from bootpig.flows.loading import load_config
from bootpig.stages.engine.contract import InputError
from bootpig.stages.engine.engine import Engine
from bootpig.stages.engine.reduce import stage_input
from bootpig.stages.engine.shardio import unpack
from science.per_subject import RECORD, Base, fit, is_complete, write_record
from science.recipes import BASE, CLIP, Recipe

BATCH = 32
QUERIES = 8
HEAD = 64
"""Width of a head of the projection, fixed in diffusers' loader."""
DROP = 0.05
FILE = "ip-adapter.safetensors"


def train(target: Path, recipe: Recipe, *, config: str, root: str | None = None, seed: int = 0) -> None:
    """Write an IP-Adapter to the folder `target`, as `load_ip_adapter` reads it, unless it is there.

    Args:
        target: gets `ip-adapter.safetensors`, `image_encoder/` and the record.
        recipe: learning rate and updates. `scale` is for inference and changes nothing here.
        config: the run whose stages augment and encode are read from its store.
        root: its store. None: that of the configuration.
        seed: of the first weights and all draws.

    Raises:
        InputError: the run has no data yet.
    """
    wanted = {"recipe": recipe.of_training(), "seed": seed}
    if is_complete(target, wanted):
        return
    begin = time.process_time(), time.monotonic()
    torch.manual_seed(seed)
    base = Base.load(BASE)
    encoder = image_encoder(CLIP)
    data = read_triplets(config, root, encoder)
    projection, processors = install(base.pipeline.unet, encoder)
    with torch.no_grad():
        empty = base.embeds([""])
        side = encoder.config.image_size
        nothing = encoder(torch.zeros(1, 3, side, side), output_hidden_states=True).hidden_states[-2]

    def step(generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(data["target"]), (BATCH,), generator=generator)
        reference = torch.randint(data["features"].shape[1], (BATCH,), generator=generator)
        chance = torch.rand(BATCH, generator=generator)
        no_text = (chance < DROP) | (chance >= 1 - DROP)
        no_picture = (chance >= DROP) & (chance < 2 * DROP) | (chance >= 1 - DROP)
        text = torch.where(no_text[:, None, None], empty, data["prompt_embeds"][rows].float())
        features = torch.where(no_picture[:, None, None], nothing, data["features"][rows, reference].float())
        conditions = {"image_embeds": [features[:, None]]}  # one picture
        return base.loss(data["target"][rows].float(), text, generator, conditions)

    parameters = [*projection.parameters(), *(p for each in processors.values() for p in each.parameters())]
    fit(parameters, recipe, step, seed)
    (target / RECORD).unlink(missing_ok=True)
    target.mkdir(parents=True, exist_ok=True)
    save_file(file_format(projection, processors), target / FILE)
    encoder.save_pretrained(target / "image_encoder")
    write_record(target, wanted, begin, {"samples": len(data["target"])})


def image_encoder(folder: str) -> CLIPVisionModelWithProjection:
    """The toy CLIP's image encoder, in float32, for pictures with the mean and deviation of CLIP's own processor.

    diffusers prepares pictures with that processor, whatever encoder is loaded. The toy CLIP expects (p - 0.5) / 0.5.
    The difference, a factor and a term for each colour, is moved into its patch and position embeddings: same features.
    """
    clip = CLIPModel.from_pretrained(folder, dtype=torch.float32)
    vision = clip.config.vision_config
    vision.projection_dim = clip.config.projection_dim
    encoder = CLIPVisionModelWithProjection(vision).eval().requires_grad_(False)
    encoder.load_state_dict({name: t for name, t in clip.state_dict().items() if name in encoder.state_dict()})
    usual = CLIPImageProcessor()
    mean, std = torch.tensor(usual.image_mean), torch.tensor(usual.image_std)
    factor, term = std / 0.5, (mean - 0.5) / 0.5
    embeddings = encoder.vision_model.embeddings
    patch = embeddings.patch_embedding.weight  # (D, 3, p, p), without bias
    with torch.no_grad():
        embeddings.position_embedding.weight[1:] += (patch * term[None, :, None, None]).sum((1, 2, 3))
        patch *= factor[None, :, None, None]
    return encoder


@torch.no_grad()
def picture_features(encoder: CLIPVisionModelWithProjection, pictures: Sequence[Image.Image]) -> Tensor:
    """(N, S, D): class token and patches of the second to last layer, as diffusers computes them for "Plus"."""
    side = encoder.config.image_size
    processor = CLIPImageProcessor(size=side, crop_size=side)
    found = []
    for first in range(0, len(pictures), 64):
        pixels = processor(list(pictures[first : first + 64]), return_tensors="pt").pixel_values
        found.append(encoder(pixels, output_hidden_states=True).hidden_states[-2])
    return torch.cat(found)


def read_triplets(config: str, root: str | None, encoder: CLIPVisionModelWithProjection) -> Mapping[str, Tensor]:
    """The samples of a run: `target` (N, C, h, w), `prompt_embeds` (N, S, D), `features` (N, K, T, D') of K references.

    Raises:
        InputError: the run has no data yet.
    """
    engine = Engine(load_config(config, [] if root is None else [f"root={root}"]))
    surveys = engine.survey_all(["encode"])
    if not surveys["encode"].markers:
        raise InputError(f"science: {config} has no encoded samples in {engine.root.url}; run it first")
    targets, embeds, features = [], [], []
    with TemporaryDirectory() as scratch:
        latents, pictures = (stage_input(engine.root, surveys[name], Path(scratch)) for name in ("encode", "augment"))
        for unit in latents.units:
            drawn = {s.id: s for s in unpack(pictures.rows(unit.unit), pictures.shard(unit.unit))}
            for sample in unpack(latents.rows(unit.unit), latents.shard(unit.unit)):
                tensors = load(sample.files["safetensors"])
                targets.append(tensors["target"])
                embeds.append(tensors["prompt_embeds"])
                files = drawn[sample.id].files
                names = sorted(name for name in files if name.startswith("reference"))
                features.append([Image.open(BytesIO(files[name])).convert("RGB") for name in names])
    flat = picture_features(encoder, [picture for each in features for picture in each])
    count = len(features[0])
    return {
        "target": torch.stack(targets),
        "prompt_embeds": torch.stack(embeds),
        "features": flat.unflatten(0, (len(features), count)).half(),
    }


def install(unet: Any, encoder: CLIPVisionModelWithProjection) -> tuple[nn.Module, dict[str, nn.Module]]:
    """Install an untrained adapter in a UNet as diffusers' loader does. Returns what is trained: the projection, and
    the processors by name."""
    width = encoder.config.hidden_size
    projection = IPAdapterPlusImageProjection(
        embed_dims=width, output_dims=unet.config.cross_attention_dim, hidden_dims=2 * HEAD, heads=2, dim_head=HEAD,
        num_queries=QUERIES,
    )  # fmt: skip
    processors: dict[str, nn.Module] = {}
    installed: dict[str, Any] = {}
    for name in unet.attn_processors:
        attention = unet.get_submodule(name.removesuffix(".processor"))
        if not attention.is_cross_attention:
            installed[name] = AttnProcessor2_0()
            continue
        made = IPAdapterAttnProcessor2_0(
            attention.to_q.out_features, cross_attention_dim=attention.to_k.in_features, num_tokens=(QUERIES,)
        )
        made.to_k_ip[0].weight.data.copy_(attention.to_k.weight)
        made.to_v_ip[0].weight.data.copy_(attention.to_v.weight)
        installed[name] = processors[name] = made
    unet.set_attn_processor(installed)
    unet.encoder_hid_proj = MultiIPAdapterImageProjection([projection])
    unet.config.encoder_hid_dim_type = "ip_image_proj"
    return projection, processors


def file_format(projection: nn.Module, processors: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """The weights under the names of the authors' files, which `load_ip_adapter` reads: the inverse of its renaming."""
    found: dict[str, Tensor] = {}
    state = projection.state_dict()
    for name, tensor in state.items():
        if not name.startswith("layers."):
            found[name] = tensor
            continue
        _, layer, rest = name.split(".", 2)
        if rest == "attn.to_k.weight":
            found[f"layers.{layer}.0.to_kv.weight"] = torch.cat([tensor, state[f"layers.{layer}.attn.to_v.weight"]])
        elif rest != "attn.to_v.weight":
            begin = next(old for old in LAYER_NAMES if rest.startswith(old))
            found[f"layers.{layer}.{LAYER_NAMES[begin]}{rest.removeprefix(begin)}"] = tensor
    adapters = {f"image_proj.{name}": tensor.contiguous() for name, tensor in found.items()}
    for number, each in enumerate(processors.values()):
        for part in ("to_k_ip", "to_v_ip"):
            adapters[f"ip_adapter.{2 * number + 1}.{part}.weight"] = getattr(each, part)[0].weight.detach()
    return adapters


LAYER_NAMES = {
    "ln0.": "0.norm1.",
    "ln1.": "0.norm2.",
    "attn.to_q.": "0.to_q.",
    "attn.to_out.0.": "0.to_out.",
    "ff.0.": "1.0.",
    "ff.1.net.0.proj.": "1.1.",
    "ff.1.net.2.": "1.3.",
}
"""Beginning of a name in diffusers' projection → that in the authors' files."""
