"""The module that is trained: the base UNet and the Reference UNet, and which of their parameters are trained."""

from __future__ import annotations

from typing import Any, Literal

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from bootpig.models.core.adapters import add_adapter
from bootpig.models.core.lora import Lora
from bootpig.models.core.reference_unet import copy_as_reference, record_features, sharing_weights, truncate
from bootpig.models.core.rsa import Pooling, install_rsa, self_attention_blocks

TrainBase = Literal["none", "rsa", "all"]
"""Which part of the base UNet is trained: none, its RSA layers (the paper), or all of it (the paper's ablation)."""


class BootPIG(nn.Module):
    """Both UNets in one module, so that one `prepare`, one `accumulate` and one DDP wrapper cover all parameters.

    Trained parameters are float32 (master weights); frozen ones keep their dtype. `state_dict()` holds all parameters,
    `trained_state()` only the trained ones.

    Args:
        unet: the base UNet. Its attention processors are replaced.
        reference_unet: the Reference UNet. Truncated in place if it is not yet.
        train_reference: whether the Reference UNet is trained. A frozen one still provides features.
        train_base: see `TrainBase`.
        key_scale, pooling: see `bootpig.models.core.rsa.RSAProcessor`.
        lora: train LoRA adapters instead of the weights themselves, which stay frozen. The two UNets may then share
            them. `lora.networks` has no effect.
        seed: of the adapters' first weights.

    Raises:
        ValueError: nothing would be trained, or the UNet is incompatible.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        reference_unet: UNet2DConditionModel,
        *,
        train_reference: bool = True,
        train_base: TrainBase = "rsa",
        key_scale: float = 1.0,
        pooling: Pooling = "softmax",
        lora: Lora | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if train_base not in ("none", "rsa", "all"):
            raise ValueError(f"train_base: {train_base!r} is unknown; use none, rsa or all")
        if not train_reference and train_base == "none":
            raise ValueError("train_reference is off and train_base is none: nothing would be trained")
        install_rsa(unet, key_scale, pooling)
        self.unet = unet
        self.reference_unet = truncate(reference_unet)
        self.train_reference = train_reference
        self.train_base = train_base
        self.zero_gradients = True
        """Whether a step without references gives the Reference UNet gradients of zero, which DDP waits for."""

        if lora is not None:
            self.requires_grad_(False)
            if train_reference:
                add_adapter(self.reference_unet, lora, seed=seed)
            if train_base != "none":
                add_adapter(self.unet, lora, seed=seed + 1, self_attention=train_base == "rsa")
        else:
            self.reference_unet.requires_grad_(train_reference)
            self.unet.requires_grad_(train_base == "all")
            if train_base == "rsa":
                for _, block in self_attention_blocks(self.unet):
                    block.attn1.requires_grad_(True)
        for parameter in self.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()

    @classmethod
    def from_unet(
        cls,
        unet: UNet2DConditionModel,
        *,
        train_reference: bool = True,
        train_base: TrainBase = "rsa",
        key_scale: float = 1.0,
        pooling: Pooling = "softmax",
        lora: Lora | None = None,
        seed: int = 0,
    ) -> BootPIG:
        """Make both networks from one pretrained UNet (BootPIG, section 3.2). `unet` itself becomes the base. With
        `lora`, both have the same tensors: one copy in memory."""
        return cls(
            unet,
            copy_as_reference(unet) if lora is None else sharing_weights(unet),
            train_reference=train_reference,
            train_base=train_base,
            key_scale=key_scale,
            pooling=pooling,
            lora=lora,
            seed=seed,
        )

    def forward(
        self,
        noisy_latents: Tensor,
        timesteps: Tensor,
        prompt_embeds: Tensor,
        references: Tensor,
        reference_prompt_embeds: Tensor,
        *,
        use_reference: bool,
        reference_timesteps: Tensor | None = None,
        added_cond_kwargs: dict[str, Tensor] | None = None,
        reference_added_cond_kwargs: dict[str, Tensor] | None = None,
    ) -> Tensor:
        """The base UNet's prediction (B, C, h, w): noise or velocity, depending on how the base was trained.

        Args:
            noisy_latents: (B, C, h, w), the targets noised to `timesteps`.
            timesteps: (B,), of the targets.
            prompt_embeds: (B, S, D) for the base UNet; those of the empty prompt where the caption is dropped.
            references: (R, C, h', w'), noised to `reference_timesteps` with independent noise. R is B, or a multiple of
                it: the first reference of each target, then the second of each. Several are pooled (eq. 5 to 8).
            reference_prompt_embeds: (R, S, D) for the Reference UNet.
            use_reference: False in a step that drops the references: plain self-attention; the Reference UNet is not
                run, and its gradients are zero. Must be the same on all ranks.
            reference_timesteps: (R,), of the references. None: `timesteps`, as in the paper; R is then B.
            added_cond_kwargs, reference_added_cond_kwargs: SDXL's pooled embeds and time ids.
        """
        kwargs: dict[str, Any] | None = None
        rows = noisy_latents.shape[0]
        if use_reference:
            with torch.set_grad_enabled(torch.is_grad_enabled() and self.train_reference):
                features = record_features(
                    self.reference_unet,
                    references,
                    timesteps if reference_timesteps is None else reference_timesteps,
                    reference_prompt_embeds,
                    [tuple(range(row, len(references), rows)) for row in range(rows)],
                    reference_added_cond_kwargs,
                )
            kwargs = {"reference": features}
        prediction: Tensor = self.unet(
            noisy_latents,
            timesteps,
            encoder_hidden_states=prompt_embeds,
            cross_attention_kwargs=kwargs,
            added_cond_kwargs=added_cond_kwargs,
            return_dict=False,
        )[0]
        if self.zero_gradients and self.train_reference and not use_reference and torch.is_grad_enabled():
            # DDP waits for a gradient of every parameter; without reference features they are all zero.
            trained = [parameter for parameter in self.reference_unet.parameters() if parameter.requires_grad]
            nothing = sum(parameter.flatten()[0] for parameter in trained)
            prediction = prediction + (0.0 * nothing).to(prediction.dtype)
        return prediction

    def enable_gradient_checkpointing(self) -> None:
        """Trade one more forward pass for less memory. Losses and gradients stay the same."""
        self.unet.enable_gradient_checkpointing()
        self.reference_unet.enable_gradient_checkpointing()

    def parameter_groups(self, lr_reference: float, lr_base: float) -> list[dict[str, Any]]:
        """The trained parameters for an optimizer: `{"name", "params", "lr"}` for each UNet that has any."""
        groups = [("reference", self.reference_unet, lr_reference), ("base", self.unet, lr_base)]
        found = [
            {"name": name, "params": [p for p in unet.parameters() if p.requires_grad], "lr": lr}
            for name, unet, lr in groups
        ]
        return [group for group in found if group["params"]]

    def trained_state(self) -> dict[str, Tensor]:
        """The trained parameters by name, detached but not copied. This is the content of a checkpoint."""
        return {name: parameter.detach() for name, parameter in self.named_parameters() if parameter.requires_grad}

    def load_trained_state(self, state: dict[str, Tensor]) -> None:
        """Load a state returned by `trained_state`.

        Raises:
            ValueError: parameters are missing or unknown, or a shape differs.
        """
        own = self.trained_state()
        wrong = own.keys() ^ state.keys() or {name for name in own if own[name].shape != state[name].shape}
        if wrong:
            raise ValueError(
                f"the checkpoint does not fit the model: {len(wrong)} tensors are missing, unknown or have another "
                f"shape; the first is {min(wrong)}"
            )
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(state[name])
