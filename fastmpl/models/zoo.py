"""Any classifier of timm, made fit for feedback: keyed dropout, also of attention, group and synchronised norms.

This module and resnet_blocks.py know timm. What cannot be made fit (a network that draws random numbers in its own code) is
refused here, when it is built, and not at step 1,000.
"""

import difflib
import logging
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import timm
import torch
from timm.layers import BatchNormAct2d, GroupNormAct
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode

from fastmpl.models.attention import unfuse_random_attention
from fastmpl.models.errors import ModelError
from fastmpl.models.norms import Norm, groups_of
from fastmpl.models.pretrained import Loaded, Weights, check_loaded, classifier_of, record_load, select_head
from fastmpl.models.resnet_blocks import fuse_residual_blocks
from fastmpl.models.stand_ins import call_with
from fastmpl.models.stochastic import KeyedDropout, replace_dropout
from fastmpl.models.sync_norm import SumOverRanks, SyncBatchNorm
from fastmpl_kernels.batch_norm_act.module import BatchNormAct2d as FusedBatchNormAct2d
from fastmpl_kernels.batch_norm_act.module import fuse_batch_norm_act


class LinearAfterDropout(nn.Linear):
    """A classifier with the dropout that its network would apply to its input; the same names in the state dict."""

    def __init__(self, linear: nn.Linear, p: float) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.dropout = KeyedDropout(p)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(self.dropout(input))


class _Draws(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes every operator that takes its numbers from a generator."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: set[str] = set()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Read by torch: whether to import its compiler, over a second, in order to be left out by it."""
        return False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if torch.Tag.nondeterministic_seeded in func.tags:
            self.found.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def other_draws(model: nn.Module, image_shape: tuple[int, ...]) -> set[str]:
    """The random draws of a training pass that are not keyed, by name; empty for a network that is fit for feedback.

    The pass runs on the `meta` device with parameters that stand in: no arithmetic, and the model given is not touched.
    """
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    stand_ins = {name: torch.empty(t.shape, dtype=t.dtype, device="meta") for name, t in tensors.items()}
    before = random.getstate()
    with _Draws() as draws, torch.no_grad():
        call_with(model, stand_ins, torch.empty(2, *image_shape, device="meta"))
    if random.getstate() != before:
        random.setstate(before)
        draws.found.add("Python's random")
    found: set[str] = draws.found
    return found


def _key_functional_dropout(model: nn.Module, dropout: float) -> bool:
    """Moves the dropout that a network's own code applies before its classifier into the classifier. False: cannot."""
    get_classifier: Any = getattr(model, "get_classifier", lambda: None)
    classifier = get_classifier()
    if getattr(model, "drop_rate", None) != dropout or not isinstance(classifier, nn.Linear):
        return False
    model.drop_rate = 0.0  # type: ignore[assignment]
    for parent in model.modules():
        for name, child in list(parent.named_children()):
            if child is classifier:
                setattr(parent, name, LinearAfterDropout(classifier, dropout))
    replace_dropout(model)  # numbers the new layer too
    return True


class SyncBatchNormAct2d(SyncBatchNorm):
    """timm's BatchNormAct2d, synchronised."""

    def __init__(self, norm: BatchNormAct2d) -> None:
        super().__init__(norm.num_features, eps=norm.eps, momentum=norm.momentum)
        self.drop, self.act = norm.drop, norm.act

    def forward(self, input: Tensor) -> Tensor:
        result: Tensor = self.act(self.drop(super().forward(input)))
        return result


def _group_norm(norm: nn.BatchNorm2d) -> nn.Module:
    channels = norm.num_features
    if not isinstance(norm, BatchNormAct2d):
        return nn.GroupNorm(groups_of(channels), channels, eps=norm.eps)
    group: nn.Module = GroupNormAct(channels, num_groups=groups_of(channels), eps=norm.eps, apply_act=False)
    group.drop, group.act = norm.drop, norm.act
    return group


def _sync_norm(norm: nn.BatchNorm2d) -> nn.Module:
    if isinstance(norm, BatchNormAct2d):
        return SyncBatchNormAct2d(norm)
    return SyncBatchNorm(norm.num_features, eps=norm.eps, momentum=norm.momentum)


def _replace_norms(model: nn.Module, replacement: Callable[[nn.BatchNorm2d], nn.Module]) -> None:
    """Puts another norm in the place of every batch norm, under the same names and with the same initial weights."""
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):  # named_children leaves out a norm's second name
            if isinstance(child, nn.BatchNorm2d) and not isinstance(child, FusedBatchNormAct2d):
                norm = replacement(child)
                norm.weight, norm.bias = child.weight, child.bias  # keeps an initialisation at zero
                setattr(parent, name, norm)


def _create(name: str, options: dict[str, object]) -> nn.Module:
    try:
        model: nn.Module = timm.create_model(name, pretrained=False, **options)
    except (TypeError, AssertionError, ValueError) as error:
        asked = ", ".join(f"{key} = {value}" for key, value in options.items())
        raise ModelError(f'model = "timm:{name}" cannot be built with {asked}: {error}') from error
    return model


