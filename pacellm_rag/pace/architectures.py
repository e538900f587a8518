"""Where decoders keep their feed-forward networks: one table, no code per family.

PaceLLM acts on the intermediate activation of a feed-forward network, which is what its output
projection reads. This module finds, for every decoder layer, that projection and the ones before
it. It looks at attribute names only, so quantised layers and PEFT's wrappers fit as well as
`nn.Linear`. Knows nothing of banks or clusters; changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from pacellm_rag.errors import ModelError

__all__ = ["LAYOUTS", "FeedForward", "Layout", "find_feed_forwards"]

_BLOCKS = ("mlp", "feed_forward", "ffn")


@dataclass(frozen=True)
class Layout:
    """The names under which a decoder layer keeps its feed-forward network.

    Attributes:
        up: the projection that widens; with `fused` it holds the gate's rows, then its own.
        down: the output projection, which reads the intermediate activation.
        gate: the projection that the activation function is applied to, where there are two.
        fused: whether `up` is gate and up in one.
        blocks: where in the layer to look, the first that fits; "" is the layer itself. A dotted
            path reaches deeper ("mlp.shared_expert").
        layers: dotted path from the model to its list of layers; None tries the known ones.
    """

    up: str
    down: str
    gate: str | None = None
    fused: bool = False
    blocks: tuple[str, ...] = _BLOCKS
    layers: str | None = None

    def __str__(self) -> str:
        names = [name for name in (self.gate, self.up, self.down) if name is not None]
        return "/".join(names)


@dataclass(frozen=True)
class FeedForward:
    """The feed-forward network of one decoder layer.

    Attributes:
        layer: index of the decoder layer.
        path: dotted path of the network from the model that was passed; the layer's own path where
            the projections lie on the layer itself.
        gate: the gate projection; None where there is none or it is fused into `up`.
        up: the projection that widens.
        down: the output projection, PEFT's wrapper where there is one: a forward pre-hook on it
            sees and may replace the intermediate activation, of shape (..., width).
        fused: whether `up` holds the gate's rows, then its own.
        width: neurons of the network, the width of the intermediate activation.
        block: the module that holds the projections.
        layout: the names that fitted.
    """

    layer: int
    path: str
    gate: nn.Module | None
    up: nn.Module
    down: nn.Module
    fused: bool
    width: int
    block: nn.Module
    layout: Layout


# Layouts with a gate come first: the names of those without are a part of theirs.
LAYOUTS: tuple[Layout, ...] = (
    # Llama, Qwen, Mistral, Gemma, SmolLM3, Cohere, OLMo, Granite, StableLM, EXAONE, Falcon-H1
    Layout(gate="gate_proj", up="up_proj", down="down_proj"),
    # Phi-3, GLM
    Layout(up="gate_up_proj", down="down_proj", fused=True),
    # LFM2
    Layout(gate="w1", up="w3", down="w2"),
    # Granite 4, dense
    Layout(up="input_linear", down="output_linear", fused=True, blocks=("shared_mlp",)),
    # Nemotron, Apertus, Arcee, MPT
    Layout(up="up_proj", down="down_proj"),
    # GPT-2 (transposed weights), GPT-BigCode, GPT-Neo, Starcoder2
    Layout(up="c_fc", down="c_proj"),
    # GPT-NeoX, Falcon, Bloom
    Layout(up="dense_h_to_4h", down="dense_4h_to_h"),
    # Phi; OPT, XGLM and BioGPT, on the layer itself
    Layout(up="fc1", down="fc2", blocks=(*_BLOCKS, "")),
    # GPT-J, CodeGen
    Layout(up="fc_in", down="fc_out"),
)

# Paths from a model to its decoder layers, those of multimodal models included.
_STACKS = (
    "model.layers",
    "model.language_model.layers",
    "language_model.model.layers",
    "language_model.layers",
    "model.text_model.layers",
    "thinker.model.layers",
    "transformer.h",
    "transformer.blocks",
    "gpt_neox.layers",
    "model.decoder.layers",
    "biogpt.layers",
    "decoder.layers",
    "layers",
    "h",
    "blocks",
)

# What wrappers (torch.compile, data parallelism, PEFT) call the model inside them.
_WRAPPED = ("_orig_mod", "module", "base_model", "model")


def find_feed_forwards(model: nn.Module, layout: Layout | None = None) -> tuple[FeedForward, ...]:
    """The feed-forward networks of a decoder, one per layer, in the order of the layers.

    Args:
        model: a decoder of transformers, with or without its head, multimodal or not, wrapped by
            PEFT or not, quantised or not.
        layout: names to use instead of the known layouts, for an architecture that has others.

    Raises:
        ModelError: a layer is a mixture of experts, or no known layout fits.
    """
    name = _class_name(model)
    stack_path, stack = _find_stack(model, layout, name)
    return tuple(
        _find_one(index, f"{stack_path}.{index}", layer, layout, name)
        for index, layer in enumerate(stack)
    )


def _find_stack(
    model: nn.Module, layout: Layout | None, name: str
) -> tuple[str, nn.ModuleList | nn.Sequential]:
    """Path and list of the decoder layers."""
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise ModelError(
            f"{name} is an encoder-decoder; PaceLLM works on decoders (Llama, Qwen, Mistral, "
            "Gemma, Phi, GPT ...)."
        )
    paths = _STACKS if layout is None or layout.layers is None else (layout.layers,)
    for prefix, inner in _unwrap(model):
        for path in paths:
            stack = _submodule(inner, path)
            if isinstance(stack, nn.ModuleList | nn.Sequential) and len(stack):
                return prefix + path, stack
    raise ModelError(
        f"No list of decoder layers was found in {name}; looked for {', '.join(paths)}. "
        'Pass layout=Layout(layers="path.to.the.layers", up=..., down=..., gate=...).'
    )


def _unwrap(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The model and, as long as it is no transformers model, what it wraps, with their paths."""
    prefix = ""
    while True:
        yield prefix, model
        if isinstance(model, PreTrainedModel):
            return
        for name in _WRAPPED:
            inner = model._modules.get(name)
            if inner is not None:
                prefix, model = f"{prefix}{name}.", inner
                break
        else:
            return


