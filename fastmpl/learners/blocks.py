"""The blocks of a network: what is recomputed, and where a truncated tangent starts."""

from torch import nn


def block_names(module: nn.Module) -> list[str]:
    """Names of the blocks in the order of the network: its children, with plain containers opened."""
    names: list[str] = []
    for name, child in module.named_children():
        if isinstance(child, nn.Sequential | nn.ModuleList):
            names += [f"{name}.{inner}" for inner in block_names(child)] or [name]
        else:
            names.append(name)
    held = dict(module.named_modules())
    return [name for name in names if any(True for _ in held[name].parameters())]


def names_in_last_blocks(module: nn.Module, depth: int) -> set[str]:
    """Names of the parameters of the last `depth` blocks; of the whole network for 0."""
    every = {name for name, _ in module.named_parameters()}
    chosen = block_names(module)[-depth:] if depth else []
    return {name for name in every if any(name.startswith(f"{block}.") for block in chosen)} if depth else every