def _create_pretrained(name: str, options: dict[str, object], weights: Weights) -> tuple[nn.Module, Loaded]:
    """timm's network with trained weights. timm renames tensors, and resizes position embeddings and input channels."""
    known: Any = timm.get_pretrained_cfg(name)
    classifier = known.classifier if known is not None and isinstance(known.classifier, str) else ""
    overlay: dict[str, object] = {"custom_load": False}
    if weights.tensors is not None:
        keeps = weights.head_order is not None
        overlay |= {"source": "", "url": "", "hf_hub_id": None, "label_offset": 0}
        overlay["state_dict"] = select_head(weights.tensors, classifier, weights.head_order)
        overlay["num_classes"] = options["num_classes"] if keeps else 0  # another number: timm drops the classifier
    with record_load() as handed_over, _silence_timm():
        try:
            model: nn.Module = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **options)
        except (RuntimeError, KeyError, ValueError, TypeError, AssertionError) as error:
            if weights.tensors is None:
                raise _unreachable(name, known) from error
            reason = " ".join(str(error).split())[:160]
            raise ModelError(
                f'pretrained = "{weights.source}" does not fit model = "timm:{name}" ({reason}): set model to the network '
                "that the weights are of."
            ) from error
        except OSError as error:  # the hub's errors: offline, not there, not allowed
            raise _unreachable(name, known) from error
        given = handed_over()
    return model, check_loaded(model, given, classifier or classifier_of(model), weights.source)


@contextmanager
def _silence_timm() -> Iterator[None]:
    """Keeps timm from listing tensors on the terminal: which were used, and which not, is said in a sentence of ours."""
    logger = logging.getLogger("timm")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _unreachable(name: str, known: Any) -> ModelError:
    if known is None or not known.has_weights:
        return ModelError(f'pretrained = "hub": timm knows no weights for "timm:{name}". Name a file of weights.')
    where = f"of {known.hf_hub_id} on the Hugging Face hub" if known.hf_hub_id else f"at {known.url}"
    return ModelError(
        f'pretrained = "hub" needs the weights of "timm:{name}", which are neither cached nor to be fetched from here: '
        f"fetch model.safetensors {where} on a machine with a network, and set pretrained to the file's path."
    )


def _fit(model: nn.Module, name: str, image_shape: tuple[int, ...], dropout: float, norm: Norm) -> nn.Module:
    """Makes timm's network fit for feedback, in place, or refuses it."""
    replace_dropout(model)
    unfuse_random_attention(model)
    if norm == "group":
        _replace_norms(model, _group_norm)
    elif norm == "sync":
        fuse_batch_norm_act(model, SumOverRanks())
        fuse_residual_blocks(model)
        _replace_norms(model, _sync_norm)  # those that could not be fused
    found = other_draws(model, image_shape)
    if found and _key_functional_dropout(model, dropout):
        found = other_draws(model, image_shape)
    if found:
        raise ModelError(
            f'model = "timm:{name}" draws random numbers in its own code ({", ".join(sorted(found))}), which passes '
            f"that are compared could not repeat: set dropout = 0 or use another network."
        )
    if norm == "batch":
        fuse_batch_norm_act(model)
        fuse_residual_blocks(model)
    return model


def _to_fake(model: nn.Module) -> None:
    """Replaces parameters and buffers by fake tensors of the active mode; shared ones stay shared."""
    fakes: dict[Tensor, Tensor] = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is None:
                    continue
                if tensor not in fakes:
                    fake = torch.empty(tensor.shape, dtype=tensor.dtype)
                    fakes[tensor] = nn.Parameter(fake, tensor.requires_grad) if tensors is module._parameters else fake
                tensors[name] = fakes[tensor]  # type: ignore[assignment]


def timm_model(
    name: str,
    *,
    classes: int,
    image_shape: tuple[int, ...],
    dropout: float,
    norm: Norm,
    weights: Weights | None = None,
    note: Callable[[str], None] = lambda sentence: None,
) -> nn.Module:
    """timm's network of that name with `classes` outputs and keyed random draws.

    weights: what it starts from; None: random weights. `note` is told which tensors were loaded.

    Works under FakeTensorMode, although timm's own constructors read tensors: they run outside it, on `meta`.
    Raises ModelError for an unknown name, and for a network whose draws cannot be keyed.
    """
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"Did you mean {' or '.join(repr('timm:' + n) for n in near)}?" if near else "See timm.list_models()."
        raise ModelError(f'model = "timm:{name}": timm {timm.__version__} has no such network. {hint}')
    if len(image_shape) != 3:
        raise ModelError(
            f'model = "timm:{name}" needs images (channels, height, width), and the data has {image_shape}.'
        )
    options: dict[str, object] = {"num_classes": classes, "in_chans": image_shape[0]}
    if dropout > 0:
        options["drop_rate"] = dropout
    if getattr(timm.get_pretrained_cfg(name), "fixed_input_size", False):
        options["img_size"] = image_shape[1:]
    with unset_fake_temporarily() as fake, torch.device("meta" if fake else torch.get_default_device()):
        if weights is None:
            created = _create(name, options)
        else:
            created, loaded = _create_pretrained(name, options, weights)
            note(loaded.describe(weights.source))
        model = _fit(created, name, image_shape, dropout, norm)
    if fake:
        _to_fake(model)
    return model
