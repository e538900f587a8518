"""Cortical Experts (CE): the neurons of each feed-forward network, sorted into equal clusters.

CE is a permutation, and a permutation changes nothing: rows of the gate and up projections and
columns of the down projection move together, and the model's outputs stay equal to rounding. It
makes no answer better. What it gives is a layout: experts that can be named and watched
(`pacellm_rag.pace.experts`) and that lie side by side in memory. For an evaluation it is the
**placebo arm**: what CE alone "gains" there is the noise of that evaluation.

Neurons are clustered by balanced k-means on their gate rows, scaled to length 1; the first
projection where there is no gate. A cluster of n neurons with sum S contributes |S|^2 / n, and the
inertia is the number of neurons less the sum of that, so exchanging neurons i of cluster p and j
of cluster q changes the sum by exactly

    2 (x_j - x_i) (S_p / n_p - S_q / n_q) + |x_j - x_i|^2 (1 / n_p + 1 / n_q)

Clusters grow to their final sizes row by row and keep them ever after, so that they are balanced
by construction. That alone is what `cluster_neurons` does by default; where more rounds are asked
for, exchanges follow. The last term, which assigning to the nearest mean leaves out, is what keeps
k-means from standing still where neurons are nearly orthogonal, as they are. Every round pairs the
clusters off and lets each pair exchange as many neurons as pays.

Nothing is cached. An `ExpertMap` carries fingerprints of the weights that it was made from, and is
applied to no others. Knows nothing of banks, tokenizers or documents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, one_hot
from transformers.pytorch_utils import Conv1D

from pacellm_rag.errors import ConfigurationError, ModelError
from pacellm_rag.pace.architectures import FeedForward, find_feed_forwards
from pacellm_rag.pace.expert_map import (
    NUMBER_TYPES,
    ExpertMap,
    LayerExperts,
    fingerprint_of,
    first_rows,
    match_layers,
    possible_states,
    weight_of,
)

__all__ = ["apply_permutation", "balanced_kmeans", "cluster_neurons", "inertia", "undo"]

_BLOCKS, _BLOCKS_AGAIN = 8, 4  # rows are placed, and placed again, in so many; more help little
_LEAST_GAIN = 1e-5  # an exchange that gains less is rounding


@torch.no_grad()
def cluster_neurons(
    model: nn.Module,
    n_experts: int = 64,
    *,
    seeds: Sequence[int] = (0,),
    rounds: int = 0,
    layers: Iterable[int] | None = None,
    device: torch.device | str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ExpertMap:
    """Sorts the neurons of each feed-forward network into experts; leaves the model as it is.

    Args:
        model: a decoder with plain weights.
        n_experts: experts of each layer; sizes differ by one where it does not divide the width.
        seeds: of the order in which neurons are placed. Each seed costs a whole run, and the best
            run is kept.
        rounds: most rounds of exchanges; see `balanced_kmeans`.
        layers: indices of the layers to cluster; None takes all.
        device: where to compute; None takes the place of each layer's weights.
        progress: called with the layers done and all layers, before the first and after each.

    Raises:
        ModelError: the architecture is unknown, or the weights are quantised or PEFT-wrapped.
        ConfigurationError: a layer does not exist or has fewer neurons than `n_experts`.
    """
    feed_forwards = find_feed_forwards(model)
    chosen = _choose(feed_forwards, range(len(feed_forwards)) if layers is None else layers)
    for each in chosen:
        _check_plain(each)
    found: list[LayerExperts] = []
    for each in chosen:
        if progress is not None:
            progress(len(found), len(chosen))
        rows = first_rows(each)
        placed = rows if device is None else rows.to(device)
        if not bool(torch.isfinite(placed).all()):
            raise ModelError(f"The weights of {each.path} hold NaN or infinite values.")
        labels = balanced_kmeans(placed, n_experts, seeds=seeds, rounds=rounds)
        found.append(LayerExperts(each.layer, n_experts, labels.cpu(), fingerprint_of(rows)))
    if progress is not None:
        progress(len(found), len(chosen))
    return ExpertMap(n_experts, tuple(found))


def apply_permutation(model: nn.Module, expert_map: ExpertMap) -> None:
    """Reorders the neurons, in place, so that each expert's lie together.

    The weights and biases of all projections move; outputs stay equal to rounding.

    Raises:
        ModelError: the map was made from other weights or is applied already, or weights are
            quantised or PEFT-wrapped. The model is then as it was.
    """
    _reorder(model, expert_map, applied=False)


def undo(model: nn.Module, expert_map: ExpertMap) -> None:
    """Puts the neurons back in their original order, bit for bit.

    Raises:
        ModelError: the map is not applied to this model. The model is then as it was.
    """
    _reorder(model, expert_map, applied=True)


def balanced_kmeans(
    rows: Tensor, n_clusters: int, *, seeds: Sequence[int] = (0,), rounds: int = 0
) -> Tensor:
    """Clusters rows, scaled to length 1, into clusters whose sizes differ by at most one.

    Args:
        rows: shape (rows, features).
        n_clusters: number of clusters.
        seeds: of the order in which rows are placed; the best run is kept. On the default model,
            runs differ by 0.2 % of the inertia.
        rounds: most rounds of exchanges. None is the default, as they add little where rows are
            nearly orthogonal: 8 lower the inertia by 0.6 % on the default model, 16 by 0.8 %, and
            1.1 % are reached when nothing is left to gain, after 65 to 120. Where rows form tight
            clusters, one in six is misplaced without them, and none after 50.

    Returns:
        The cluster of each row, shape (rows,); the same on every run on the same machine.

    Raises:
        ConfigurationError: more clusters than rows, no seed, or a negative number of rounds.
    """
    if not 1 <= n_clusters <= len(rows):
        raise ConfigurationError(
            f"{n_clusters} experts were asked for; a layer of {len(rows)} neurons has 1 to "
            f"{len(rows)}."
        )
    if not seeds or rounds < 0:
        raise ConfigurationError(
            f"seeds is {seeds!r} and rounds is {rounds}; give one seed or more and 0 or more "
            "rounds."
        )
    rows = normalize(rows.float(), dim=1)
    sizes = torch.full((n_clusters,), len(rows) // n_clusters, device=rows.device)
    sizes[: len(rows) % n_clusters] += 1
    runs = []
    for seed in seeds:
        labels, sums = _fill(rows, sizes, seed)
        runs.append(_exchange(rows, labels, sums, sizes, rounds) if rounds else labels)
    return runs[0] if len(runs) == 1 else min(runs, key=lambda labels: inertia(rows, labels))


def inertia(rows: Tensor, labels: Tensor) -> float:
    """Sum of the squared distances of rows, scaled to length 1, to the means of their clusters."""
    rows = normalize(rows.double(), dim=1)
    sums = one_hot(labels).T.double() @ rows
    sizes = torch.bincount(labels).clamp(min=1)
    return float(rows.square().sum() - (sums.square().sum(1) / sizes).sum())


def _fill(rows: Tensor, sizes: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Grows clusters around rows drawn at random, all at the same pace, to their final sizes.

    The rows come in a random order and a block at a time. Each goes to the cluster whose mean so
    far is most like it, so that later rows meet means of many rows, which tell far more than the
    row that a cluster began with. Once all are placed, each block is taken out and placed again:
    the early ones chose when little was known.

    Returns:
        The cluster of each row, shape (rows,), and the sums, shape (clusters, features).
    """
    total, number = len(rows), len(sizes)
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed)).to(rows.device)
    labels = torch.empty_like(order)
    labels[order[:number]] = torch.arange(number, device=rows.device)
    sums = rows.index_select(0, order[:number])
    held = torch.ones_like(sizes)
    stop = number
    for block in order[number:].chunk(_BLOCKS):
        coming = rows.index_select(0, block)
        stop += len(block)
        room = -(-sizes * stop // total) - held  # at the same pace, rounded up
        labels[block] = _assign(coming @ (sums / held[:, None]).T, room)
        sums += _sums(coming, labels[block], number)
        held += torch.bincount(labels[block], minlength=number)
    for block in order.chunk(_BLOCKS_AGAIN):
        coming = rows.index_select(0, block)
        room = torch.bincount(labels[block], minlength=number)
        sums -= _sums(coming, labels[block], number)
        held = (sizes - room).clamp(min=1)
        labels[block] = _assign(coming @ (sums / held[:, None]).T, room)
        sums += _sums(coming, labels[block], number)
    return labels, sums


def _sums(rows: Tensor, labels: Tensor, number: int) -> Tensor:
    """The sum of the rows of each cluster, shape (clusters, features)."""
    if rows.device.type == "cpu":
        return rows.new_zeros(number, rows.shape[1]).index_add_(0, labels, rows)
    return one_hot(labels, number).T.float() @ rows  # index_add_ adds in any order there


def _assign(similarities: Tensor, room: Tensor) -> Tensor:
    """Gives every row a cluster with room left, the most similar first. Changes `similarities`.

    Args:
        similarities: shape (rows, clusters), within -1 and 1.
        room: shape (clusters,), enough for all rows together.
    """
    labels = room.new_empty(len(similarities))
    places = torch.arange(len(labels), device=labels.device)
    waiting = places
    while len(waiting):
        best, wish = similarities.masked_fill_(room == 0, -torch.inf).max(1)
        labels[waiting] = wish
        # the queues before the clusters, one after the other
        queue = (4 * wish.double() - best).argsort(stable=True)
        wishes = torch.bincount(wish, minlength=len(room))
        ends = wishes.cumsum(0) - wishes + room  # where the room is full
        late = queue[places[: len(queue)] >= ends[wish[queue]]]
        room = (room - wishes).clamp(min=0)
        waiting, similarities = waiting[late], similarities[late]
    return labels


def _exchange(rows: Tensor, labels: Tensor, sums: Tensor, sizes: Tensor, rounds: int) -> Tensor:
    """Exchanges rows between clusters, always to less inertia. Changes `sums`."""
    number, width = len(sizes), int(sizes.max())
    share = 1 / sizes.float()
    slots = torch.arange(width, device=rows.device)
    start = sizes.cumsum(0) - sizes
    # cluster by cluster, `width` places for each; the last of a smaller one is left empty
    members = labels.argsort(stable=True)[(start[:, None] + slots).clamp(max=len(rows) - 1)]
    members = members.flatten()
    empty = slots >= sizes[:, None]
    rows = rows.index_select(0, members)
    similarities = rows.new_empty(number, len(rows))
    changed = torch.arange(number, device=rows.device)
    most = max(1, int(sizes.min()) // 4)
    vain = torch.zeros(number, number, dtype=torch.bool, device=rows.device)
    for _ in range(rounds):
        similarities[changed] = sums[changed] @ rows.T
        gains = similarities.view(number, number, width) * (2 * share)[:, None, None]
        gains -= gains.diagonal().T.clone()  # (to, from, place)
        gains.masked_fill_(empty, -torch.inf)
        best = gains.amax(2)
        promise = (best + best.T + 2 * (share[:, None] + share)).masked_fill(vain, 0)
        pairs = _pair_off(promise)
        if not pairs:
            break
        p, q = torch.tensor(pairs, device=rows.device).T
        gain_i, slot_i = gains[q, p].topk(most, 1)
        gain_j, slot_j = gains[p, q].topk(most, 1)
        i, j = slot_i + width * p[:, None], slot_j + width * q[:, None]
        moved = rows[j] - rows[i]  # (pairs, exchanges, features)
        products = moved @ moved.mT
        squares = 2 * products.tril(-1).sum(2) + products.diagonal(dim1=1, dim2=2)
        # of the first exchange, of the first two, ... together; exact
        gain = (gain_i + gain_j).cumsum(1) + squares.cumsum(1) * (share[p] + share[q])[:, None]
        gain, last = gain.max(1)
        good = gain > _LEAST_GAIN
        vain[p[~good], q[~good]] = True
        pays = (torch.arange(most, device=rows.device) <= last[:, None]) & good[:, None]
        step = (pays.float()[:, None] @ moved)[:, 0]
        sums[p] += step
        sums[q] -= step
        i, j = i[pays], j[pays]
        to, come = torch.cat([i, j]), torch.cat([j, i])
        members[to] = members[come]
        rows[to] = rows[come]
        similarities[:, to] = similarities[:, come]
        changed = torch.cat([p[good], q[good]])
        vain[changed] = False
        vain[:, changed] = False
    labels = torch.empty_like(labels)
    numbers = torch.arange(number, device=rows.device)[:, None].expand_as(empty)
    labels[members[~empty.flatten()]] = numbers[~empty]
    return labels


def _pair_off(promise: Tensor) -> list[tuple[int, int]]:
    """Pairs p < q of clusters, each cluster in one pair at most, the most promising first."""
    number = len(promise)
    values, places = promise.triu(1).flatten().sort(descending=True, stable=True)
    pairs: list[tuple[int, int]] = []
    taken: set[int] = set()
    for place in places[: int((values > _LEAST_GAIN).sum())].tolist():
        p, q = divmod(place, number)
        if p not in taken and q not in taken:
            pairs.append((p, q))
            taken.update((p, q))
            if len(taken) >= number - 1:
                break
    return pairs


def _choose(feed_forwards: Sequence[FeedForward], layers: Iterable[int]) -> list[FeedForward]:
    wanted = sorted(set(layers))
    unknown = [layer for layer in wanted if not 0 <= layer < len(feed_forwards)]
    if unknown:
        raise ConfigurationError(
            f"The model has layers 0 to {len(feed_forwards) - 1}; there is no layer {unknown[0]}."
        )
    return [feed_forwards[layer] for layer in wanted]


def _reorder(model: nn.Module, expert_map: ExpertMap, *, applied: bool) -> None:
    mapped = match_layers(find_feed_forwards(model), expert_map)
    for feed_forward, _ in mapped:
        _check_plain(feed_forward)
    if applied not in possible_states(mapped):
        raise ModelError(
            "The expert map is not applied to this model, so there is nothing to undo."
            if applied
            else "The expert map is applied to this model already."
        )
    for feed_forward, experts in mapped:
        _move(feed_forward, experts.inverse if applied else experts.permutation)


@torch.no_grad()
def _move(feed_forward: FeedForward, permutation: Tensor) -> None:
    """Reorders the neurons of one network in place."""
    for tensor, axis in _neuron_axes(feed_forward):
        order = permutation.to(tensor.device)
        if tensor.shape[axis] == 2 * feed_forward.width:  # gate and up in one
            order = torch.cat([order, order + feed_forward.width])
        tensor.copy_(tensor.index_select(axis, order))


def _neuron_axes(feed_forward: FeedForward) -> Iterator[tuple[Tensor, int]]:
    """The tensors that have an axis of neurons, with that axis."""
    for _, projection in _projections(feed_forward):
        reads = projection is feed_forward.down
        yield weight_of(projection), int(reads != isinstance(projection, Conv1D))
        bias = getattr(projection, "bias", None)
        if bias is not None and not reads:
            yield bias, 0


def _projections(feed_forward: FeedForward) -> Iterator[tuple[str, nn.Module]]:
    layout = feed_forward.layout
    if feed_forward.gate is not None:
        yield str(layout.gate), feed_forward.gate
    yield layout.up, feed_forward.up
    yield layout.down, feed_forward.down


def _check_plain(feed_forward: FeedForward) -> None:
    """Raises where neurons can not be moved by moving rows and columns of plain tensors."""
    for name, projection in _projections(feed_forward):
        weight = weight_of(projection)
        tensors = chain(projection.named_parameters(), projection.named_buffers())
        plain = (
            {name for name, _ in tensors} <= {"weight", "bias"}
            and next(projection.children(), None) is None
            and type(weight.data) is Tensor
            and weight.dim() == 2
            and weight.dtype in NUMBER_TYPES
            and not weight.is_meta
        )
        if not plain:
            raise ModelError(
                f"{feed_forward.path}.{name} is a {type(projection).__name__} whose neurons can "
                "not be moved: its weights are quantised, offloaded or wrapped by an adapter. "
                "Merge adapters first (merge_and_unload), or load the model without quantisation "
                "and offloading."
            )
    _check_nothing_else(feed_forward)


def _check_nothing_else(feed_forward: FeedForward) -> None:
    """Raises where the network has further tensors of one value per neuron."""
    own = {id(p) for _, module in _projections(feed_forward) for p in module.parameters()}
    itself = feed_forward.path.rpartition(".")[2].isdigit()  # projections on the layer itself
    for name, parameter in feed_forward.block.named_parameters(recurse=not itself):
        if id(parameter) not in own and feed_forward.width in parameter.shape:
            raise ModelError(
                f"{feed_forward.path}.{name} has a value for each neuron, and what it does with "
                "them is not known here; the neurons of this architecture can not be reordered."
            )