def _find_one(
    index: int, path: str, layer: nn.Module, layout: Layout | None, name: str
) -> FeedForward:
    if layout is None:
        _refuse_mixture(path, layer, name)
    for candidate in LAYOUTS if layout is None else (layout,):
        for block_name in candidate.blocks:
            block = _submodule(layer, block_name)
            found = None if block is None else _projections(block, candidate)
            if block is not None and found is not None:
                gate, up, down = found
                place = f"{path}.{block_name}" if block_name else path
                width = _width(down, up, candidate, place, name)
                return FeedForward(
                    index, place, gate, up, down, candidate.fused, width, block, candidate
                )
    tried = LAYOUTS if layout is None else (layout,)
    looked_for = ", ".join(str(each) for each in tried)
    where = ", ".join(dict.fromkeys(b or "the layer itself" for t in tried for b in t.blocks))
    children = ", ".join(
        f"{child_name} ({type(child).__name__})" for child_name, child in layer.named_children()
    )
    raise ModelError(
        f"Layer {index} of {name} has no feed-forward network that is known here: {path} "
        f"({type(layer).__name__}) holds {children or 'nothing'}. Looked for {looked_for} in "
        f"{where}. Pass layout=Layout(up=..., down=..., gate=..., blocks=(...,)) with the names "
        "that this architecture uses, if every layer has one network."
    )


def _projections(
    block: nn.Module, layout: Layout
) -> tuple[nn.Module | None, nn.Module, nn.Module] | None:
    gate = None if layout.gate is None else _submodule(block, layout.gate)
    up, down = _submodule(block, layout.up), _submodule(block, layout.down)
    if up is None or down is None or (layout.gate is not None and gate is None):
        return None
    return gate, up, down


def _width(down: nn.Module, up: nn.Module, layout: Layout, place: str, name: str) -> int:
    """What `down` reads, checked against what `up` gives."""
    width = _size(down, "in_features", "infeatures", "nx")
    if width is None:
        raise ModelError(
            f"{name} has a {type(down).__name__} as {place}.{layout.down}, which does not tell its "
            "width (in_features). Load the model with another quantisation, or without."
        )
    rows = _size(up, "out_features", "outfeatures", "nf")
    if rows is not None and rows != width * (2 if layout.fused else 1):
        raise ModelError(
            f"{name} has {rows} rows in {place}.{layout.up} but {width} columns in "
            f"{place}.{layout.down}; a {'fused' if layout.fused else 'plain'} layout needs "
            f"{width * (2 if layout.fused else 1)}. Pass layout=Layout(...) with the right names."
        )
    return width


def _size(projection: nn.Module, *names: str) -> int | None:
    for name in names:
        value = getattr(projection, name, None)
        if isinstance(value, int):
            return value
    return None


def _refuse_mixture(path: str, layer: nn.Module, name: str) -> None:
    """Raises where a layer holds experts: a list of them, or one tensor for all of them."""
    for inner_path, module in layer.named_modules():
        last = inner_path.rpartition(".")[2]
        fused = [
            f"{parameter_name} {tuple(parameter.shape)}"
            for parameter_name, parameter in module.named_parameters(recurse=False)
            if parameter.dim() == 3 and "conv" not in last
        ]
        if last != "experts" and not fused:
            continue
        held = f" with {', '.join(fused)}" if fused else ""
        raise ModelError(
            f"{name} is a mixture of experts: {path}.{inner_path} is a {type(module).__name__}"
            f"{held}. Its experts share no intermediate activation that every token passes, so "
            "PaceLLM does not apply. Take a dense model, or name a network that all tokens pass "
            'with layout=Layout(..., blocks=("mlp.shared_expert",)).'
        )


def _submodule(module: nn.Module, path: str) -> nn.Module | None:
    """The module at a dotted path ("" is the module itself), or None."""
    found: object = module
    for part in path.split(".") if path else ():
        found = getattr(found, part, None)
    return found if isinstance(found, nn.Module) else None


def _class_name(model: nn.Module) -> str:
    """The name of the model's class, and of what it wraps."""
    names = [type(inner).__name__ for _, inner in _unwrap(model)]
    return names[0] if len(names) == 1 else f"{names[0]} ({names[-1]})"
